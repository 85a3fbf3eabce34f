"""A checkpoint's network on the test pictures: one picture's way through it, and what one costs.

Nothing is trained, and no run is changed.
"""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from ..building import build_model
from ..config import Experiment, Machine
from ..data import fashion_mnist
from ..data.fashion_mnist import Pictures
from ..data.loader import EVALUATION_BATCH, Loader, batch_indices
from ..data.synthetic import CLASSES as NAMES
from ..errors import RunError, UsageError
from ..session import Session, open_session
from ..storage import checkpoint, provenance
from ..storage.resume import check_experiment, newest
from ..tracking.diagnostics import evaluating, passage
from . import energy
from .energy import Energy


def inspect(path: Path, index: int, out: Path, machine: Machine, figures: ModuleType) -> int:
    """Draw test picture `index` on its way through a checkpoint's network, and say what it cost."""
    experiment, weights = read(path)
    session = open_test(experiment, machine)
    if not 0 <= index < len(session.test):
        raise UsageError(f"--index {index}: must be from 0 to {len(session.test) - 1}")
    take_weights(session, weights, path)
    x, labels, scores, recording = passage(session, torch.tensor([index]))
    figure = figures.passage(x[0], int(labels[0]), scores[0], figures.sample(recording, 0))
    file = out / f"{_stem(path)}_picture{index}.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures.save(figure, file)
    except OSError as error:
        raise cannot_write(file, error) from None
    cost = energy.measure(session.model, [x])
    right, answer = int(labels[0]), int(scores[0].argmax())
    print(f"test picture {index}: {NAMES[right]}, taken for {NAMES[answer]}")
    print(energy_lines(cost))
    print(f"wrote {file}")
    return 0


def energy_lines(cost: Energy) -> str:
    """What a picture costs with spikes and without, a line each."""
    accumulate, multiply = energy.ACCUMULATE * 1e12, energy.MULTIPLY_ACCUMULATE * 1e12
    return (
        f"with spikes: {cost.synaptic_operations:,.0f} synaptic operations (spikes times fan-out); "
        f"{cost.accumulates:,.0f} accumulates and {cost.multiply_accumulates:,.0f} "
        f"multiply-accumulates remain, {cost.joules * 1e9:,.1f} nJ\n"
        f"without: {cost.dense_multiply_accumulates:,.0f} multiply-accumulates, "
        f"{cost.dense_joules * 1e9:,.1f} nJ ({accumulate:.1f} and {multiply:.1f} pJ each, 45 nm, "
        "Horowitz 2014)"
    )


def read(path: Path) -> tuple[Experiment, dict[str, torch.Tensor]]:
    """The experiment and the weights of a checkpoint, or of a run directory's latest one.

    Raises:
        UsageError: nothing there.
        RunError: no readable checkpoint.
    """
    if not path.exists():
        raise UsageError(f"--inspect {path}: no such file or directory")
    content = newest(path) if path.is_dir() else checkpoint.load(path)
    if content is None:
        raise RunError(f"--inspect {path}: holds no checkpoint of a run")
    return checkpoint.experiment_of(content, path), content["model"]


def open_test(
    experiment: Experiment, machine: Machine, pictures: Pictures | None = None
) -> Session:
    """A session of the experiment for test pictures (None: loaded here): nothing is trained on."""
    check_experiment(experiment, machine)
    device = provenance.choose_device(machine.device)
    provenance.set_up(machine)
    if pictures is None:
        pictures = test_pictures(experiment.dataset, machine)
    test = Loader(pictures, device, normalize=experiment.normalize)
    return open_session(experiment, device, build_model(experiment), (test, None, test))


def test_pictures(dataset: str, machine: Machine) -> Pictures:
    """The pictures that the dataset's runs are tested on."""
    return fashion_mnist.load(dataset, machine.data_root(), download=machine.download).test


def take_weights(session: Session, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Raises RunError where the weights, which `path` holds, are not the model's."""
    try:
        session.model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path}: does not fit the model ({error})") from None


def cost(session: Session) -> Energy:
    """What a test picture costs, on average.

    Raises:
        ValueError: the model's operations cannot be counted.
    """
    order = torch.arange(len(session.test), device=session.device)
    batches = session.test.batches(batch_indices(order, EVALUATION_BATCH, drop_last=False))
    with evaluating(session):
        return energy.measure(session.model, (x for x, _ in batches))


def weights_of(path: Path, experiment: Experiment) -> dict[str, torch.Tensor] | None:
    """The latest weights of the run at `path`, whose records say `experiment`; None: it has none.

    Raises:
        RunError: they are damaged, or another run's.
    """
    content = newest(path)
    if content is None:
        return None
    kept = checkpoint.experiment_of(content, path)
    if replace(kept, epochs=experiment.epochs) != experiment:  # a run may have been extended
        raise RunError(f"{path}: its config.toml and its weights have different settings")
    weights: dict[str, torch.Tensor] = content["model"]
    return weights


def cannot_write(file: Path, error: OSError) -> RunError:
    return RunError(f"{file}: cannot be written ({error.strerror or error}); name another --out")


def _stem(path: Path) -> str:
    """What files about a checkpoint are called: its run, and which of the run's checkpoints."""
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}_{path.stem}"
