"""One run, from its settings to its exit code. Everything is checked before anything is written."""

import dataclasses
import shlex
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import nn

from . import config, random_state
from .config import Experiment, Machine, Settings
from .data import splits
from .data.loader import Loader
from .data.pictures import Pictures, Splits
from .device import choose_backend, configure, device_name, own_device
from .errors import RunError, UsageError
from .interrupt import BROKEN_PIPE, Interrupt, InterruptedRunError
from .metrics import Sums
from .models import build_model, check_model, import_models, imported, temporary_models
from .session import Precision, Progress, Row, Session, best_metric, best_row, open_session
from .spiking import BackendUnavailableError, set_backend
from .spiking.backend import backends_in_use
from .storage import checkpoint, dataset_cache, provenance
from .storage.checkpoint import Content
from .storage.resume import (
    by_settings,
    find_start,
    finished,
    import_kept_models,
    locked_start,
    nearest,
)
from .storage.run_directory import RunDirectory, Saver
from .tracking.console import Console, clock
from .tracking.diagnostics import Diagnostics, import_figures
from .tracking.tensorboard import TensorBoard
from .tracking.tracker import Tracker
from .training.loop import evaluate, fit
from .training.shared_gradients import refuse_unshareable
from .training.step import Evaluation, choose_step
from .world import ALONE, World, processes


def run(flags: Settings, file: Settings) -> int:
    """Train, resume or test what the settings name (flags over file); return the exit code.

    Raises:
        RunError, UsageError: it cannot be done.
    """
    machine = config.from_settings(Machine, {**file, **flags})
    with processes(machine.device) as world, temporary_models():
        world.on_all(lambda: check_machine(machine, flags))
        if machine.prepare_only:
            return prepare(machine, {**file, **flags})
        experiment, directory, content = world.on_first(lambda: find_start(machine, flags, file))
        if content:
            world.on_all(lambda: import_kept_models(machine, content, directory))
        console = Console(experiment.epochs, quiet=machine.quiet, mute=not world.first)
        if content and finished(experiment, content) and not machine.test_only:
            console.result(summary(experiment, content["rows"], directory))
            return 0
        with Interrupt() as interrupt:  # what a kernel's compilation would swallow
            session, backend = world.on_all(lambda: prepare_session(experiment, machine, world))
        with closing(session):
            if interrupt.signum is not None:
                raise InterruptedRunError(interrupt.signum)
            announce(console, session, backend)
            if machine.test_only and content:
                return test(session, content, Path(machine.resume), console)
            facts = provenance.describe(session.device, backend, world)
            return train(session, machine, directory, console, facts)


def check_machine(machine: Machine, flags: Settings) -> None:
    """Refuse what contradicts itself, and import what the run needs."""
    if "start_epoch" in flags and machine.resume:
        raise UsageError(
            "--start-epoch: a resumed run continues at its own epoch; leave one of them out"
        )
    if machine.test_only and machine.resume in ("", "auto"):
        raise UsageError("--test-only: name what to evaluate with --resume PATH")
    if machine.tb_pictures:
        import_figures("--tb-pictures")
    if machine.models_file:
        import_models(Path(machine.models_file))


def prepare_session(experiment: Experiment, machine: Machine, world: World) -> tuple[Session, str]:
    """The session before its first batch, on its device and checked, and its layers' backend."""
    device = own_device(machine.device, world)
    backend = choose_backend(machine.backend, device)
    configure(machine)
    session = build_session(experiment, machine, device, load_pictures(experiment, machine), world)
    refuse_unshareable(session.model, experiment.batch_size, world)
    return session, backend


