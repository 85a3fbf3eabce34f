"""What a run is made of: what learns, what it learns from, and how far it has come.

A checkpoint holds these two, Session and Progress; nothing else changes while a run trains.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR

from . import random_state
from .config import Experiment
from .data.loader import Loader
from .metrics import Sums
from .world import ALONE, World

Row = dict[str, Any]  # one line of metrics.jsonl


@dataclass(frozen=True)
class Precision:
    """Automatic mixed precision on a device; dtype None: none, all in full precision."""

    device: torch.device
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, experiment: Experiment, device: torch.device) -> "Precision":
        """As --amp and --amp-dtype say; auto: float16 on CUDA, bfloat16 elsewhere."""
        if not experiment.amp:
            return cls(device)
        if experiment.amp_dtype == "auto":
            return cls(device, torch.float16 if device.type == "cuda" else torch.bfloat16)
        return cls(device, getattr(torch, experiment.amp_dtype))

    def autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> GradScaler:
        """Gradient scaling, which only float16 needs: its gradients underflow."""
        return GradScaler(self.device.type, enabled=self.dtype is torch.float16)


@dataclass(frozen=True)
class Session:
    """What learns, and what it learns from.

    Attributes:
        graph: --graph: a training step is a graph or compiled where it can be, not eager.
        world: the processes that share the work.
    """

    experiment: Experiment
    device: torch.device
    precision: Precision
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: GradScaler
    train: Loader
    val: Loader | None
    test: Loader
    graph: bool = True
    world: World = ALONE

    def close(self) -> None:
        """End the loaders' worker processes; do not use the session afterwards."""
        for loader in (self.train, self.val, self.test):
            if loader is not None:
                loader.close()


@dataclass
class Best:
    """The epoch with the highest accuracy so far, and its weights."""

    epoch: int
    accuracy: float
    model: dict[str, Tensor]


@dataclass
class Progress:
    """How far a run has come: `batch` training batches of `epoch`, with their sums and seconds."""

    epoch: int
    sums: Sums
    batch: int = 0
    train_seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    best: Best | None = None
    gradient_norm: float | None = None  # of the last training batch of the epoch before


def open_session(
    experiment: Experiment,
    device: torch.device,
    model: nn.Module,
    loaders: tuple[Loader, Loader | None, Loader],
    *,
    graph: bool = True,
    world: World = ALONE,
) -> Session:
    """The session of an experiment before its first batch; moves the model to the device.

    Args:
        loaders: of the training, held-out and test pictures.
    """
    model = model.to(device)
    optimizer = build_optimizer(list(model.parameters()), experiment)
    precision = Precision.of(experiment, device)
    train, val, test = loaders
    return Session(
        experiment,
        device,
        precision,
        model,
        optimizer,
        build_scheduler(optimizer, experiment, experiment.start_epoch),
        precision.scaler(),
        train,
        val,
        test,
        graph,
        world,
    )


@contextmanager
def evaluating(session: Session) -> Iterator[None]:
    """The model in eval mode, in inference mode and autocast; random states are restored."""
    session.model.eval()
    unchanged = random_state.unchanged(session.device)
    with unchanged, torch.inference_mode(), session.precision.autocast():
        yield


def best_metric(experiment: Experiment) -> str:
    """The metric that chooses the best epoch: on held-out pictures where there are some."""
    return "val_acc1" if experiment.val_size else "test_acc1"


def best_row(experiment: Experiment, rows: Sequence[Row]) -> Row:
    """The row of the best epoch; the first of equals."""
    return max(rows, key=lambda row: (row[best_metric(experiment)], -row["epoch"]))


def build_optimizer(parameters: Sequence[nn.Parameter], experiment: Experiment) -> Optimizer:
    """One of torch's optimizers, fused: one call for all parameters, which a CUDA graph can hold.

    Its state starts as zeros, which gives the same first step as torch's own start. torch would
    allocate it in the first step and, where gradient scaling skips that step, leave SGD's momentum
    uninitialized. A graph's learning rate needs a single parameter group.
    """
    lr, weight_decay = experiment.lr, experiment.weight_decay
    if experiment.opt == "adam":
        adam = Adam(parameters, lr, weight_decay=weight_decay, fused=True, capturable=True)
        for p in parameters:
            zeros = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **zeros}
        return adam
    if experiment.opt != "sgd":
        raise ValueError(f"unknown optimizer {experiment.opt!r}")
    momentum = experiment.momentum
    sgd = SGD(parameters, lr, momentum, weight_decay=weight_decay, fused=True)
    for p in parameters if momentum else ():
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def build_scheduler(optimizer: Optimizer, experiment: Experiment, epoch: int) -> LRScheduler:
    """The learning rate schedule after `epoch` epochs."""
    scheduler: LRScheduler
    if experiment.lrs == "cosa":
        scheduler = CosineAnnealingLR(optimizer, experiment.cosa_tmax or experiment.epochs)
    elif experiment.lrs == "step":
        scheduler = StepLR(optimizer, experiment.step_size, experiment.step_gamma)
    else:
        scheduler = ConstantLR(optimizer, factor=1.0)
    for _ in range(epoch):
        advance(scheduler)
    return scheduler


def advance(scheduler: LRScheduler) -> None:
    """Advance the schedule by one epoch.

    Without torch's warning that the optimizer has not stepped yet: after a resume at the end of an
    epoch, another process took its steps.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        scheduler.step()


def take_schedule(session: Session, epoch: int) -> None:
    """Set scheduler and learning rate to the experiment's schedule at `epoch`."""
    other = build_optimizer(list(session.model.parameters()), session.experiment)
    scheduler = build_scheduler(other, session.experiment, epoch)
    session.scheduler.load_state_dict(scheduler.state_dict())
    for group, rate in zip(session.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate
