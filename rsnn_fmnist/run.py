"""One run, from its settings to its exit code: all is checked before anything is written."""

import shlex
from contextlib import ExitStack, closing
from pathlib import Path

import torch

from . import config
from .building import build_model, check_model, import_models
from .config import Experiment, Machine, Settings
from .data import fashion_mnist
from .data.fashion_mnist import Splits
from .data.loader import Loader
from .errors import RunError, UsageError, warn
from .interrupt import BROKEN_PIPE, Interrupt, InterruptedRunError
from .session import Progress, Row, Session, best_metric, open_session
from .spiking import BackendUnavailableError, set_backend
from .spiking.backend import lacking, resolve
from .storage import checkpoint, provenance
from .storage.checkpoint import Content
from .storage.resume import check_experiment, finished, identify, take_over
from .storage.run_directory import RunDirectory, Saver, locate
from .tracking.diagnostics import Insight, drawing
from .tracking.tracker import Console, TensorBoard, Tracker, clock
from .training.loop import evaluate, fit
from .training.step import Sums, layer_by_layer
from .world import ALONE, World, processes, refuse


def run(flags: Settings, file: Settings) -> int:
    """Train, resume or test what the settings name, flags over file, and return the exit code.

    Raises:
        RunError, UsageError: it cannot be done.
    """
    machine = config.from_settings(Machine, {**file, **flags})
    with processes(machine.device) as world:
        world.on_all(lambda: get_ready(machine, flags))
        if machine.prepare_only:
            return prepare(machine, {**file, **flags})
        experiment, directory, content = world.on_first(lambda: identify(machine, flags, file))
        console = Console(experiment.epochs, quiet=machine.quiet, mute=not world.first)
        if content and finished(experiment, content) and not machine.test_only:
            console.tell(summary(experiment, content["rows"], directory))
            return 0
        session, backend = world.on_all(lambda: set_up(experiment, machine, world))
        with closing(session):
            announce(console, session, backend)
            if machine.test_only and content:
                return test(session, content, Path(machine.resume), console)
            facts = provenance.describe(session.device, backend, world)
            return train(session, machine, directory, console, facts)


def get_ready(machine: Machine, flags: Settings) -> None:
    """What can be refused, or has to be imported, before anything is looked for."""
    if "start_epoch" in flags and machine.resume:
        raise UsageError("--start-epoch: a resumed run goes on where it was; leave one of them out")
    if machine.test_only and machine.resume in ("", "auto"):
        raise UsageError("--test-only: name what to evaluate with --resume PATH")
    if machine.tb_pictures:
        drawing("--tb-pictures")  # refuses at once where it cannot draw
    if machine.models_file:
        import_models(Path(machine.models_file))


def set_up(experiment: Experiment, machine: Machine, world: World) -> tuple[Session, str]:
    """The session at its beginning, on its device, checked, and the backend of its layers."""
    device = provenance.own_device(machine.device, world)
    backend = choose_backend(machine.backend, device)
    provenance.set_up(machine)
    splits = load_pictures(experiment, machine)
    session = build_session(experiment, machine, device, splits, world)
    set_backend(session.model, machine.backend)
    check_model(session)
    refuse(session.model, experiment.batch_size, world)
    return session, backend


