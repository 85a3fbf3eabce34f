"""The machine a run finds itself on: its device and threads, and what it is made of.

No paths: the records of a run may be published.
"""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from .. import __version__
from ..config import Machine
from ..data.fashion_mnist import FILES
from ..errors import RunError, UsageError
from ..spiking import backend
from ..world import ALONE, World

PACKAGES = ("torch", "torchvision", "numpy", "numba", "cupy-cuda12x", "cupy-cuda13x", "tensorboard")


def choose_device(name: str) -> torch.device:
    """The device that --device means; auto: the accelerator torch finds, else the CPU.

    Raises:
        UsageError: no device is called that.
        RunError: the device is not on this machine.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device {name}: unknown; examples: auto, cpu, cuda, cuda:1, mps"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "this torch is built without CUDA" if not torch.version.cuda else "no GPU is found"
        raise RunError(f"--device {name}: {reason}; use --device cpu, or leave it out")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise RunError(f"--device {name}: there are {count} GPUs, cuda:0 to cuda:{count - 1}")
    try:
        torch.zeros(1, device=device).tolist()  # it exists, and can compute
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        first = str(error).splitlines()[0]
        raise RunError(
            f"--device {name}: cannot be used here ({first}); use --device cpu"
        ) from None
    return device


def own_device(name: str, world: World) -> torch.device:
    """As `choose_device`; of several processes each takes the GPU of its number on its machine.

    Raises:
        UsageError: one GPU is named for all of them.
        RunError: there are fewer GPUs than processes.
    """
    device = choose_device(name)
    if world.size == 1 or device.type == "cpu":
        return device
    if ":" in name:
        raise UsageError(
            f"--device {name}: each process takes a GPU of its own; use --device {device.type}"
        )
    if device.type != "cuda" or world.local_rank >= torch.cuda.device_count():
        raise RunError(
            f"--device {name}: there are {torch.cuda.device_count()} CUDA GPUs on this machine for "
            "its processes; start one for each (--nproc-per-node), or use --device cpu"
        )
    torch.cuda.set_device(world.local_rank)
    return choose_device(f"cuda:{world.local_rank}")


def set_up(machine: Machine) -> None:
    """Threads and determinism, for the whole process."""
    torch.set_num_threads(machine.threads)
    if machine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def available_cores() -> int:
    """The cores this process may use, which can be fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe(device: torch.device, chosen_backend: str, world: World = ALONE) -> dict[str, object]:
    """What environment.json records."""
    return {
        "rsnn_fmnist": __version__,
        "git_revision": git_revision(),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": available_cores(),
        "device": str(device),
        "device_name": device_name(device),
        **(cuda_versions() if device.type == "cuda" else {}),
        "backend": chosen_backend,
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "kernel_threads": kernel_threads(chosen_backend),
    }


def kernel_threads(chosen_backend: str) -> str:
    """Whether the compiled loops run on torch's threads."""
    if chosen_backend != "numba":
        return "torch's"
    from ..spiking.kernels.cpu.openmp import PARALLEL

    return "torch's" if PARALLEL else "kernels run on one: torch has no GNU OpenMP here"


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's own name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_revision() -> str | None:
    """The revision of the source this runs from; None where it is not a checkout of its own."""
    source = Path(__file__).parents[2]
    if not (source / ".git").exists():
        return None
    return _told_by("git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40")


def cuda_versions() -> dict[str, str | None]:
    """CUDA as torch is built for it, and the NVIDIA driver; None where there is none."""
    told = _told_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {"cuda": torch.version.cuda, "driver": told.splitlines()[0] if told else None}


def _told_by(*command: str) -> str | None:
    """What a program prints; None where there is no such program, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def information(machine: Machine) -> str:
    """What --info prints: versions, devices, backends, and whether the pictures are there."""
    lines = [
        f"rsnn_fmnist  {__version__}",
        f"python       {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{name:<12} {_version(name) or 'not installed'}" for name in PACKAGES),
        f"processor    {processor()}, {available_cores()} cores",
    ]
    lines += cuda_lines()
    device = choose_device(machine.device)
    chosen = backend.resolve("auto", device)
    lines.append(f"device       {device}, backend {chosen} by default")
    lines.append(f"threads      {kernel_threads(chosen)}")
    raw = machine.data_root() / "FashionMNIST" / "raw"
    present = sum(
        (raw / name).is_file() or (raw / f"{name}.gz").is_file() for name, _, _ in FILES.values()
    )
    lines.append(f"pictures     {present} of 4 files in {raw}")
    return "\n".join(lines)


def cuda_lines() -> list[str]:
    """Of --info: CUDA, the driver, each GPU, and whether the kernels compile for it."""
    from ..spiking.kernels.cuda import launch

    versions = cuda_versions()
    lines = [
        f"cuda         {versions['cuda'] or 'none: this torch is built without it'}",
        f"driver       {versions['driver'] or 'no NVIDIA driver is found'}",
    ]
    for i in range(torch.cuda.device_count()):
        why_not = launch.missing(torch.device("cuda", i), every=True)
        lines.append(f"cuda:{i:<7} {torch.cuda.get_device_name(i)}")
        lines.append(f"kernels      {why_not or 'compile'}")
    if not torch.cuda.device_count():
        lines.append("kernels      CUDA's are not compiled: no GPU is found")
    return lines
