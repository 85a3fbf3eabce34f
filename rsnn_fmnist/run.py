"""One run, from its settings to its exit code: all is checked before anything is written."""

import dataclasses
import importlib.util
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch import nn

from . import checkpoint, config, data, environment, models
from .checkpoint import Content
from .config import Experiment, Machine, Value
from .data import CLASSES, SIDE, Splits
from .distributed import ALONE, World, processes, refuse
from .errors import RunError, UsageError, warn
from .insight import Insight, drawing
from .interrupt import BROKEN_PIPE, Interrupt, InterruptedRunError
from .loader import Loader
from .run_directory import RunDirectory, Saver, checkpoint_in, locate, refuse_existing
from .session import Progress, Row, Session, best_metric, open_session
from .spiking import BackendUnavailableError, set_backend
from .spiking.backend import lacking, resolve
from .step import Sums, layer_by_layer
from .tracking import Console, TensorBoard, Tracker, clock
from .training import evaluate, fit

Settings = Mapping[str, Value]


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
            facts = environment.describe(session.device, backend, world)
            return train(session, machine, directory, console, facts)


def get_ready(machine: Machine, flags: Settings) -> None:
    """What can be refused, or has to be imported, before anything is looked for."""
    if "start_epoch" in flags and machine.resume:
        raise UsageError("--start-epoch: a resumed run goes on where it was; leave one of them out")
    if machine.tb_pictures:
        drawing("--tb-pictures")  # refuses at once where it cannot draw
    if machine.models_file:
        import_models(Path(machine.models_file))


def set_up(experiment: Experiment, machine: Machine, world: World) -> tuple[Session, str]:
    """The session at its beginning, on its device, checked, and the backend of its layers."""
    device = environment.own_device(machine.device, world)
    backend = choose_backend(machine.backend, device)
    environment.set_up(machine)
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


def identify(
    machine: Machine, flags: Settings, file: Settings
) -> tuple[Experiment, Path, Content | None]:
    """Which experiment, in which directory, and the checkpoint to go on from (None: afresh).

    With --resume PATH the checkpoint says which experiment; with --resume auto the settings do.

    Raises:
        UsageError: settings that contradict each other or the checkpoint.
        RunError: no readable checkpoint where one is named; a directory that holds a run.
    """
    settings = {**file, **flags}
    if machine.resume in ("", "auto"):
        experiment = config.from_settings(Experiment, settings)
        check_experiment(experiment, machine)
        directory = locate(experiment, machine)
        content = starting_point(machine, directory)
    else:
        for name in ("run_name", "output_dir"):
            if name in flags:
                flag = config.flag(name)
                raise UsageError(f"{flag}: a resumed run stays in its directory; leave it out")
        path = Path(machine.resume)
        if not path.exists():
            raise UsageError(f"--resume {path}: no such file or directory")
        directory = path if path.is_dir() else path.parent
        content = starting_point(machine, directory)
        if content is None:
            raise RunError(f"--resume {path}: holds no checkpoint of a run")
        kept = dataclasses.asdict(checkpoint.experiment_of(content, path))
        experiment = config.from_settings(Experiment, kept | settings)
        check_experiment(experiment, machine)
    if content:
        kept_experiment = checkpoint.experiment_of(content, directory)
        if "epochs" not in settings:
            experiment = dataclasses.replace(experiment, epochs=kept_experiment.epochs)
        refuse_changes(experiment, kept_experiment, content, directory)
        if content["kind"] != "run" and not machine.test_only:
            raise RunError(
                f"{machine.resume}: holds the weights of one epoch only; resume from latest.pt, or "
                "evaluate it with --test-only"
            )
    return experiment, directory, content


def starting_point(machine: Machine, directory: Path) -> Content | None:
    """The checkpoint that --resume means; None: start afresh."""
    if not machine.resume:
        refuse_existing(directory)
        return None
    path = Path(machine.resume)
    return checkpoint.load(path) if path.is_file() else newest(directory)


def newest(directory: Path) -> Content | None:
    """The run's latest checkpoint or, where that is damaged, the one before; None: none yet."""
    latest, before = checkpoint_in(directory)
    if latest is None:
        return checkpoint.load(before) if before else None
    try:
        return checkpoint.load(latest)
    except RunError as error:
        if before is None:
            raise
        warn(f"{error}; going on from {before}")
        return checkpoint.load(before)


def check_experiment(experiment: Experiment, machine: Machine) -> None:
    """Raises UsageError for no model, an unknown one, or settings that contradict each other."""
    names = ", ".join(models.MODELS)
    if not experiment.model:
        raise UsageError(f"--model is required: {names}")
    if experiment.model not in models.MODELS:
        near = config.closest(experiment.model, models.MODELS)
        raise UsageError(
            f"--model {experiment.model}: not registered (a model of your own takes "
            f"--models-file); registered: {names}{near}"
        )
    config.check_together(experiment, machine)