def prepare(machine: Machine, settings: Settings) -> int:
    """What is worth doing once before many runs: check the settings and fetch the pictures."""
    if machine.resume not in ("", "auto"):
        raise UsageError(
            f"--prepare-only: prepares for the settings given, not for a checkpoint's; leave "
            f"--resume {machine.resume} out"
        )
    experiment = config.from_settings(Experiment, settings)
    check_experiment(experiment, machine)
    load_pictures(experiment, machine)
    print(f"run      {locate(experiment, machine)}")
    return 0


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that --backend means on the device; RunError where it cannot be had."""
    try:
        chosen = resolve(name, device)
    except BackendUnavailableError as error:
        raise RunError(f"--backend {name}: {error}") from None
    if name == "auto" and (why := lacking(device)):
        warn(f"spiking layers run in torch, which is slower; for kernels, {why}")
    return chosen


def load_pictures(experiment: Experiment, machine: Machine) -> Splits:
    splits = fashion_mnist.load(
        experiment.dataset,
        machine.data_root(),
        download=machine.download,
        cache=machine.cache_dataset,
    )
    splits = fashion_mnist.hold_out(splits, experiment.val_size, experiment.seed)
    if experiment.batch_size > len(splits.train):
        raise UsageError(
            f"--batch-size {experiment.batch_size}: larger than the training set of "
            f"{len(splits.train)} pictures"
        )
    return splits


def build_session(
    experiment: Experiment,
    machine: Machine,
    device: torch.device,
    splits: Splits,
    world: World = ALONE,
) -> Session:
    """The session at its beginning: weights drawn from the seed, pictures on the device."""
    torch.manual_seed(experiment.seed)
    model = build_model(experiment)

    def loader(pictures: fashion_mnist.Pictures) -> Loader:
        return Loader(pictures, device, normalize=experiment.normalize, workers=machine.workers)

    train, test = loader(splits.train), loader(splits.test)
    val = loader(splits.val) if splits.val else None
    loaders = (train, val, test)
    return open_session(experiment, device, model, loaders, whole_step=machine.graph, world=world)


def announce(console: Console, session: Session, backend: str) -> None:
    """Say what was chosen."""
    experiment, device, world = session.experiment, session.device, session.world
    threads = torch.get_num_threads()
    parameters = sum(p.numel() for p in session.model.parameters())
    kind = "synthetic" if experiment.dataset == "synthetic" else "FashionMNIST"
    held = f", {len(session.val):,} held out" if session.val else ""
    precision = str(session.precision.dtype or torch.float32).removeprefix("torch.")
    console.say(f"model    {experiment.model}, {parameters:,} parameters, seed {experiment.seed}")
    console.say(
        f"data     {len(session.train):,} {kind} training pictures{held}, "
        f"{len(session.test):,} for testing"
    )
    console.say(
        f"device   {device} ({provenance.device_name(device)}), {threads} CPU "
        f"thread{'s' if threads > 1 else ''}, backend {backend}, {precision}"
    )
    why = layer_by_layer(session)
    whole = "one CUDA graph" if device.type == "cuda" else "one compiled loop"
    console.say(f"step     {f'layer by layer: {why}' if why else whole}")
    if world.size > 1:
        least, most = experiment.batch_size // world.size, -(-experiment.batch_size // world.size)
        shares = f"{least}" if least == most else f"{least} or {most}"
        console.say(f"split    each batch over {world.size} processes, {shares} pictures each")


def test(session: Session, content: Content, path: Path, console: Console) -> int:
    """Evaluate a checkpoint's weights on the test pictures and print the result."""
    try:
        session.model.load_state_dict(content["model"])
    except RuntimeError as error:
        raise RunError(f"{path}: does not fit the model ({error})") from None
    with Interrupt() as interrupt:
        interrupt.shared = session.world.size > 1
        try:
            sums, seconds = evaluate(session, session.test, interrupt)
        except InterruptedRunError as stop:
            return stop.exit_code
    loss, acc1, acc5 = sums.means()
    console.tell(
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
    with ExitStack() as stack, Interrupt() as interrupt:
        interrupt.shared = world.size > 1
        records = RunDirectory(directory)
        content = world.on_first(
            lambda: take_over(stack.enter_context(records), machine, experiment)
        )
        progress = world.on_all(lambda: starting_progress(session, content, directory))
        where = f", from epoch {progress.epoch}, batch {progress.batch}" if content else ""
        console.say(f"run      {directory}{where}")
        events, insight = None, None
        world.on_first(lambda: records.write_records(experiment, facts, progress.rows))
        if machine.wants_events():
            insight = Insight(session, progress, machine.tb_pictures)
        if machine.wants_events() and world.first:
            events = TensorBoard(directory / "tb", progress.rows, progress.epoch, experiment)
        saver = Saver(directory, session, machine.checkpoint_every)
        tracker = Tracker(console, records if world.first else None, events, insight)
        try:
            world.begin(session.model)
            fit(session, progress, tracker=tracker, saver=saver, interrupt=interrupt)
            tracker.finish()
        except InterruptedRunError as stop:
            tracker.close()
            again = "" if saver.failed else f"; go on with --resume {shlex.quote(str(directory))}"
            if stop.exit_code != 128 + BROKEN_PIPE:
                console.tell(f"stopped by {stop} in epoch {progress.epoch}{again}")
            return stop.exit_code
        finally:
            tracker.close()
    if saver.failed:
        raise RunError(f"{directory}: the last checkpoint could not be saved; see above")
    console.tell(summary(experiment, progress.rows, directory))
    return 0


def starting_progress(session: Session, content: Content | None, directory: Path) -> Progress:
    """Where the run goes on, its state restored; without a checkpoint at its beginning."""
    if content is None:
        return Progress(session.experiment.start_epoch, Sums(session.device))
    return checkpoint.restore(session, content, directory)


def summary(experiment: Experiment, rows: list[Row], directory: Path) -> str:
    """What was learnt: the last epoch's accuracy first, the best epoch's by how it was chosen."""
    last = rows[-1]
    metric = best_metric(experiment)
    best = max(rows, key=lambda row: (row[metric], -row["epoch"]))
    if metric == "val_acc1":
        chosen = (
            f"test accuracy at the epoch best on the held-out pictures: {best['test_acc1']:.2f}"
        )
    else:
        chosen = f"best test accuracy (optimistic): {best['test_acc1']:.2f}"
    pictures = (
        "drawn (synthetic) test pictures"
        if experiment.dataset == "synthetic"
        else ("FashionMNIST test pictures")
    )
    seconds = sum(row["seconds"] for row in rows)
    lines = [
        f"{experiment.model} names {last['test_acc1']:.2f} % of the {pictures} after epoch "
        f"{last['epoch']} (chance: 10 %), in {clock(seconds)}",
        f"{chosen} % at epoch {best['epoch']}",
        f"records: {directory}",
    ]
    if (directory / "tb").is_dir():
        lines.append(f"curves: tensorboard --logdir {shlex.quote(str(directory.parent))}")
    return "\n".join(lines)