def prepare(machine: Machine, settings: Settings) -> int:
    """--prepare-only: what needs doing once before many runs: check settings, download pictures."""
    if machine.resume not in ("", "auto"):
        raise UsageError(
            f"--prepare-only: takes settings, not a checkpoint; leave out --resume {machine.resume}"
        )
    experiment, directory, _ = by_settings(machine, settings)
    load_pictures(experiment, machine)
    if machine.backend == "cupy":  # whose GPUs may be on other machines only
        machine = dataclasses.replace(machine, backend="auto")
    initial_model(experiment, machine, torch.device("cpu"))
    print(f"run      {directory}")
    return 0


def load_pictures(experiment: Experiment, machine: Machine) -> Splits:
    """The experiment's pictures, split."""
    root = machine.data_root()

    def read() -> Splits:
        return splits.load(experiment.dataset, root, download=machine.download)

    loaded = dataset_cache.load(root, read) if machine.cache_dataset else read()
    loaded = splits.hold_out(loaded, experiment.val_size, experiment.seed)
    if experiment.batch_size > len(loaded.train):
        raise UsageError(
            f"--batch-size {experiment.batch_size}: larger than the training set of "
            f"{len(loaded.train)} pictures"
        )
    return loaded


def build_session(
    experiment: Experiment,
    machine: Machine,
    device: torch.device,
    pictures: Splits,
    world: World = ALONE,
) -> Session:
    """The session before its first batch: weights drawn from the seed, pictures on the device."""
    model = initial_model(experiment, machine, device)

    def loader(part: Pictures) -> Loader:
        return Loader(part, device, normalize=experiment.normalize, workers=machine.workers)

    train, test = loader(pictures.train), loader(pictures.test)
    val = loader(pictures.val) if pictures.val else None
    loaders = (train, val, test)
    return open_session(experiment, device, model, loaders, graph=machine.graph, world=world)


def initial_model(experiment: Experiment, machine: Machine, device: torch.device) -> nn.Module:
    """The model on its device, drawn from the seed, checked before anything is made of it."""
    random_state.seed(experiment.seed)
    model = build_model(experiment).to(device)
    set_backend(model, machine.backend)
    try:
        backends_in_use(model, device)
    except BackendUnavailableError as error:
        raise RunError(f"--backend {machine.backend}: {error}") from None
    check_model(experiment.model, model, device, Precision.of(experiment, device).autocast())
    return model


def announce(console: Console, session: Session, backend: str) -> None:
    """Print what was chosen."""
    experiment, device, world = session.experiment, session.device, session.world
    threads = torch.get_num_threads()
    parameters = sum(p.numel() for p in session.model.parameters())
    kind = "synthetic" if experiment.dataset == "synthetic" else "FashionMNIST"
    held = f", {len(session.val):,} held out" if session.val else ""
    precision = str(session.precision.dtype or torch.float32).removeprefix("torch.")
    used = backends_in_use(session.model, device)
    differing = [name for name, other in used.items() if other != backend]
    others = f" (in torch: {', '.join(differing)})" if differing else ""
    models_file = imported()
    origin = f", from {models_file.path}" if models_file else ""
    console.info(
        f"model    {experiment.model}, {parameters:,} parameters, seed {experiment.seed}{origin}"
    )
    console.info(
        f"data     {len(session.train):,} {kind} training pictures{held}, "
        f"{len(session.test):,} test pictures"
    )
    console.info(
        f"device   {device} ({device_name(device)}), {threads} CPU "
        f"thread{'s' if threads > 1 else ''}, backend {backend}{others}, {precision}"
    )
    if world.size > 1:
        least, most = experiment.batch_size // world.size, -(-experiment.batch_size // world.size)
        shares = f"{least}" if least == most else f"{least} or {most}"
        console.info(f"split    each batch over {world.size} processes, {shares} pictures each")


