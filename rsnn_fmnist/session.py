"""What a run is made of: what learns, what it learns from, and how far it has come.

A checkpoint is these two, Session and Progress; nothing else changes while a run trains.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR

from .config import Experiment
from .data.loader import Loader
from .training.step import Precision, Step, Sums
from .world import ALONE, World

Row = dict[str, Any]  # one line of metrics.jsonl


@dataclass(frozen=True)
class Session:
    """What learns, and what it learns from."""

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
    whole_step: bool = True  # a training step as one, where the model and the device allow it
    world: World = ALONE  # the processes that share the work
    evaluations: dict[Loader, tuple[Step, Sums]] = field(default_factory=dict)  # as far as taken

    def close(self) -> None:
        """End the processes that gather the batches; the session is not to be used afterwards."""
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
    gradient_norm: float | None = None  # see step.gradient_norm; of the last epoch trained


def open_session(
    experiment: Experiment,
    device: torch.device,
    model: nn.Module,
    loaders: tuple[Loader, Loader | None, Loader],
    *,
    whole_step: bool = True,
    world: World = ALONE,
) -> Session:
    """The session of an experiment before its first batch; model is moved to the device."""
    model = model.to(device)
    optimizer = build_optimizer(model, experiment)
    precision = Precision(device, amp_dtype(experiment, device))
    scheduler = build_scheduler(optimizer, experiment, experiment.start_epoch)
    train, val, test = loaders
    return Session(
        experiment,
        device,
        precision,
        model,
        optimizer,
        scheduler,
        precision.scaler(),
        train,
        val,
        test,
        whole_step,
        world,
    )


def best_metric(experiment: Experiment) -> str:
    """What the best epoch is chosen by: held-out pictures where there are some."""
    return "val_acc1" if experiment.val_size else "test_acc1"


def build_optimizer(model: nn.Module, experiment: Experiment) -> Optimizer:
    """torch's own, fused: one call for all parameters, which a CUDA graph can hold.

    SGD's momentum begins at 0, which gives the first step that torch's own beginning gives. torch
    would make it in the first step, and where gradient scaling skips that, leave it as the memory
    was.
    """
    lr, weight_decay = experiment.lr, experiment.weight_decay
    if experiment.opt == "adam":
        return Adam(model.parameters(), lr, weight_decay=weight_decay, fused=True, capturable=True)
    momentum = experiment.momentum
    sgd = SGD(model.parameters(), lr, momentum, weight_decay=weight_decay, fused=True)
    for p in model.parameters() if momentum else ():
        sgd.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return sgd


def build_scheduler(optimizer: Optimizer, experiment: Experiment, epoch: int) -> LRScheduler:
    """The schedule, set to what it is when `epoch` epochs have passed."""
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
    """Go on to the next epoch's learning rate.

    torch warns where the optimizer has not stepped in this process yet, as after a resume at the
    end of an epoch; here the schedule counts epochs, whoever took their steps.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
        scheduler.step()


def take_schedule(session: Session, epoch: int) -> None:
    """Set scheduler and learning rate to what the experiment's schedule is at `epoch`."""
    other = build_optimizer(session.model, session.experiment)
    scheduler = build_scheduler(other, session.experiment, epoch)
    session.scheduler.load_state_dict(scheduler.state_dict())
    for group, rate in zip(session.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
        group["lr"] = rate


def amp_dtype(experiment: Experiment, device: torch.device) -> torch.dtype | None:
    """The precision of --amp, None without it; by itself float16 on CUDA, bfloat16 elsewhere."""
    if not experiment.amp:
        return None
    if experiment.amp_dtype == "auto":
        return torch.float16 if device.type == "cuda" else torch.bfloat16
    dtype: torch.dtype = getattr(torch, experiment.amp_dtype)
    return dtype
