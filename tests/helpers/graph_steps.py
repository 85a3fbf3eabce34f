"""Training steps on short pictures, with what tests on the CPU and on a GPU share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.session import Session, open_session
from rsnn_fmnist.spiking import set_backend
from rsnn_fmnist.training.step import training_step

CPU = torch.device("cpu")
PICTURES = 100


def built(name: str) -> nn.Module:
    """A registered model in which no layer is silent."""
    torch.manual_seed(3)
    model = models.build(name, hidden=8)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


class Regularised(nn.Module):
    """Draws random numbers (dropout), and has counters of its own (batch norm)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(168, 12), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, 10)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.layers(x)
        return scores


def open_model(
    model: nn.Module,
    *,
    graph: bool = True,
    device: torch.device = CPU,
    backend: str = "torch",  # for FakeGraph: a compiled loop is not an operation of torch
    **settings: Any,
) -> Session:
    """A session of few, short pictures."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.randint(0, 256, (PICTURES, 6, 28), generator=generator, dtype=torch.uint8)
    loader = Loader(Pictures(columns, torch.arange(PICTURES) % 10), device)
    set_backend(model, backend)
    experiment = Experiment(model="mine", **settings)
    return open_session(experiment, device, model, (loader, None, loader), graph=graph)


def outcome(session: Session, sums: Sums) -> list[Tensor]:
    """Everything that a step changes."""
    optimizer = [x for state in session.optimizer.state.values() for x in state.values()]
    scaler = [torch.tensor(x) for x in session.scaler.state_dict().values()]
    gradients = [p.grad for p in session.model.parameters() if p.grad is not None]
    others = [*gradients, sums.totals, torch.get_rng_state()]
    if session.device.type == "cuda":
        others.append(torch.cuda.get_rng_state(session.device))
    return [*session.model.state_dict().values(), *optimizer, *scaler, *others]


def train(model: Callable[[], nn.Module], steps: int, **settings: Any) -> list[Tensor]:
    """The outcome of steps on random batches; the learning rate is halved in between."""
    session = open_model(model(), **settings)
    sums = Sums(session.device)
    before = [p.detach().clone() for p in session.model.parameters()]
    session.model.train()
    step = training_step(session, sums)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(5)
    for n in range(steps):
        step(torch.randperm(PICTURES, generator=generator)[:16].to(session.device))
        if n == steps // 2:
            session.optimizer.param_groups[0]["lr"] /= 2
    assert not any(map(torch.equal, before, session.model.parameters()))
    return outcome(session, sums)


def graph_command(folder: Path, flags: str) -> list[str]:
    """A run of two epochs of ten batches in folder/run; small_synthetic is needed."""
    basis = "--model plain --dataset synthetic --device cpu --backend torch -b 64 --epochs 2"
    return [*basis.split(), "--output-dir", str(folder), "--run-name", "run", *flags.split()]


# A models file whose model cannot be captured.
WAITS = """
import torch
from rsnn_fmnist.models import ColumnReader, register
from rsnn_fmnist.spiking import IF

class Waiting(torch.nn.Module):
    def forward(self, x):
        return x / max(1.0, x.abs().max().item())

@register("waiting-for-the-device")
def waiting():
    layers = torch.nn.Linear(28, 10), IF(), Waiting()
    return ColumnReader(*layers)
"""
