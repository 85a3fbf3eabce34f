"""Device and backend: what is chosen, and what is refused."""

import pytest
import torch

from rsnn_fmnist import device
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
