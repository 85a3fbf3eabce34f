"""Settings: ranges, types, TOML, names."""

import dataclasses
from pathlib import Path

import pytest

from rsnn_fmnist import cli, config
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.errors import UsageError


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--epochs 0", "--epochs 0: must be at least 1"),
        ("--epochs -3", "--epochs -3: must be at least 1"),
        ("--epochs 1.5", "--epochs 1.5: not a whole number"),
        ("-b 0", "--batch-size 0: must be at least 1"),
        ("--hidden 0", "--hidden 0"),
        ("--step-size 0", "--step-size 0"),
        ("--lr 0", "--lr 0.0: must be above 0"),
        ("--lr -0.1", "--lr -0.1: must be above 0"),
        ("--lr nan", "--lr nan: must be finite"),
        ("--lr inf", "--lr inf: must be finite"),
        ("--lr -inf", "--lr -inf: must be finite"),
        ("--lr fast", "--lr fast: not a number"),
        ("--momentum 1", "--momentum 1.0: must be in [0, 1)"),
        ("--momentum -0.5", "--momentum -0.5"),
        ("--wd -1e-4", "--weight-decay -0.0001: must be 0 or more"),
        ("--step-gamma 0", "--step-gamma 0.0: must be in (0, 1]"),
        ("--step-gamma 1.5", "--step-gamma 1.5"),
        ("--start-epoch -1", "--start-epoch -1"),
        ("--val-size -1", "--val-size -1"),
        ("--seed -1", "--seed -1"),
        ("-j -1", "--workers -1"),
        ("--threads 0", "--threads 0"),
        ("--threads 100000", "--threads 100000: must be from 1 to 1024"),
        ("-j 100000", "--workers 100000: must be from 0 to 256"),
        ("--checkpoint-every -1", "--checkpoint-every -1"),
        ("--opt rmsprop", "--opt rmsprop: choose one of sgd, adam"),
        ("--lrs cosine", "--lrs cosine: choose one of cosa, step, none"),
        ("--backend jax", "--backend jax: choose one of auto, torch, numba, cupy"),
        ("--amp-dtype float8", "--amp-dtype float8"),
        ("--detach-reset some", "--detach-reset some"),
        ("--surrogate atam", "did you mean atan?"),
        ("--dataset mnist", "--dataset mnist: choose one of fashion-mnist, synthetic"),
        ("--modle plain", "unknown argument --modle; did you mean --model?"),
        ("-model fb", "unknown argument -model; did you mean --model?"),
        ("-data-dir x", "unknown argument -data-dir; did you mean --data-path?"),
        ("-out-dir x", "unknown argument -out-dir; did you mean --output-dir?"),
        ("--epoch 3", "unknown argument --epoch; did you mean --epochs?"),
        ("plain", "unknown argument plain"),
        ("--model", "expected one argument"),
        ("--tb=3", "--tb"),
        ("--tb-pictures 0", "--tb-pictures 0: must be at least 1"),
        ("--tb-pictures often", "--tb-pictures often: not a whole number"),
    ],
)
def test_wrong_flags_are_reported(arguments: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        cli.parse(arguments.split())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "every", "events"),
    [
        ("", None, False),
        ("--tb", None, True),
        ("--tb-pictures", 10, True),
        ("--tb-pictures --amp", 10, True),
        ("--tb-pictures 3 --tb", 3, True),
    ],
)
def test_figures_are_drawn_every_ten_epochs_by_default(
    arguments: str, every: int | None, events: bool
) -> None:
    machine = config.from_settings(Machine, cli.parse(arguments.split()))
    assert machine.tb_pictures == every
    assert machine.wants_events() == events


def test_figures_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text("tb_pictures = 5\n")
    assert config.read_toml(tmp_path / "one.toml") == {"tb_pictures": 5}
    assert config.read_toml(write(tmp_path, 'cosa_tmax = "None"')) == {"cosa_tmax": None}


def test_every_setting_has_a_flag_that_sets_it() -> None:
    examples = {int: "7", float: "0.5", str: "text"}
    for name, field in config.FIELDS.items():
        kind = config.value_type(name)
        if kind is bool:
            assert cli.parse([config.flag(name)]) == {name: True}
            assert cli.parse(["--no-" + name.replace("_", "-")]) == {name: False}
        else:
            text = (field.metadata["choices"] or [examples[kind]])[-1]
            assert cli.parse([config.flag(name), text]) == {name: kind(text)}


def test_the_tutorials_flags_are_accepted() -> None:
    line = (
        "--data-path /raid/data --tb --device cpu --amp --model plain -b 256 -j 4 --opt SGD "
        "--lrs None --wd 0 --momentum 0.9 --cosa-tmax 90 --output-dir logs --start-epoch 0"
    )
    settings = cli.parse(line.split())
    assert settings["lrs"] == "none"
    assert settings["opt"] == "sgd"
    assert settings["workers"] == 4
    assert settings["weight_decay"] == 0


