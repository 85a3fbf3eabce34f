"""The training loop: one for every model, device and precision.

A run that stops between any two batches resumes as if it had never stopped.
"""

import copy
import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ..config import Experiment
from ..data.loader import EVALUATION_BATCH, batch_indices
from ..data.splits import epoch_order
from ..errors import DivergedError
from ..interrupt import Interrupt, InterruptedRunError
from ..metrics import Sums, gradient_norm
from ..session import Best, Progress, Row, Session, advance, best_metric, best_row
from ..storage.run_directory import Saver
from ..tracking.tracker import Tracker
from ..world import PeerLostError
from .step import Evaluation, Step, training_step


def fit(
    session: Session, progress: Progress, *, tracker: Tracker, saver: Saver, interrupt: Interrupt
) -> None:
    """Train from `progress` to the experiment's last epoch, and save.

    Raises:
        InterruptedRunError: a signal was received; the run is saved.
        PeerLostError: another process of the run has ended; this one's state is saved.
        DivergedError: the loss or a weight is no longer finite.
    """
    step = training_step(session, progress.sums, interrupt)
    parts = {"val": session.val, "test": session.test}
    evaluations = {part: Evaluation(session, x) for part, x in parts.items() if x is not None}
    try:
        while progress.epoch < session.experiment.epochs:
            train_epoch(session, progress, step, tracker=tracker, saver=saver, interrupt=interrupt)
            refuse_divergence(session, progress)
            with saver.saving_on_failure(progress):
                row = epoch_row(session, progress, evaluations, tracker, interrupt)
            finish_epoch(session, progress, row)
            with interrupt.postponed():
                tracker.epoch(row, seconds_left(session.experiment, progress))
            if saver.due():
                saver.save(progress)
    except PeerLostError:
        refuse_divergence(session, progress)
        saver.save(progress)
        raise
    except InterruptedRunError:
        refuse_divergence(session, progress)
        session.world.on_first(lambda: saver.save(progress))  # the others end after that
        raise
    saver.save(progress)


def train_epoch(
    session: Session,
    progress: Progress,
    step: Step,
    *,
    tracker: Tracker,
    saver: Saver,
    interrupt: Interrupt,
) -> None:
    """Train on the batches of `progress.epoch` that are left."""
    experiment = session.experiment
    session.model.train()
    order = epoch_order(len(session.train), experiment.seed, progress.epoch)
    batches = batch_indices(order.to(session.device), experiment.batch_size, drop_last=True)
    shares = map(session.world.share, batches[progress.batch :])
    start = time.perf_counter() - progress.train_seconds
    for selection in interrupt.waiting(session.train.selections(list(shares))):
        step(selection)
        progress.batch += 1
        progress.train_seconds = time.perf_counter() - start
        if progress.batch == len(batches):
            progress.gradient_norm = gradient_norm(session.model)
        tracker.batch(progress, len(batches))
        interrupt.check()
        if saver.due():
            refuse_divergence(session, progress)
            saver.save(progress)
    progress.sums.wait()
    progress.train_seconds = time.perf_counter() - start


def evaluate(session: Session, evaluation: Evaluation, interrupt: Interrupt) -> tuple[Sums, float]:
    """One pass over the evaluation's pictures -> the sums over all processes, and seconds."""
    session.model.eval()
    evaluation.sums.reset()
    loader = evaluation.loader
    start = time.perf_counter()
    order = session.world.share(torch.arange(len(loader), device=session.device))
    batches = batch_indices(order, EVALUATION_BATCH, drop_last=False)
    for selection in interrupt.waiting(loader.selections(batches)):
        evaluation(selection)
        interrupt.check()
    session.world.complete(evaluation.sums, interrupt)
    evaluation.sums.wait()
    return evaluation.sums, time.perf_counter() - start


def epoch_row(
    session: Session,
    progress: Progress,
    evaluations: dict[str, Evaluation],
    tracker: Tracker,
    interrupt: Interrupt,
) -> Row:
    """Evaluate, and return the epoch's row of metrics."""
    row: Row = {"epoch": progress.epoch, **_metrics("train", progress.sums)}
    seconds = {}
    for part, evaluation in evaluations.items():
        observed: AbstractContextManager[None] = (
            tracker.observing() if part == "test" else nullcontext()
        )
        with observed:
            sums, seconds[part] = evaluate(session, evaluation, interrupt)
        row |= _metrics(part, sums)
    trained = progress.sums.totals[3].item()
    return row | {
        "lr": float(session.optimizer.param_groups[0]["lr"]),
        "train_images_per_second": round(trained / progress.train_seconds, 1),
        "test_images_per_second": round(len(session.test) / seconds["test"], 1),
        "seconds": round(progress.train_seconds + sum(seconds.values()), 4),
    }


def finish_epoch(session: Session, progress: Progress, row: Row) -> None:
    """Add the row, keep the best weights, and move to the beginning of the next epoch."""
    advance(session.scheduler)
    keep_best(session, progress, row)
    progress.rows.append(row)
    progress.epoch += 1
    progress.sums.reset()
    progress.batch, progress.train_seconds = 0, 0.0


def seconds_left(experiment: Experiment, progress: Progress) -> float:
    """The mean time of the epochs done, times the epochs to come."""
    done = sum(row["seconds"] for row in progress.rows) / len(progress.rows)
    return float(done * (experiment.epochs - progress.epoch))


def _metrics(part: str, sums: Sums) -> Row:
    loss, acc1, acc5 = sums.means()
    return {f"{part}_loss": loss, f"{part}_acc1": acc1, f"{part}_acc5": acc5}


def refuse_divergence(session: Session, progress: Progress) -> None:
    """Raise DivergedError where the loss or a weight is not finite.

    The loss alone does not show it: a potential that is NaN never fires, and a silent network has a
    finite loss.
    """
    loss = progress.sums.totals[0].item()
    weights = [p.detach().sum() for p in session.model.parameters()]
    if math.isfinite(loss) and torch.isfinite(torch.stack(weights)).all():
        return
    what = "loss is" if not math.isfinite(loss) else "weights are"
    raise DivergedError(
        f"the {what} no longer finite (NaN or inf) in epoch {progress.epoch}, batch "
        f"{progress.batch}: try a smaller --lr than {session.experiment.lr:g}; this state is not "
        "saved"
    )


def keep_best(session: Session, progress: Progress, row: Row) -> None:
    """Keep the weights where the epoch is the best so far; the first of equals stays."""
    if best_row(session.experiment, [*progress.rows, row]) is row:
        weights = {name: _kept(value) for name, value in session.model.state_dict().items()}
        progress.best = Best(row["epoch"], row[best_metric(session.experiment)], weights)


def _kept(value: Any) -> Any:
    """A part of a model's state, unaffected by further training."""
    return value.cpu().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
