"""Checkpoints: written atomically, read suspiciously."""

import copy
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.fashion_mnist import Pictures
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.errors import RunError
from rsnn_fmnist.models import build
from rsnn_fmnist.session import Best, Progress, Session, open_session
from rsnn_fmnist.storage import atomic, checkpoint
from rsnn_fmnist.training.step import Sums

CPU = torch.device("cpu")


def session(**settings: Any) -> Session:
    experiment = Experiment(model="feedback", opt="adam", batch_size=1, **settings)
    pictures = Pictures(torch.zeros(8, 28, 28, dtype=torch.uint8), torch.arange(8))
    torch.manual_seed(settings.get("seed", 0))
    loader = Loader(pictures, CPU)
    opened = open_session(experiment, CPU, build("feedback"), (loader, None, loader))
    opened.model(torch.rand(4, 28, 28) * 3).sum().backward()
    opened.optimizer.step()
    return opened


def progress(opened: Session) -> Progress:
    sums = Sums(CPU)
    sums.totals.copy_(torch.tensor([0.5, 1, 2, 3]))
    row = {"epoch": 0, "test_acc1": 12.5, "seconds": 1.0}
    best = Best(0, 12.5, {n: t.clone() for n, t in opened.model.state_dict().items()})
    return Progress(1, sums, 7, 2.5, [row], best)


def same(a: Any, b: Any) -> bool:
    """Equality through dicts and lists, tensors by their bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_run_comes_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    one = session()
    torch.rand(5)
    content = checkpoint.capture(one, progress(one))
    checkpoint.save(path, content)
    expected = torch.rand(3)
    other = session(seed=9)
    assert not same(other.model.state_dict(), one.model.state_dict())
    loaded = checkpoint.load(path)
    assert same(loaded, content)
    restored = checkpoint.restore(other, loaded, path)
    assert torch.equal(torch.rand(3), expected)
    checkpoint.restore(other, checkpoint.load(path), path)
    again = checkpoint.capture(other, restored)
    again["experiment"] = content["experiment"]
    assert same(again, content)


def test_the_previous_checkpoint_stays(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    one = session()
    for epoch in range(3):
        content = checkpoint.capture(one, Progress(epoch, Sums(CPU)))
        checkpoint.save(path, content, keep_previous=True)
    assert checkpoint.load(path)["epoch"] == 2
    assert checkpoint.load(atomic.previous(path))["epoch"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"latest.pt", "latest.prev.pt"}


def test_a_save_that_fails_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "latest.pt"
    one = session()
    checkpoint.save(path, checkpoint.capture(one, Progress(1, Sums(CPU))))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(path, checkpoint.capture(one, Progress(2, Sums(CPU))))
    assert checkpoint.load(path)["epoch"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["latest.pt"]


def test_the_previous_checkpoint_stays_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(atomic.os, "link", refuse)
    one, path = session(), tmp_path / "latest.pt"
    for epoch in (1, 2):
        content = checkpoint.capture(one, Progress(epoch, Sums(CPU)))
        checkpoint.save(path, content, keep_previous=True)
    assert checkpoint.load(atomic.previous(path))["epoch"] == 1


def test_best_weights(tmp_path: Path) -> None:
    one = session()
    assert checkpoint.capture_best(one, Progress(0, Sums(CPU))) is None
    content = checkpoint.capture_best(one, progress(one))
    assert content is not None
    checkpoint.save(tmp_path / "best.pt", content)
    loaded = checkpoint.load(tmp_path / "best.pt")
    assert loaded["row"] == {"epoch": 0, "test_acc1": 12.5, "seconds": 1.0}
    assert checkpoint.experiment_of(loaded, tmp_path) == one.experiment


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


def whole() -> bytes:
    one = session()
    file = io.BytesIO()
    torch.save(checkpoint.capture(one, progress(one)), file)
    return file.getvalue()


def flipped() -> bytes:
    """One bit of the stored weights, which only the check sum can tell."""
    content = bytearray(whole())
    with zipfile.ZipFile(io.BytesIO(bytes(content))) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    content[largest.header_offset + 200] ^= 1
    return bytes(content)


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def header(**changes: Any) -> dict[str, Any]:
    basis = {"format": checkpoint.FORMAT, "version": checkpoint.VERSION, "kind": "run"}
    return {**basis, **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a checkpoint"),
        (b"hello", "not a checkpoint"),
        (whole()[:-100], "not a checkpoint"),
        (whole()[: len(whole()) // 2], "not a checkpoint"),
        (flipped(), "check sum"),
        (pickle.dumps({"model": 1}), "not a checkpoint"),
        (saved(Evil()), "refused, it would run code"),
        (saved([1, 2]), "not a checkpoint of rsnn_fmnist"),
        (saved({"model": torch.zeros(1)}), "not a checkpoint of rsnn_fmnist"),
        (saved(header(version=99)), "format version 99"),
        (saved(header(kind="else")), "unknown kind 'else'"),
        (saved(header(experiment={})), "'model' is missing"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused_in_one_line(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "latest.pt"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        checkpoint.load(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def packed() -> bytes:
    """The same entries, compressed: what a zip bomb does."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole())) as archive,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for entry in archive.infolist():
            other.writestr(entry.filename, archive.read(entry))
    return file.getvalue()


