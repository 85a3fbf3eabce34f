"""Device and backend: what is chosen, and what is refused."""

import os
import sys

import pytest
import torch

from rsnn_fmnist import device
from rsnn_fmnist.config import Machine
from rsnn_fmnist.errors import RunError, UsageError
from rsnn_fmnist.world import World

CPU = torch.device("cpu")


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(device, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert device.own_device("cuda", World(5, 8, 1)) == torch.device("cuda:1")
    assert taken == [1]
    assert device.own_device("cpu", World(5, 8, 3)) == CPU
    assert device.own_device("cuda:1", World()) == torch.device("cuda:1")
    with pytest.raises(UsageError, match="--device cuda:1: each process takes a GPU of its own"):
        device.own_device("cuda:1", World(1, 2, 1))
    with pytest.raises(RunError, match="there are 2 CUDA GPUs"):
        device.own_device("cuda", World(2, 3, 2))


def state_of_the_process() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.get_rng_state().tolist(),
        os.environ.get(device.WORKSPACE),
        list(sys.path),
    )


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_the_process_is_left_as_found(
    monkeypatch: pytest.MonkeyPatch, workspace: str | None
) -> None:
    monkeypatch.delenv(device.WORKSPACE, raising=False)
    if workspace:
        monkeypatch.setenv(device.WORKSPACE, workspace)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.set_num_threads(2)
    before = state_of_the_process()

    @device.process_as_found()
    def command() -> None:
        device.configure(Machine(threads=1, deterministic=True))
        torch.manual_seed(1)
        sys.path.insert(0, "/a/folder of mine")
        assert sum(a != b for a, b in zip(state_of_the_process(), before, strict=True)) >= 5
        raise RunError("inside")

    with pytest.raises(RunError, match="inside"):
        command()
    assert state_of_the_process() == before
