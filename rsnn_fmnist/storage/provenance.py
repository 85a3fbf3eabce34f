"""What a run is made of: environment.json, and what --info prints.

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
from ..data import fashion_mnist
from ..device import available_cores, choose_device, device_name, processor
from ..spiking import backend
from ..world import ALONE, World

PACKAGES = ("torch", "torchvision", "numpy", "numba", "cupy-cuda12x", "cupy-cuda13x", "tensorboard")


def describe(device: torch.device, chosen_backend: str, world: World = ALONE) -> dict[str, object]:
    """The content of environment.json."""
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
    """Which threads the compiled kernels run on."""
    if chosen_backend != "numba":
        return "torch's"
    from ..spiking.kernels.cpu.openmp import PARALLEL

    return "torch's" if PARALLEL else "one for kernels: torch has no GNU OpenMP here"


def git_revision() -> str | None:
    """The git revision of the running source; None where it is not a checkout of its own."""
    source = Path(__file__).parents[2]
    if not (source / ".git").exists():
        return None
    return _output_of("git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=40")


def cuda_versions() -> dict[str, str | None]:
    """CUDA as torch is built for it, and the NVIDIA driver; None where there is none."""
    output = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {"cuda": torch.version.cuda, "driver": output.splitlines()[0] if output else None}


def _output_of(*command: str) -> str | None:
    """What a program prints; None where there is none, or it fails.

    Git's variables, which a hook has, would name another repository or index.
    """
    variables = {k: v for k, v in os.environ.items() if not _names_repository(k)}
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=10, env=variables)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()


def _names_repository(variable: str) -> bool:
    return variable.startswith("GIT_") and not variable.startswith("GIT_CONFIG")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def information(machine: Machine) -> str:
    """What --info prints: versions, devices, backends, and where pictures are looked for."""
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
    raw = fashion_mnist.folder(machine.data_root())
    lines.append(f"pictures     {4 - len(fashion_mnist.missing(raw))} of 4 files in {raw}")
    return "\n".join(lines)


def cuda_lines() -> list[str]:
    """The lines of --info on CUDA, the driver, each GPU, and whether the kernels compile for it."""
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
