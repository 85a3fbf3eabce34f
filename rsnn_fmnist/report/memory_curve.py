"""How far back a network remembers: its test accuracy from part of each picture's columns.

    read      from the rates over the first t columns, t = 1 to T
    blanked   on pictures whose first k columns are blank, k = 0 to T

A blank column has pixels of 0, the background of the pictures, before normalization. Both curves
include the ordinary test accuracy: read at t = T, blanked at k = 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.loader import Loader
from ..data.pictures import CLASSES, SIDE, Pictures
from ..errors import warn
from ..interrupt import Interrupt
from ..metrics import ranks
from ..session import Session, evaluating
from ..spiking import record
from ..spiking.monitor import Recording
from ..training.loop import evaluate
from ..training.step import Evaluation


@dataclass(frozen=True)
class MemoryCurves:
    """Test accuracies in percent.

    read[t - 1] is that after t columns; None for a model whose scores are not a mean of spikes.
    blanked[k] is that without the first k columns.
    """

    read: list[float] | None
    blanked: list[float]


def measure_curves(session: Session, pictures: Pictures) -> MemoryCurves:
    """Measure both curves on `pictures`, which are those of session.test."""
    read = None
    try:
        read = after_columns(session)
    except ValueError as error:
        warn(f"{session.experiment.model}: accuracy after each column is left out: {error}")
    return MemoryCurves(read, [without_columns(session, pictures, k) for k in range(SIDE + 1)])


def without_columns(session: Session, pictures: Pictures, k: int) -> float:
    """Test accuracy, in percent, with the first k columns blank."""
    columns = pictures.columns.clone()  # [M, T, H]
    columns[:, :k] = 0
    blank = Pictures(columns, pictures.labels)
    loader = Loader(blank, session.device, normalize=session.experiment.normalize)
    sums, _ = evaluate(session, Evaluation(session, loader), Interrupt())
    return sums.means()[1]


def after_columns(session: Session) -> list[float]:
    """Test accuracy, in percent, from the rates over the first t columns, t = 1 to T.

    One pass is enough: what the network does in the first t steps does not depend on later columns.

    Raises:
        ValueError: the scores are not the mean of the last neurons' spikes.
    """
    hits = torch.zeros(SIDE, dtype=torch.int64, device=session.device)
    with evaluating(session):
        for x, labels in session.test.in_order():
            with record(session.model) as recording:
                scores = session.model(x)
            hits += _hits(_spikes(recording, scores), labels)
    return [100 * count / len(session.test) for count in hits.tolist()]


def _spikes(recording: Recording, scores: Tensor) -> Tensor:
    """The spikes [T, N, 10] whose mean over T is the scores [N, 10]."""
    s = recording[list(recording)[-1]].s if len(recording) else scores[None]
    if s.shape != (SIDE, len(scores), CLASSES):
        raise ValueError("its last neurons are not one per class, with one step per column")
    if not torch.allclose(s.float().mean(0), scores.float(), atol=1e-2):  # a spike is 1 / 28
        raise ValueError("its scores are not the mean of its last neurons' spikes")
    return s


def _hits(s: Tensor, labels: Tensor) -> Tensor:
    """Spikes s [T, N, 10] -> how many pictures are classified correctly after each step, [T].

    Spikes are counted, not averaged: counts order the classes as their means do, ties included.
    """
    counts = s.cumsum(0, dtype=torch.float32).flatten(0, 1)  # [T * N, 10]
    correct = ranks(counts, labels.repeat(len(s))) == 0
    return correct.reshape(len(s), -1).sum(1)
