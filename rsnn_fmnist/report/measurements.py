"""What records do not contain: a model's parameters, the cost of a picture, memory curves.

Parameters come from building the model, the rest from running a run's latest weights on the test
pictures.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from statistics import mean

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..config import Experiment, Machine
from ..data import splits
from ..data.loader import Loader
from ..data.pictures import Pictures
from ..device import choose_device, configure
from ..errors import RunError, warn
from ..models import build_model, check_model, check_registered
from ..session import Session, evaluating, open_session
from ..storage import checkpoint
from ..storage.checkpoint import Content
from ..storage.resume import (
    check_experiment,
    import_kept_models,
    newest,
    refuse_other_models,
)
from ..storage.run_directory import MODELS_FILE
from .energy import Operations, count_operations
from .memory_curve import MemoryCurves, measure_curves
from .records import Run
from .statistics import Comparison, Group, compare


@dataclass(frozen=True)
class ModelResult:
    """A model's results with one setting.

    Attributes:
        parameters: of the model; None: unknown.
        operations, curves: by seed, of the runs whose weights were measured.
    """

    group: Group
    parameters: int | None = None
    operations: dict[int, Operations] = field(default_factory=dict)
    curves: dict[int, MemoryCurves] = field(default_factory=dict)

    def mean_operations(self, name: str) -> float | None:
        """A field of Operations, averaged over the seeds."""
        values = [getattr(operations, name) for operations in self.operations.values()]
        return mean(values) if values else None


@dataclass(frozen=True)
class Section:
    """The results of one setting.

    Attributes:
        example: a test picture, columns of pixels uint8 [T, H]; None if no curve was measured.
    """

    models: list[ModelResult]
    comparisons: list[Comparison]
    example: Tensor | None = None

    @property
    def setting(self) -> Experiment:
        return self.models[0].group.setting

    @property
    def runs(self) -> list[Run]:
        return [run for model in self.models for run in model.group.runs]


@dataclass(frozen=True)
class Measurer:
    """Makes the report's sections.

    Args:
        machine: where the pictures are, and the device.
        with_curves: measure memory curves too; fails if there are no pictures.
    """

    machine: Machine
    with_curves: bool
    _pictures: dict[str, Pictures | None] = field(default_factory=dict)

    def sections(self, settings: Sequence[Sequence[Group]]) -> list[Section]:
        """A section for the groups of each setting; shows a progress bar on a terminal.

        Raises:
            RunError: scipy is missing; memory curves are wanted, but no run has weights.
        """
        count = sum(len(group.runs) for groups in settings for group in groups)
        with tqdm(desc="measuring", total=count, unit="run", leave=False, disable=None) as bar:
            sections = [self._section(groups, bar.update) for groups in settings]
        if self.with_curves and not any(section.example is not None for section in sections):
            raise RunError("--memory: none of these runs has usable weights (latest.pt)")
        return sections

    def _section(self, groups: Sequence[Group], done: Callable[[int], object]) -> Section:
        comparisons = compare(groups)
        models = [self._result(group, done) for group in groups]
        pictures = self._pictures.get(groups[0].setting.dataset)
        example = pictures.columns[0] if pictures and any(m.curves for m in models) else None
        return Section(models, comparisons, example)

    def _result(self, group: Group, done: Callable[[int], object]) -> ModelResult:
        """Measure what can be measured; warn about the rest, and leave it out."""
        saved = [(run, _content(run)) for run in group.runs]
        try:
            self._import_models(saved)
            check_registered(group.model)
        except RunError as error:
            warn(f"{error}; its parameters are not counted and its weights are not used")
            done(len(group.runs))
            return ModelResult(group)
        parameters = sum(p.numel() for p in built(group.experiment).parameters())
        result = ModelResult(group, parameters)
        for run, content in saved:
            if isinstance(content, RunError):
                warn(f"{content}; its weights are not used")
            elif content:
                self._add_run(result, run, content)
            done(1)
        return result

    def _import_models(self, saved: Sequence[tuple[Run, Content | RunError | None]]) -> None:
        """Import the models file of the first run with weights; warn where another has another."""
        kept = [run.path / MODELS_FILE for run, _ in saved]
        if len({path.read_bytes() for path in kept if path.is_file()}) > 1:
            model = saved[0][0].experiment.model
            warn(f"{model}: the models files of its runs differ, such as {kept[0]}")
        for run, content in saved:
            if isinstance(content, dict):
                import_kept_models(self.machine, content, run.path)
                return

    def _add_run(self, result: ModelResult, run: Run, content: Content) -> None:
        """Add what the run's weights give; nothing without usable weights or pictures."""
        try:
            model = trained_model(run, content, self.machine)
        except RunError as error:
            warn(f"{error}; its weights are not used")
            return
        pictures = self._test_pictures(run.experiment.dataset)
        if pictures is None:
            return
        seed = run.experiment.seed
        session = open_test(run.experiment, self.machine, pictures, model)
        try:
            with evaluating(session):
                batches = (x for x, _ in session.test.in_order())
                result.operations[seed] = count_operations(session.model, batches)
        except ValueError as error:
            warn(f"{run.path}: operations are not counted: {error}")
        if self.with_curves:
            result.curves[seed] = measure_curves(session, pictures)

    def _test_pictures(self, dataset: str) -> Pictures | None:
        """The test pictures, loaded once; None if they cannot be loaded."""
        if dataset not in self._pictures:
            try:
                self._pictures[dataset] = test_pictures(dataset, self.machine)
            except RunError as error:
                if self.with_curves:
                    raise
                warn(f"operations are not counted: {error}")
                self._pictures[dataset] = None
        return self._pictures[dataset]


def _content(run: Run) -> Content | RunError | None:
    """The run's latest checkpoint, or why it cannot be read; None: it has none."""
    try:
        return newest(run.path)
    except RunError as error:
        return error


def trained_model(run: Run, content: Content, machine: Machine) -> nn.Module:
    """The run's model with the weights of its checkpoint.

    Raises:
        RunError: they are another run's, or of another models file.
    """
    import_kept_models(machine, content, run.path)
    refuse_other_models(content, run.path)
    kept = checkpoint.experiment_of(content, run.path)
    if replace(kept, epochs=run.experiment.epochs) != run.experiment:  # it may have been extended
        raise RunError(f"{run.path}: its config.toml and its weights have different settings")
    model = built(run.experiment)
    checkpoint.load_weights(model, content["model"], run.path)
    return model


def built(experiment: Experiment) -> nn.Module:
    """The experiment's model; lazy layers have their shapes."""
    model = build_model(experiment)
    check_model(experiment.model, model, torch.device("cpu"), nullcontext())
    return model


def test_pictures(dataset: str, machine: Machine) -> Pictures:
    """The test pictures of a dataset."""
    return splits.load(dataset, machine.data_root(), download=machine.download).test


def open_test(
    experiment: Experiment,
    machine: Machine,
    pictures: Pictures | None = None,
    model: nn.Module | None = None,
) -> Session:
    """A session of the experiment that is used for testing only.

    Args:
        pictures: to test on; None: loaded here.
        model: of the experiment; None: an untrained one.
    """
    check_experiment(experiment, machine)
    device = choose_device(machine.device)
    configure(machine)
    if pictures is None:
        pictures = test_pictures(experiment.dataset, machine)
    test = Loader(pictures, device, normalize=experiment.normalize)
    return open_session(
        experiment, device, built(experiment) if model is None else model, (test, None, test)
    )