def refuse_changes(asked: Experiment, kept: Experiment, content: Content, directory: Path) -> None:
    """Raises UsageError when a setting differs from the checkpoint's.

    More epochs extend the run; as many as it has done, or fewer, have it finished.
    """
    for name in config.differences(asked, kept):
        new, old = getattr(asked, name), getattr(kept, name)
        if name == "epochs" and (new > old or content.get("epoch", 0) >= new):
            continue
        raise UsageError(
            f"{config.flag(name)} {new}: the run in {directory} has {old}, which cannot change "
            "when it resumes; name that, or start another run"
        )


def finished(experiment: Experiment, content: Content) -> bool:
    return content["kind"] == "run" and bool(content["epoch"] >= experiment.epochs)


def import_models(path: Path) -> None:
    """Run the user's file, which registers models.

    Raises:
        UsageError: no such file.
        RunError: it fails.
    """
    if not path.is_file():
        raise UsageError(f"--models-file {path}: no such file")
    try:
        spec = importlib.util.spec_from_file_location(f"models_file_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        sys.path.insert(0, str(path.resolve().parent))  # for what lies beside it
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's file raises
        raise RunError(f"--models-file {path}: {type(error).__name__}: {error}") from error


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
    splits = data.load(
        experiment.dataset,
        machine.data_root(),
        download=machine.download,
        cache=machine.cache_dataset,
    )
    splits = data.hold_out(splits, experiment.val_size, experiment.seed)
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

    def loader(pictures: data.Pictures) -> Loader:
        return Loader(pictures, device, normalize=experiment.normalize, workers=machine.workers)

    train, test = loader(splits.train), loader(splits.test)
    val = loader(splits.val) if splits.val else None
    loaders = (train, val, test)
    return open_session(experiment, device, model, loaders, whole_step=machine.graph, world=world)


def build_model(experiment: Experiment) -> nn.Module:
    """The model with those of the experiment's options that it takes.

    Raises:
        UsageError: an option away from its default that the model does not take.
        RunError: the model's own code fails.
    """
    takes = models.options(experiment.model)
    chosen = {}
    for name in ("hidden", "surrogate", "detach_reset"):
        value = getattr(experiment, name)
        if name in takes:
            chosen[name] = value
        elif value != config.FIELDS[name].default:
            raise UsageError(
                f"{config.flag(name)} {value}: the model {experiment.model} has no such option"
            )
    try:
        model = models.build(experiment.model, **chosen)
    except (Exception, SystemExit) as error:  # a user's model may raise anything
        raise RunError(f"the model {experiment.model} cannot be built: {error}") from error
    if not isinstance(model, nn.Module) or not list(model.parameters()):
        raise RunError(
            f"the model {experiment.model} is no torch.nn.Module with parameters to learn, but "
            f"{type(model).__name__}"
        )
    return model


def check_model(session: Session) -> None:
    """Try the model on two pictures, leaving no trace in it or in the random state.

    Raises:
        RunError: it fails, or does not return scores [N, 10].
    """
    name = session.experiment.model
    devices = [session.device] if session.device.type == "cuda" else []
    session.model.eval()
    with torch.random.fork_rng(devices), session.precision.autocast():
        try:
            scores = session.model(torch.zeros(2, SIDE, SIDE, device=session.device))
        except (Exception, SystemExit) as error:  # a user's model may raise anything
            raise RunError(f"the model {name} fails on pictures [2, 28, 28]: {error}") from error
    shape = list(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if shape != [2, CLASSES]:
        raise RunError(
            f"the model {name} returns {shape} for pictures [2, 28, 28]; it should return scores "
            f"[2, {CLASSES}]"
        )
    if not (scores.is_floating_point() and scores.requires_grad):
        raise RunError(f"the model {name} returns {scores.dtype} scores that carry no gradient")


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
        f"device   {device} ({environment.device_name(device)}), {threads} CPU "
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
        if world.first:
            records.write_records(experiment, facts, progress.rows)
        if machine.wants_events():
            insight = Insight(session, progress, machine.tb_pictures)
        if machine.wants_events() and world.first:
            events = TensorBoard(directory / "tb", progress.rows, progress.epoch, experiment)
        saver = Saver(directory, session, machine.checkpoint_every)
        tracker = Tracker(console, records if world.first else None, events, insight)
        world.begin(session.model)
        try:
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


def take_over(records: RunDirectory, machine: Machine, experiment: Experiment) -> Content | None:
    """The checkpoint in the locked directory, which may be another's by now; None: none."""
    content = starting_point(machine, records.path)
    if content:
        kept = checkpoint.experiment_of(content, records.path)
        refuse_changes(experiment, kept, content, records.path)
    return content


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
