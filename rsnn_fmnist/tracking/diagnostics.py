"""What TensorBoard shows of the network besides the metrics: scalars, figures and histograms.

All of it is measured on the test pictures and changes nothing: metrics, weights and random state
are the same with it and without it. The tags sort behind those of the metrics, so that
TensorBoard's first page is accuracy and loss.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.pictures import CLASSES
from ..errors import RunError
from ..session import Progress, Session, evaluating
from ..spiking.monitor import Recording, SpikeCounts, count_spikes, layers, record
from ..spiking.synapse import SynapseFilter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (0, 1, 2, 4)  # the test pictures in figures: boot, pullover, trouser, shirt
SAMPLE = 256  # test pictures whose potentials make the histograms


def import_figures(wanted_by: str) -> ModuleType:
    """The module figures.py.

    Raises:
        RunError: matplotlib is missing.
    """
    backend = os.environ.pop("MPLBACKEND", None)  # such as a notebook's, which may be absent here
    try:
        from . import figures
    except ImportError:
        raise RunError(
            f"{wanted_by}: figures need matplotlib: pip install 'rsnn-fmnist[report]'"
        ) from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return figures


class Diagnostics:
    """Measures a session's network once an epoch.

    Args:
        every: epochs between two sets of figures; None: no figures.
    """

    def __init__(self, session: Session, progress: Progress, every: int | None) -> None:
        self.session = session
        self.progress = progress
        self.every = every
        self._counts = SpikeCounts()

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Count the spikes of the pictures evaluated inside, in all processes."""
        with count_spikes(self.session.model) as own:
            yield
        self._counts = SpikeCounts()
        for counts in self.session.world.gather(own.cpu()):
            self._counts.add(counts)

    def scalars(self) -> dict[str, float]:
        """The epoch's scalars by tag.

        units/firing_rate/NAME   spikes per neuron and step, in [0, 1]
        units/never_fire/NAME    share of neurons without a spike on any test picture
        units/always_fire/NAME   share of neurons with a spike at every step of all test pictures
        units/tau/NAME           a synapse filter's time constant, in steps
        updates/gradient_norm    L2 norm of the gradient of the epoch's last training batch
        """
        found = {}
        for name, firing in self._counts.firing().items():
            found[f"units/firing_rate/{name}"] = firing.rate
            found[f"units/never_fire/{name}"] = firing.never
            found[f"units/always_fire/{name}"] = firing.always
        for name, synapse in layers(self.session.model, SynapseFilter).items():
            found[f"units/tau/{name}"] = synapse.tau
        if self.progress.gradient_norm is not None:
            found["updates/gradient_norm"] = self.progress.gradient_norm
        return found

    def due(self, epoch: int) -> bool:
        """Whether figures are drawn after `epoch`: every so many epochs, and after the last."""
        if self.every is None:
            return False
        return (epoch + 1) % self.every == 0 or epoch + 1 == self.session.experiment.epochs

    def figures(self) -> Iterator[tuple[str, "Figure"]]:
        """The confusion matrix, and the PICTURES on their way through the network."""
        figures = import_figures("--tb-pictures")
        yield "views/confusion", figures.confusion_matrix(confusion(self.session))
        chosen = [index for index in PICTURES if index < len(self.session.test)]
        x, labels, scores, recording = record_pictures(self.session, torch.tensor(chosen))
        for n, index in enumerate(chosen):
            sample = figures.sample(recording, n)
            figure = figures.network_at_work(x[n], int(labels[n]), scores[n], sample)
            yield f"views/picture_{index}", figure

    def histograms(self) -> Iterator[tuple[str, Tensor]]:
        """The weights, and the potentials before the reset on the first test pictures."""
        for name, parameter in self.session.model.named_parameters():
            yield f"weights/{name}", parameter.detach()
        first = torch.arange(min(SAMPLE, len(self.session.test)))
        *_, recording = record_pictures(self.session, first)
        for name, layer in recording.items():
            yield f"units/potential/{name}", layer.h


def record_pictures(session: Session, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Recording]:
    """Run test pictures [n] -> x [n, H, W], labels [n], scores [n, 10] and the recording."""
    with evaluating(session):
        ((x, labels),) = session.test.batches([indices])
        with record(session.model) as recording:
            scores = session.model(x)
    return x, labels, scores, recording


def confusion(session: Session) -> Tensor:
    """The number of test pictures of class i classified as j, int64 [10, 10], on the CPU."""
    pairs = torch.zeros(CLASSES * CLASSES, dtype=torch.int64, device=session.device)
    with evaluating(session):
        for x, labels in session.test.in_order():
            chosen = session.model(x).argmax(1)  # the first of equals, as in metrics.ranks
            pairs += torch.bincount(labels * CLASSES + chosen, minlength=CLASSES * CLASSES)
    return pairs.reshape(CLASSES, CLASSES).cpu()
