"""The shared loop: one for every model, device and precision.

A run that is stopped between any two batches goes on from there as if it had never stopped.
"""

import math
import time

import torch

from ..config import Experiment
from ..data.fashion_mnist import epoch_order
from ..data.loader import EVALUATION_BATCH, Loader, batch_indices
from ..errors import DivergedError
from ..interrupt import Interrupt, InterruptedRunError
from ..session import Best, Progress, Row, Session, advance, best_metric
from ..storage.run_directory import Saver
from ..tracking.tracker import Tracker
from ..world import PeerLostError
from .step import Step, Sums, evaluation, gradient_norm, training_step


def fit(
    session: Session, progress: Progress, *, tracker: Tracker, saver: Saver, interrupt: Interrupt
) -> None:
    """Train from where `progress` is to the experiment's last epoch, and save.

    Raises:
        InterruptedRunError: a signal came; the run is saved.
        PeerLostError: another process of the run has ended; this one's state is saved.
        DivergedError: the loss or the weights are no longer finite.
    """
    step = training_step(session, progress.sums, interrupt)
    try:
        while progress.epoch < session.experiment.epochs:
            train_epoch(session, progress, step, tracker=tracker, saver=saver, interrupt=interrupt)
            refuse_divergence(session, progress)
            row = epoch_row(session, progress, tracker, interrupt)
            finish_epoch(session, progress, row)
            with interrupt.noting():
                tracker.epoch(row, seconds_left(session.experiment, progress))
            if saver.due():
                saver.save(progress)
    except PeerLostError:
        refuse_divergence(session, progress)
        saver.save(progress)
        raise
    except InterruptedRunError:
        refuse_divergence(session, progress)
        session.world.on_first(lambda: saver.save(progress))  # nobody ends before it is done
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
    """Take the batches of `progress.epoch` that are left."""
    experiment = session.experiment
    session.model.train()
    order = epoch_order(len(session.train), experiment.seed, progress.epoch)
    batches = batch_indices(order.to(session.device), experiment.batch_size, drop_last=True)
    shares = map(session.world.share, batches[progress.batch :])
    start = time.perf_counter() - progress.train_seconds
    for selection in session.train.selections(list(shares)):
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


def evaluate(session: Session, loader: Loader, interrupt: Interrupt) -> tuple[Sums, float]:
    """One pass that learns nothing, of every process over its share -> the sums of all, seconds."""
    session.model.eval()
    step, sums = evaluation(session, loader)
    start = time.perf_counter()
    order = session.world.share(torch.arange(len(loader), device=session.device))
    for selection in loader.selections(batch_indices(order, EVALUATION_BATCH, drop_last=False)):
        step(selection)
        interrupt.check()
    session.world.complete(sums, interrupt)
    sums.wait()
    return sums, time.perf_counter() - start


def epoch_row(session: Session, progress: Progress, tracker: Tracker, interrupt: Interrupt) -> Row:
    """Evaluate, and put the epoch into one row of metrics."""
    row: Row = {"epoch": progress.epoch, **_metrics("train", progress.sums)}
    val_seconds = 0.0
    if session.val is not None:
        val_sums, val_seconds = evaluate(session, session.val, interrupt)
        row |= _metrics("val", val_sums)
    with tracker.looking_inside():
        test_sums, test_seconds = evaluate(session, session.test, interrupt)
    row |= _metrics("test", test_sums)
    trained = progress.sums.totals[3].item()
    return row | {
        "lr": float(session.optimizer.param_groups[0]["lr"]),
        "train_images_per_second": round(trained / progress.train_seconds, 1),
        "test_images_per_second": round(len(session.test) / test_seconds, 1),
        "seconds": round(progress.train_seconds + val_seconds + test_seconds, 4),
    }


def finish_epoch(session: Session, progress: Progress, row: Row) -> None:
    """Enter the row, keep the best, and go on to the next epoch's beginning."""
    advance(session.scheduler)
    keep_best(session, progress, row)
    progress.rows.append(row)
    progress.epoch += 1
    progress.sums.reset()
    progress.batch, progress.train_seconds = 0, 0.0


def seconds_left(experiment: Experiment, progress: Progress) -> float:
    """The epochs to come, at the mean time of those done."""
    done = sum(row["seconds"] for row in progress.rows) / len(progress.rows)
    return float(done * (experiment.epochs - progress.epoch))


def _metrics(part: str, sums: Sums) -> Row:
    loss, acc1, acc5 = sums.means()
    return {f"{part}_loss": loss, f"{part}_acc1": acc1, f"{part}_acc5": acc5}


def refuse_divergence(session: Session, progress: Progress) -> None:
    """Stop when the loss or a weight is not finite.

    The weights are looked at too because a spiking network hides them: a potential that is not a
    number never fires, and silence has a finite loss.
    """
    loss = progress.sums.totals[0].item()
    weights = [p.detach().sum() for p in session.model.parameters()]
    if math.isfinite(loss) and torch.isfinite(torch.stack(weights)).all():
        return
    what = "loss" if not math.isfinite(loss) else "weights"
    raise DivergedError(
        f"the {what} became not finite in epoch {progress.epoch}, batch {progress.batch}: try a "
        f"smaller --lr than {session.experiment.lr:g}; no checkpoint is made of this state"
    )


def keep_best(session: Session, progress: Progress, row: Row) -> None:
    """Remember the weights when the epoch is the best so far; the first of equals stays."""
    accuracy = row[best_metric(session.experiment)]
    if progress.best is None or accuracy > progress.best.accuracy:
        weights = {name: t.cpu().clone() for name, t in session.model.state_dict().items()}
        progress.best = Best(row["epoch"], accuracy, weights)