def test(session: Session, content: Content, path: Path, console: Console) -> int:
    """--test-only: evaluate a checkpoint's weights on the test pictures and print the result."""
    checkpoint.load_weights(session.model, content["model"], path)
    with Interrupt() as interrupt:
        interrupt.shared = session.world.size > 1
        try:
            sums, seconds = evaluate(session, Evaluation(session, session.test), interrupt)
        except InterruptedRunError as stop:
            return stop.exit_code
    loss, acc1, acc5 = sums.means()
    console.result(
        f"test loss {loss:.6f}  top-1 {acc1:.2f} %  top-5 {acc5:.2f} %  on "
        f"{len(session.test):,} pictures in {seconds:.2f} s"
    )
    return 0


def train(
    session: Session,
    machine: Machine,
    directory: Path,
    console: Console,
    facts: dict[str, object],
) -> int:
    """Train in the run's directory, from its checkpoint where there is one."""
    experiment, world = session.experiment, session.world
    step, why = choose_step(session)
    console.info(f"step     {step}{f': {why}' if why else ''}")
    with ExitStack() as stack, Interrupt() as interrupt:
        interrupt.shared = world.size > 1
        records = RunDirectory(directory)
        content = world.on_first(
            lambda: locked_start(stack.enter_context(records), machine, experiment)
        )
        progress = world.on_all(lambda: starting_progress(session, content, directory))
        where = f", from epoch {progress.epoch}, batch {progress.batch}" if content else ""
        if not content and machine.resume == "auto" and (near := nearest(experiment, directory)):
            where = f", new: {near}"
        console.info(f"run      {directory}{where}")
        events, diagnostics = None, None
        world.on_first(lambda: records.write_records(experiment, facts, progress.rows))
        if machine.wants_events():
            diagnostics = Diagnostics(session, progress, machine.tb_pictures)
        if machine.wants_events() and world.first:
            events = TensorBoard(directory / "tb", progress.rows, progress.epoch, experiment)
        saver = Saver(directory, session, machine.checkpoint_every)
        tracker = Tracker(console, records if world.first else None, events, diagnostics)
        try:
            world.begin(session.model)
            fit(session, progress, tracker=tracker, saver=saver, interrupt=interrupt)
            tracker.finish()
        except InterruptedRunError as stop:
            tracker.close()
            again = "" if saver.failed else f"; resume with --resume {shlex.quote(str(directory))}"
            if stop.exit_code != 128 + BROKEN_PIPE:
                console.result(f"stopped by {stop} in epoch {progress.epoch}{again}")
            return stop.exit_code
        finally:
            tracker.close()
    if saver.failed:
        raise RunError(f"{directory}: the last checkpoint could not be saved; see above")
    console.result(summary(experiment, progress.rows, directory))
    return 0


def starting_progress(session: Session, content: Content | None, directory: Path) -> Progress:
    """The progress to start from: the checkpoint's, with its state restored, or none."""
    if content is None:
        return Progress(session.experiment.start_epoch, Sums(session.device))
    return checkpoint.restore(session, content, directory)


def summary(experiment: Experiment, rows: list[Row], directory: Path) -> str:
    """The accuracy after the last epoch, and that of the best epoch and how it was chosen."""
    last, best = rows[-1], best_row(experiment, rows)
    if best_metric(experiment) == "val_acc1":
        chosen = (
            f"test accuracy at the epoch best on the held-out pictures: {best['test_acc1']:.2f}"
        )
    else:
        chosen = f"best test accuracy (optimistic): {best['test_acc1']:.2f}"
    synthetic = experiment.dataset == "synthetic"
    pictures = "synthetic test pictures" if synthetic else "FashionMNIST test pictures"
    seconds = sum(row["seconds"] for row in rows)
    lines = [
        f"{experiment.model} classifies {last['test_acc1']:.2f} % of the {pictures} correctly "
        f"after epoch {last['epoch']} (chance: 10 %), in {clock(seconds)} of training and testing",
        f"{chosen} % at epoch {best['epoch']}",
        f"records: {directory}",
    ]
    if (directory / "tb").is_dir():
        lines.append(f"curves: tensorboard --logdir {shlex.quote(str(directory.parent))}")
    return "\n".join(lines)
