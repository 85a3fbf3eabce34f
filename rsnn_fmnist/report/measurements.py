"""What the records of a group of runs do not tell: parameters, cost of a picture, memory.

Parameters come from building the model, the rest from weights (latest.pt) on the test pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from torch import Tensor
from tqdm import tqdm

from ..building import build_model
from ..config import Machine
from ..data.fashion_mnist import Pictures
from ..errors import RunError, warn
from ..models import MODELS
from ..session import Session
from . import inspect, memory_curve
from .energy import Energy
from .memory_curve import Memory
from .records import Run
from .statistics import Group


@dataclass(frozen=True)
class Entry:
    """A group, its model's parameters (None: unknown), and what its runs with weights gave, by
    seed.
    """

    group: Group
    parameters: int | None = None
    energies: dict[int, Energy] = field(default_factory=dict)
    memories: dict[int, Memory] = field(default_factory=dict)

    def energy(self, name: str) -> float | None:
        """A field of Energy, averaged over the seeds."""
        values = [getattr(cost, name) for cost in self.energies.values()]
        return mean(values) if values else None


Section = list[Entry]  # the entries of one setting


class Measurer:
    """Makes entries.

    Args:
        machine: where pictures are, and the device.
        with_memory: measure memory too, and refuse to go without pictures.
    """

    def __init__(self, machine: Machine, *, with_memory: bool) -> None:
        self.machine = machine
        self.with_memory = with_memory
        self._pictures: dict[str, Pictures | None] = {}

    def sections(self, settings: Sequence[Sequence[Group]]) -> list[Section]:
        """An entry for each group; a bar shows how far that is, on a terminal.

        Raises:
            RunError: no run has the weights that memory takes.
        """
        count = sum(len(group.runs) for groups in settings for group in groups)
        with tqdm(desc="measuring", total=count, unit="run", leave=False, disable=None) as bar:
            sections = [[self.entry(group, bar.update) for group in groups] for groups in settings]
        if self.with_memory and not any(e.memories for section in sections for e in section):
            raise RunError("--memory: no run here has weights (latest.pt) that can be looked at")
        return sections

    def entry(self, group: Group, done: Callable[[int], object]) -> Entry:
        """Measure what can be had; what cannot is warned of, once, and left out."""
        if group.model not in MODELS:
            warn(
                f"{group.model}: not registered, so that its parameters are not counted and its "
                "weights not looked at; a model of your own takes --models-file"
            )
            done(len(group.runs))
            return Entry(group)
        parameters = sum(p.numel() for p in build_model(group.experiment).parameters())
        entry = Entry(group, parameters)
        for run in group.runs:
            self._measure(run, entry)
            done(1)
        return entry

    def pictures(self, dataset: str) -> Pictures | None:
        """The test pictures, loaded once; None where they cannot be had."""
        if dataset not in self._pictures:
            try:
                self._pictures[dataset] = inspect.test_pictures(dataset, self.machine)
            except RunError as error:
                if self.with_memory:
                    raise
                warn(f"operations are not counted: {error}")
                self._pictures[dataset] = None
        return self._pictures[dataset]

    def example(self, dataset: str) -> Tensor:
        """The first test picture, uint8 [T, H], columns of pixels."""
        pictures = self.pictures(dataset)
        assert pictures is not None  # something was measured on them
        return pictures.columns[0]

    def _measure(self, run: Run, entry: Entry) -> None:
        """Enter what the run's weights give."""
        session = self._session(run)
        if session is None:
            return
        try:
            entry.energies[run.experiment.seed] = inspect.cost(session)
        except ValueError as error:
            warn(f"{run.path}: operations are not counted: {error}")
        pictures = self.pictures(run.experiment.dataset)
        if self.with_memory and pictures:
            entry.memories[run.experiment.seed] = memory_curve.measure(session, pictures)

    def _session(self, run: Run) -> Session | None:
        """The run's network on the test pictures; None without weights, pictures, or a fit."""
        try:
            weights = inspect.weights_of(run.path, run.experiment)
        except RunError as error:
            warn(f"{error}; its weights are not looked at")
            return None
        pictures = self.pictures(run.experiment.dataset) if weights else None
        if not weights or not pictures:
            return None
        session = inspect.open_test(run.experiment, self.machine, pictures)
        try:
            inspect.take_weights(session, weights, run.path)
        except RunError as error:
            warn(f"{error}; its weights are not looked at")
            return None
        return session
