"""Where a run starts: at its first epoch, or from a checkpoint of the same experiment."""

import dataclasses
from contextlib import suppress
from pathlib import Path

from .. import config
from ..config import Experiment, Machine, Settings
from ..errors import RunError, UsageError, warn
from ..models import (
    MODELS,
    check_registered,
    digest_of,
    forget_models,
    import_models,
    imported,
)
from . import checkpoint
from .checkpoint import Content
from .run_directory import (
    CONFIG,
    MODELS_FILE,
    RunDirectory,
    checkpoint_in,
    locate,
    refuse_existing,
)


def find_start(
    machine: Machine, flags: Settings, file: Settings
) -> tuple[Experiment, Path, Content | None]:
    """The experiment, its directory, and the checkpoint to resume from (None: a new run).

    With --resume PATH the checkpoint determines the experiment; with --resume auto the settings do.

    Raises:
        UsageError: settings that contradict each other or the checkpoint.
        RunError: the named checkpoint cannot be read; the directory of a new run holds a run.
    """
    settings = {**file, **flags}
    if machine.resume in ("", "auto"):
        experiment, directory, content = by_settings(machine, settings)
        if not machine.resume:
            refuse_existing(directory)
    else:
        experiment, directory, content = _by_checkpoint(machine, flags, settings)
    if content:
        refuse_other_models(content, directory)
        kept = checkpoint.experiment_of(content, directory)
        if "epochs" not in settings:
            experiment = dataclasses.replace(experiment, epochs=kept.epochs)
        refuse_changes(experiment, kept, content, directory)
        if content["kind"] != "run" and not machine.test_only:
            raise RunError(
                f"{machine.resume}: holds the weights of one epoch only; resume from latest.pt, or "
                "evaluate this file with --test-only"
            )
    return experiment, directory, content


def by_settings(machine: Machine, settings: Settings) -> tuple[Experiment, Path, Content | None]:
    """The experiment of the settings, its directory and, with --resume, its latest checkpoint.

    Raises:
        UsageError, RunError: as `find_start`, but for a directory that holds a run.
    """
    experiment = config.from_settings(Experiment, settings)
    directory = locate(experiment, machine)
    content = newest(directory) if machine.resume else None
    if content:
        import_kept_models(machine, content, directory)
    check_experiment(experiment, machine)
    return experiment, directory, content


def _by_checkpoint(
    machine: Machine, flags: Settings, settings: Settings
) -> tuple[Experiment, Path, Content]:
    path = Path(machine.resume)
    if not (path.is_file() or path.is_dir()):
        raise UsageError(f"--resume {path}: no such file or directory")
    directory = directory_of(path)
    _refuse_other_place(machine, flags, directory)
    content = starting_point(machine, directory)
    if content is None:
        raise RunError(f"--resume {path}: holds no checkpoint of a run")
    import_kept_models(machine, content, directory)
    kept = dataclasses.asdict(checkpoint.experiment_of(content, path))
    experiment = config.from_settings(Experiment, {**kept, **settings})
    if experiment.model not in MODELS and "model" not in settings:
        raise UsageError(
            f"--resume {path}: a run of the model {experiment.model}, which is not registered; "
            "name its file with --models-file"
        )
    check_experiment(experiment, machine)
    if not machine.test_only:
        _refuse_other_run(checkpoint.experiment_of(content, path), path, directory)
    return experiment, directory, content


def directory_of(path: Path) -> Path:
    """The run directory of a checkpoint, where a link to it points; a directory is its own."""
    if path.is_dir():
        return path
    return path.resolve().parent if path.is_symlink() else path.parent


def _refuse_other_place(machine: Machine, flags: Settings, directory: Path) -> None:
    """Raise UsageError where --output-dir or --run-name is not the run's own."""
    place = directory.resolve()
    typed = directory.absolute()  # which may be a link to the place
    agrees = {
        "output_dir": Path(machine.output_dir).resolve() in (place.parent, typed.parent.resolve()),
        "run_name": machine.run_name in (place.name, typed.name),
    }
    for name, same in agrees.items():
        if name in flags and not same:
            raise UsageError(
                f"{config.flag(name)} {flags[name]}: a resumed run stays in its directory, "
                f"{directory}; leave it out"
            )


def _refuse_other_run(kept: Experiment, path: Path, directory: Path) -> None:
    """Raise RunError where the directory is another run's, which resuming would overwrite.

    A config.toml that cannot be read is nobody's: it is written anew.
    """
    try:
        owner = config.from_settings(Experiment, config.read_toml(directory / CONFIG))
    except UsageError:
        return
    names = [config.flag(name) for name in config.differences(owner, kept) if name != "epochs"]
    if names:
        raise RunError(
            f"--resume {path}: differs in {', '.join(names)} from the run in {directory}, which it "
            "would overwrite; move the checkpoint to a directory of its own"
        )


