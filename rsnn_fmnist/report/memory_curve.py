"""How far back a network remembers: its test accuracy from a part of each picture's columns.

    read      rates over the first t columns, t = 1 to T
    blanked   whole pictures whose first k columns are blank, k = 0 to T

A blank column has pixels 0, which is the background of the pictures, before they are normalised.
Both ends are the ordinary test accuracy: read at t = T, blanked at k = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.fashion_mnist import CLASSES, SIDE, Pictures
from ..data.loader import EVALUATION_BATCH, Loader, batch_indices
from ..errors import warn
from ..interrupt import Interrupt
from ..session import Session
from ..spiking import record
from ..spiking.monitor import Recording
from ..tracking.diagnostics import evaluating
from ..training.loop import evaluate
from ..training.step import ranks


@dataclass(frozen=True)
class Memory:
    """Test accuracies in percent.

    read[t - 1] is that after t columns; None where a model's answer is no mean of spikes.
    blanked[k] is that without the first k columns.
    """

    read: list[float] | None
    blanked: list[float]


def measure(session: Session, pictures: Pictures) -> Memory:
    """Measure both on `pictures`, which are those that session.test hands out."""
    read = None
    try:
        read = after_columns(session)
    except ValueError as error:
        warn(f"{session.experiment.model}: accuracy after each column is left out: {error}")
    return Memory(read, [without_columns(session, pictures, k) for k in range(SIDE + 1)])


def without_columns(session: Session, pictures: Pictures, k: int) -> float:
    """Test accuracy, in percent, when the first k columns are blank."""
    columns = pictures.columns.clone()  # [M, T, H]
    columns[:, :k] = 0
    blank = Pictures(columns, pictures.labels)
    loader = Loader(blank, session.device, normalize=session.experiment.normalize)
    sums, _ = evaluate(session, loader, Interrupt())
    return sums.means()[1]


def after_columns(session: Session) -> list[float]:
    """Test accuracy, in percent, of the rates over the first t columns, t = 1 to T.

    One pass is enough: what the network does with the first t columns does not depend on the rest.

    Raises:
        ValueError: the answer is not the mean of the last neurons' spikes.
    """
    hits = torch.zeros(SIDE, dtype=torch.int64, device=session.device)
    order = torch.arange(len(session.test), device=session.device)
    with evaluating(session):
        for x, labels in session.test.batches(
            batch_indices(order, EVALUATION_BATCH, drop_last=False)
        ):
            with record(session.model) as recording:
                scores = session.model(x)
            hits += _hits(_spikes(recording, scores), labels)
    return [100 * count / len(session.test) for count in hits.tolist()]


def _spikes(recording: Recording, scores: Tensor) -> Tensor:
    """The spikes [T, N, 10] whose mean over T the scores are."""
    s = recording[list(recording)[-1]].s if len(recording) else scores[None]
    if s.shape != (SIDE, len(scores), CLASSES):
        raise ValueError("its last neurons are not one a class, stepping once a column")
    if not torch.allclose(s.float().mean(0), scores.float(), atol=1e-2):  # a spike is 1 / 28
        raise ValueError("its answer is not the mean of its last neurons' spikes")
    return s


def _hits(s: Tensor, labels: Tensor) -> Tensor:
    """Of the spikes s [T, N, 10] -> how many answers are right after each step, [T].

    Counts of spikes stand for their mean: they order the classes alike, ties included.
    """
    counts = s.cumsum(0, dtype=torch.float32).flatten(0, 1)  # [T * N, 10]
    right = ranks(counts, labels.repeat(len(s))) == 0
    return right.reshape(len(s), -1).sum(1)
