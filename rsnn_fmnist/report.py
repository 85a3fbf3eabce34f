"""python -m rsnn_fmnist.report: look at what was trained.

    --inspect CHECKPOINT [--index I]   one test picture on its way through the network, as a figure

Nothing is trained, and no run is changed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, cli, data, energy, environment
from .config import Experiment, Machine
from .data import Loader
from .errors import RunError, UsageError
from .insight import drawing, passage
from .run import build_model, check_experiment, import_models, newest
from .session import Session, open_session
from .synthetic import CLASSES as NAMES

PROG = "rsnn_fmnist.report"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line (default: the process's own) and return the exit code."""
    return cli.answer(_dispatch, argv)


def build_parser() -> cli.Parser:
    parser = cli.Parser(prog=f"python -m {PROG}", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--inspect", metavar="CHECKPOINT", help="a run directory, latest.pt or best.pt"
    )
    parser.add_argument(
        "--index", metavar="I", type=int, default=0, help="which test picture (default: 0)"
    )
    parser.add_argument(
        "--out", metavar="DIR", default="report", help="where files are written (default: report)"
    )
    parser.add_argument("--data-path", metavar="DIR", default="", help="as in training")
    parser.add_argument(
        "--download", action=argparse.BooleanOptionalAction, default=True, help="as in training"
    )
    parser.add_argument("--models-file", metavar="FILE.py", default="", help="as in training")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    return parser


def _dispatch(arguments: list[str]) -> int:
    flags = build_parser().parse_all(arguments)
    if flags.inspect is None:
        raise UsageError("--inspect CHECKPOINT: name what to look at")
    figures = drawing("the report")
    if flags.models_file:
        import_models(Path(flags.models_file))
    machine = Machine(data_path=flags.data_path, download=flags.download, device="cpu")
    return inspect(Path(flags.inspect), flags.index, Path(flags.out), machine, figures)


def inspect(path: Path, index: int, out: Path, machine: Machine, figures: Any) -> int:
    """Draw test picture `index` on its way through a checkpoint's network, and say what it cost."""
    experiment, weights = read(path)
    session = open_test(experiment, machine)
    if not 0 <= index < len(session.test):
        raise UsageError(f"--index {index}: must be from 0 to {len(session.test) - 1}")
    try:
        session.model.load_state_dict(weights)
    except RuntimeError as error:
        raise RunError(f"{path}: does not fit the model ({error})") from None
    x, labels, scores, recording = passage(session, torch.tensor([index]))
    figure = figures.passage(x[0], int(labels[0]), scores[0], figures.sample(recording, 0))
    file = out / f"{_stem(path)}_picture{index}.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures.save(figure, file)
    except OSError as error:
        raise RunError(
            f"{file}: cannot be written ({error.strerror or error}); name another --out"
        ) from None
    cost = energy.measure(session.model, [x])
    right, answer = int(labels[0]), int(scores[0].argmax())
    print(f"test picture {index}: {NAMES[right]}, taken for {NAMES[answer]}")
    print(energy_lines(cost))
    print(f"wrote {file}")
    return 0


def energy_lines(cost: energy.Energy) -> str:
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


def open_test(experiment: Experiment, machine: Machine) -> Session:
    """A session of the experiment for its test pictures: nothing is trained on."""
    check_experiment(experiment, machine)
    device = environment.choose_device(machine.device)
    environment.set_up(machine)
    splits = data.load(experiment.dataset, machine.data_root(), download=machine.download)
    test = Loader(splits.test, device, normalize=experiment.normalize)
    return open_session(experiment, device, build_model(experiment), (test, None, test))


def _stem(path: Path) -> str:
    """What files about a checkpoint are called: its run, and which of the run's checkpoints."""
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}_{path.stem}"


if __name__ == "__main__":
    raise SystemExit(main())