def import_kept_models(machine: Machine, content: Content, directory: Path) -> None:
    """Import the copy of the models file that a checkpoint was trained with, if there is one.

    Not where --models-file names a file. The copy runs only if it is what was copied.

    Raises:
        UsageError: it was changed.
        RunError: it fails.
    """
    kept, digest, present = directory / MODELS_FILE, content.get("models_file"), imported()
    if machine.models_file or (present and present.path == kept):
        return
    forget_models()
    if digest is None or not kept.is_file():
        return
    if digest_of(kept.read_bytes()) != digest:
        raise UsageError(
            f"{kept}: not the file that the run was trained with; restore it, or name the original "
            "with --models-file"
        )
    try:
        import_models(kept)
    except RunError as error:
        message = str(error).removeprefix("--models-file ")
        raise RunError(
            f"{message}; this is the run's own copy of its models file, without what lay beside "
            "it: name the original with --models-file"
        ) from error


def refuse_other_models(content: Content, directory: Path) -> None:
    """Raise an error where a checkpoint was trained with another models file than the imported one.

    A file is known by its own content, not by that of what it imports.
    """
    file, kept = imported(), content.get("models_file")
    if "models_file" not in content and file:
        warn(f"{directory}: its checkpoint does not say which models file it was trained with")
    elif kept and not file:
        raise UsageError(
            f"{directory}: trained with a models file, and has no copy of it; name the file with "
            "--models-file"
        )
    elif kept and file and file.digest != kept:
        raise UsageError(
            f"--models-file {file.path}: not the file that the run in {directory} was trained "
            f"with; leave it out to use the run's own copy, {directory / MODELS_FILE}"
        )


def starting_point(machine: Machine, directory: Path) -> Content | None:
    """The checkpoint that --resume means; None: a new run."""
    if not machine.resume:
        refuse_existing(directory)
        return None
    path = Path(machine.resume)
    return checkpoint.load(path) if path.is_file() else newest(directory)


def nearest(experiment: Experiment, directory: Path) -> str:
    """Of the runs in the same folder, the one whose settings are nearest to a new run's.

    Returns:
        Such as "runs/plain_seed1 differs in --seed"; "" where the folder holds no other run.
    """
    found = []
    with suppress(OSError):
        for path in sorted(directory.parent.iterdir()):
            with suppress(UsageError):  # no run, or one of another version
                kept = config.from_settings(Experiment, config.read_toml(path / CONFIG))
                found.append((config.differences(experiment, kept), path))
    found = [(names, path) for names, path in found if path != directory]
    if not found:
        return ""
    names, path = min(found, key=lambda run: len(run[0]))
    differs = f"differs in {', '.join(map(config.flag, names))}"
    return f"{path} {differs if names else 'has the same settings'}"


def newest(directory: Path) -> Content | None:
    """The run's latest checkpoint or, where it is damaged, the one before; None: there is none."""
    latest, before = checkpoint_in(directory)
    if latest is None:
        return checkpoint.load(before) if before else None
    try:
        return checkpoint.load(latest)
    except RunError as error:
        if before is None:
            raise
        warn(f"{error}; using {before}")
        return checkpoint.load(before)


def check_experiment(experiment: Experiment, machine: Machine) -> None:
    """Raise UsageError for no model, an unknown one, or settings that contradict each other."""
    check_registered(experiment.model)
    config.check_together(experiment, machine)


def refuse_changes(asked: Experiment, kept: Experiment, content: Content, directory: Path) -> None:
    """Raise UsageError where a setting differs from the checkpoint's.

    A larger `epochs` extends the run; with no more epochs than it has done, the run is finished.
    """
    for name in config.differences(asked, kept):
        new, old = getattr(asked, name), getattr(kept, name)
        if name == "epochs" and (new > old or content.get("epoch", 0) >= new):
            continue
        raise UsageError(
            f"{config.flag(name)} {new}: the run in {directory} has {old}, which cannot change "
            "when it resumes; use that value, or start another run"
        )


def finished(experiment: Experiment, content: Content) -> bool:
    return content["kind"] == "run" and bool(content["epoch"] >= experiment.epochs)


def locked_start(records: RunDirectory, machine: Machine, experiment: Experiment) -> Content | None:
    """The checkpoint again, now that the directory is locked: another process may have trained."""
    content = starting_point(machine, records.path)
    if content:
        kept = checkpoint.experiment_of(content, records.path)
        refuse_changes(experiment, kept, content, records.path)
    return content