def test_defaults_are_the_tutorials() -> None:
    e = Experiment()
    assert (e.batch_size, e.epochs, e.opt, e.lr, e.momentum, e.weight_decay) == (
        128, 90, "sgd", 0.1, 0.9, 0,
    )  # fmt: skip
    assert (e.lrs, e.step_size, e.step_gamma, e.cosa_tmax) == ("cosa", 30, 0.1, None)
    assert (e.seed, e.normalize, e.hidden, e.detach_reset) == (2020, True, 32, "all")


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('modle = "plain"', "unknown setting 'modle'; did you mean model?"),
        ('epochs = "many"', 'epochs = "many": must be a whole number'),
        ("epochs = 1.5", "must be a whole number"),
        ("epochs = true", "must be a whole number"),
        ('amp = "yes"', "must be true or false"),
        ("model = 3", "must be a string"),
        ("epochs = 0", "must be at least 1"),
        ("lr = nan", "must be finite"),
        ("epochs = ", "not valid TOML"),
        ("[experiment]\nepochs = 3", "unknown setting 'experiment'"),
    ],
)
def test_mistakes_in_toml_are_reported(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.read_toml(write(tmp_path, text))
    assert words in str(caught.value)


def test_toml_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        config.read_toml(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        config.read_toml(tmp_path / "binary.toml")
    with pytest.raises(UsageError, match="cannot be read"):
        config.read_toml(tmp_path)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    """As Windows' editors write it."""
    (tmp_path / "marked.toml").write_text("epochs = 3\n", encoding="utf-8-sig")
    assert config.read_toml(tmp_path / "marked.toml") == {"epochs": 3}


PATHS = [name for name, field in config.FIELDS.items() if field.metadata["path"]]


def test_a_setting_whose_value_is_a_path_is_declared_as_one() -> None:
    places = ("DIR", "PATH", "FILE.py")
    named = [n for n, f in config.FIELDS.items() if str(f.metadata["metavar"]).endswith(places)]
    assert named == PATHS == ["data_path", "output_dir", "resume", "models_file"]


@pytest.mark.parametrize("name", PATHS)
def test_the_home_folder_in_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", "/home")
    assert cli.parse([f"{config.flag(name)}=~/x"]) == {name: "/home/x"}
    assert config.read_toml(write(tmp_path, f'{name} = "~/x"')) == {name: "/home/x"}
    with pytest.raises(UsageError, match=f"{config.flag(name)} '~nobody-here': no such home"):
        cli.parse([f"{config.flag(name)}=~nobody-here"])
    with pytest.raises(UsageError, match=f"{name} = .*: has a NUL"):
        config.read_toml(write(tmp_path, rf'{name} = "a\u0000b"'))


def test_an_experiment_is_the_same_after_toml(tmp_path: Path) -> None:
    experiment = Experiment(
        model='my "model"', epochs=3, lr=1e-05, amp=True, cosa_tmax=7, normalize=False, opt="adam"
    )
    settings = config.read_toml(write(tmp_path, config.to_toml(experiment)))
    assert config.from_settings(Experiment, settings) == experiment


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = config.read_toml(write(tmp_path, 'model = "plain"\namp = true\nlr = 1'))
    flags = cli.parse(["--no-amp", "--seed", "3"])
    experiment = config.from_settings(Experiment, {**file, **flags})
    assert experiment == Experiment(model="plain", lr=1.0, amp=False, seed=3)


@pytest.mark.parametrize(
    ("experiment", "name"),
    [
        (Experiment(model="feedback"), "feedback_seed2020"),
        (
            Experiment(model="plain", dataset="synthetic", epochs=5, opt="adam", lr=0.001, seed=3),
            "plain_synthetic_e5_adam_lr0.001_seed3",
        ),
        (
            Experiment(model="plain", normalize=False, amp=True, detach_reset="recurrent"),
            "plain_no-norm_detach-recurrent_amp_seed2020",
        ),
        (Experiment(model="plain", cosa_tmax=7, val_size=100), "plain_val100_tmax7_seed2020"),
    ],
)
def test_run_names(experiment: Experiment, name: str) -> None:
    assert config.run_name(experiment) == name


def test_every_setting_changes_the_name() -> None:
    """So that two experiments never share a directory."""
    base = config.run_name(Experiment(model="plain"))
    other = {int: 11, float: 0.25, str: "other"}
    for field in dataclasses.fields(Experiment):
        kind = config.value_type(field.name)
        value = (not field.default) if kind is bool else other[kind]
        changed = dataclasses.replace(Experiment(model="plain"), **{field.name: value})
        assert config.run_name(changed) != base
        assert config.differences(changed, Experiment(model="plain")) == [field.name]


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="must be below --epochs 5"):
        config.check_together(Experiment(epochs=5, start_epoch=5), Machine())
    with pytest.raises(UsageError, match="never cached"):
        config.check_together(Experiment(dataset="synthetic"), Machine(cache_dataset=True))


def test_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RSNN_FMNIST_DATA", raising=False)
    assert Machine().data_root() == Path("data")
    monkeypatch.setenv("RSNN_FMNIST_DATA", "/pictures")
    assert Machine().data_root() == Path("/pictures")
    assert Machine(data_path="here").data_root() == Path("here")
    monkeypatch.setenv("HOME", "/home")
    monkeypatch.setenv("RSNN_FMNIST_DATA", "~/pictures")
    assert Machine().data_root() == Path("/home/pictures")


CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.mark.parametrize("model", ["plain", "feedback", "stateful-synapse"])
def test_configs_hold_the_settings_of_the_tutorials_editions(model: str) -> None:
    first = config.from_settings(Experiment, config.read_toml(CONFIGS / f"{model}.toml"))
    assert first == Experiment(model=model)
    second = config.from_settings(Experiment, config.read_toml(CONFIGS / f"2022-{model}.toml"))
    assert config.differences(second, first) == [
        "normalize",
        "detach_reset",
        "epochs",
        "batch_size",
    ]
    assert (second.epochs, second.batch_size, second.normalize) == (64, 256, False)
    assert second.detach_reset == "recurrent"