def test_packed_entries_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latest.pt").write_bytes(packed())
    with pytest.raises(RunError, match="its entries are packed"):
        checkpoint.load(tmp_path / "latest.pt")


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("model", "fc1.weight"), torch.zeros(32, 29), r"fc1.weight is \[32, 29\]"),
        (("model", "fc1.weight"), torch.zeros(32, 28).half(), "fc1.weight is .*float16"),
        (("model", "more"), torch.zeros(1), "other names"),
        (("best", "model", "fc1.bias"), torch.zeros(1), "fc1.bias is"),
        (("optimizer", "state", 0, "exp_avg"), torch.zeros(3), "exp_avg is"),
        (("optimizer", "state", 99), {"exp_avg": torch.zeros(3)}, "does not fit"),
        (("optimizer", "param_groups"), [], "does not fit"),
        (("batch",), 9, "epoch 1, batch 9"),
        (("epoch",), -1, "epoch -1"),
        (("sums",), torch.zeros(5), "sums are"),
        (("random_state",), {}, "does not fit"),
        (("random_state", "cpu"), torch.zeros(3), "does not fit"),
        (("scaler",), {"scale": 1}, "--amp-dtype"),
    ],
)
def test_states_of_the_wrong_make_are_refused(
    tmp_path: Path, keys: tuple[Any, ...], value: Any, words: str
) -> None:
    one = session()
    part = content = copy.deepcopy(checkpoint.capture(one, progress(one)))
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    with pytest.raises(RunError, match=words):
        checkpoint.restore(session(), content, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("opt", "zzz"), ("batch_size", 0), ("epochs", "x"), ("lr", float("nan")), ("momentum", None)],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    one = session()
    content = checkpoint.capture(one, progress(one))
    assert checkpoint.experiment_of(content, tmp_path) == one.experiment
    content["experiment"][name] = value
    with pytest.raises(RunError, match=f"damaged: {name} = "):
        checkpoint.experiment_of(content, tmp_path)


def test_a_scaler_cannot_come_from_nothing(tmp_path: Path) -> None:
    one = session()
    content = checkpoint.capture(one, progress(one))
    with pytest.raises(RunError, match="names its --amp-dtype"):
        checkpoint.restore(session(amp=True, amp_dtype="float16"), content, tmp_path)


def test_links_are_replaced_and_never_written_through(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    for name in ("latest.pt", "latest.pt.tmp", "latest.prev.pt", "latest.prev.pt.tmp"):
        (tmp_path / name).symlink_to(outside)
    one = session()
    for epoch in (0, 1):
        content = checkpoint.capture(one, Progress(epoch, Sums(CPU)))
        checkpoint.save(tmp_path / "latest.pt", content, keep_previous=True)
    assert outside.read_text() == "precious"
    assert checkpoint.load(tmp_path / "latest.pt")["epoch"] == 1


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    one = session()
    content = checkpoint.capture(one, progress(one))
    other = open_session(
        Experiment(model="plain"), CPU, build("plain"), (one.train, None, one.test)
    )
    with pytest.raises(RunError, match="does not fit this run"):
        checkpoint.restore(other, content, tmp_path)
    content["experiment"]["colour"] = "red"
    with pytest.raises(RunError, match="colour"):
        checkpoint.experiment_of(content, tmp_path)


@pytest.mark.parametrize(("norm", "fits"), [(0.5, True), (None, True), ("0.5", False)])
def test_the_gradients_norm_is_a_number_or_nothing(tmp_path: Path, norm: Any, fits: bool) -> None:
    one = session()
    content = checkpoint.capture(one, progress(one)) | {"gradient_norm": norm}
    if fits:
        assert checkpoint.restore(one, content, tmp_path).gradient_norm == norm
        return
    with pytest.raises(RunError, match="norm is no number"):
        checkpoint.restore(one, content, tmp_path)
