"""Device, threads and backend: what was chosen, and what it is."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from . import random_state
from .config import Machine
from .errors import RunError, UsageError, first_line, warn
from .spiking import BackendUnavailableError
from .spiking.backend import lacking, resolve
from .world import World

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS is deterministic with a fixed one only


def choose_device(name: str) -> torch.device:
    """The device that --device means; auto: the accelerator that torch finds, else the CPU.

    Raises:
        UsageError: no such kind of device.
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
        why = "this torch is built without CUDA" if not torch.version.cuda else "no GPU is found"
        raise RunError(f"--device {name}: {why}; use --device cpu, or leave it out")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise RunError(f"--device {name}: there are {count} GPUs, cuda:0 to cuda:{count - 1}")
    try:
        torch.zeros(1, device=device).tolist()  # it exists, and can compute
    except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
        raise RunError(
            f"--device {name}: cannot be used here ({first_line(error)}); use --device cpu"
        ) from None
    return device


def own_device(name: str, world: World) -> torch.device:
    """As `choose_device`; of several processes each gets the GPU of its number on its machine.

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


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that --backend means on the device; RunError where it cannot be had."""
    try:
        chosen = resolve(name, device)
    except BackendUnavailableError as error:
        raise RunError(f"--backend {name}: {error}") from None
    if name == "auto" and (why := lacking(device)):
        warn(f"spiking layers run in torch, which is slower; for kernels, {why}")
    return chosen


def configure(machine: Machine) -> None:
    """Set threads and determinism for the whole process; `process_as_found` undoes it."""
    torch.set_num_threads(machine.threads)
    if machine.deterministic:
        os.environ.setdefault(WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


@contextmanager
def process_as_found() -> Iterator[None]:
    """Restore, for a program that calls `main`, what a command changes in its process.

    These are torch's threads and determinism, the random states, and the folders of imports.
    """
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace, folders = WORKSPACE in os.environ, list(sys.path)
    try:
        with random_state.unchanged(torch.device("cpu")):
            yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if not workspace:
            os.environ.pop(WORKSPACE, None)
        sys.path[:] = folders


def available_cores() -> int:
    """The cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def processor() -> str:
    """The processor's name, where the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
