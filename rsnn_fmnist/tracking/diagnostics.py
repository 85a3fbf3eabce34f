"""What a run tells about the inside of its network, beyond its metrics: numbers and figures.

Everything is measured on the test pictures and learns nothing: metrics, weights and random state
are the same with it and without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.fashion_mnist import CLASSES
from ..data.loader import EVALUATION_BATCH, batch_indices
from ..errors import RunError
from ..session import Progress, Session
from ..spiking.monitor import Recording, SpikeCounts, count_spikes, layers, record
from ..spiking.synapse import SynapseFilter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = (0, 1, 2, 4)  # the test pictures that are drawn: boot, pullover, trouser, shirt
SAMPLE = 256  # test pictures whose potentials make the histograms


def drawing(wanted_by: str) -> ModuleType:
    """The module that draws.

    Raises:
        RunError: matplotlib is missing.
    """
    try:
        from . import figures
    except ImportError:
        raise RunError(
            f"{wanted_by}: figures need matplotlib: pip install 'rsnn-fmnist[report]'"
        ) from None
    return figures


class Insight:
    """Looks inside a session's network once an epoch.

    Args:
        every: epochs from one set of figures to the next; None: no figures.
    """

    def __init__(self, session: Session, progress: Progress, every: int | None) -> None:
        self.session = session
        self.progress = progress
        self.every = every
        self._counts = SpikeCounts()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Count the spikes of the test pictures that pass meanwhile, in all processes."""
        with count_spikes(self.session.model) as own:
            yield
        self._counts = SpikeCounts()
        for counts in self.session.world.gather(own.cpu()):
            self._counts.add(counts)

    def scalars(self) -> dict[str, float]:
        """The epoch's numbers by tag: firing, time constants, the gradient's norm.

        firing_rate/NAME   spikes a neuron and step, in [0, 1]
        never_fire/NAME    share of neurons without a spike on any test picture
        always_fire/NAME   share of neurons with a spike at every step of every test picture
        tau/NAME           a synapse filter's time constant, in steps
        gradient_norm      L2 norm of the gradient of the epoch's last training batch
        """
        found = {}
        for name, firing in self._counts.firing().items():
            found[f"firing_rate/{name}"] = firing.rate
            found[f"never_fire/{name}"] = firing.never
            found[f"always_fire/{name}"] = firing.always
        for name, synapse in layers(self.session.model, SynapseFilter).items():
            found[f"tau/{name}"] = synapse.tau
        if self.progress.gradient_norm is not None:
            found["gradient_norm"] = self.progress.gradient_norm
        return found

    def due(self, epoch: int) -> bool:
        """Whether figures are drawn after `epoch`: every so many epochs, and at the last."""
        if self.every is None:
            return False
        return (epoch + 1) % self.every == 0 or epoch + 1 == self.session.experiment.epochs

    def figures(self) -> Iterator[tuple[str, "Figure"]]:
        """The confusion matrix, and the fixed pictures on their way through the network."""
        figures = drawing("--tb-pictures")
        yield "confusion", figures.confusion_matrix(confusion(self.session))
        chosen = [index for index in PICTURES if index < len(self.session.test)]
        x, labels, scores, recording = passage(self.session, torch.tensor(chosen))
        for n, index in enumerate(chosen):
            sample = figures.sample(recording, n)
            yield f"picture/{index}", figures.passage(x[n], int(labels[n]), scores[n], sample)

    def histograms(self) -> Iterator[tuple[str, Tensor]]:
        """The weights, and the potentials before the reset on the first test pictures."""
        for name, parameter in self.session.model.named_parameters():
            yield f"weight/{name}", parameter.detach()
        first = torch.arange(min(SAMPLE, len(self.session.test)))
        *_, recording = passage(self.session, first)
        for name, layer in recording.items():
            yield f"potential/{name}", layer.h


@contextmanager
def evaluating(session: Session) -> Iterator[None]:
    """As in an evaluation, and leaving the random state alone."""
    session.model.eval()
    devices = [session.device] if session.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(), session.precision.autocast():
        yield


def passage(session: Session, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Recording]:
    """Test pictures [n] through the network -> x [n, H, W], labels [n], scores [n, 10], and the
    recording of what the layers did.
    """
    with evaluating(session):
        ((x, labels),) = session.test.batches([indices])
        with record(session.model) as recording:
            scores = session.model(x)
    return x, labels, scores, recording


def confusion(session: Session) -> Tensor:
    """How many test pictures of class i are taken for class j, int64 [10, 10], on the CPU."""
    pairs = torch.zeros(CLASSES * CLASSES, dtype=torch.int64, device=session.device)
    order = torch.arange(len(session.test), device=session.device)
    with evaluating(session):
        for x, labels in session.test.batches(
            batch_indices(order, EVALUATION_BATCH, drop_last=False)
        ):
            chosen = session.model(x).argmax(1)  # the first of equals, as step.ranks has it
            pairs += torch.bincount(labels * CLASSES + chosen, minlength=CLASSES * CLASSES)
    return pairs.reshape(CLASSES, CLASSES).cpu()
