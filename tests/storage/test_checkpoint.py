"""Checkpoints: a run comes back as it was, and a damaged or foreign file is refused in one line."""

import copy
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.sessions import small_progress, small_session
from torture import same

from rsnn_fmnist.config import Experiment
from rsnn_fmnist.errors import RunError
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.models import build
from rsnn_fmnist.session import Progress, open_session
from rsnn_fmnist.storage import atomic, checkpoint

CPU = torch.device("cpu")


def test_a_run_comes_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "latest.pt"
    one = small_session()
    torch.rand(5)
    content = checkpoint.capture(one, small_progress(one))
    atomic.save(path, content)
    expected = torch.rand(3)
    other = small_session(seed=9)
    assert not same(other.model.state_dict(), one.model.state_dict())
    loaded = checkpoint.load(path)
    assert same(loaded, content)
    restored = checkpoint.restore(other, loaded, path)
    assert torch.equal(torch.rand(3), expected)
    checkpoint.restore(other, checkpoint.load(path), path)
    again = checkpoint.capture(other, restored)
    again["experiment"] = content["experiment"]
    assert same(again, content)


def test_best_weights(tmp_path: Path) -> None:
    one = small_session()
    assert checkpoint.capture_best(one, Progress(0, Sums(CPU))) is None
    content = checkpoint.capture_best(one, small_progress(one))
    assert content is not None
    atomic.save(tmp_path / "best.pt", content)
    loaded = checkpoint.load(tmp_path / "best.pt")
    assert loaded["row"] == {"epoch": 0, "test_acc1": 12.5, "seconds": 1.0}
    assert checkpoint.experiment_of(loaded, tmp_path) == one.experiment


class Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


def whole() -> bytes:
    one = small_session()
    file = io.BytesIO()
    torch.save(checkpoint.capture(one, small_progress(one)), file)
    return file.getvalue()


def flipped() -> bytes:
    """One bit of the stored weights is wrong, which only the check sum shows."""
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
        (saved(Evil()), "refused, since it would run code"),
        (saved([1, 2]), "not a checkpoint of rsnn_fmnist"),
        (saved({"model": torch.zeros(1)}), "not a checkpoint of rsnn_fmnist"),
        (saved(header(version=99)), "format version 99"),
        (saved(header(kind="else")), "unknown kind 'else'"),
        (saved(header(experiment={})), "'model' is missing"),
    ],
)
def test_other_and_damaged_files_are_refused_in_one_line(
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
    """The same entries, compressed, as in a zip bomb."""
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
def test_a_state_of_another_shape_or_type_is_refused(
    tmp_path: Path, keys: tuple[Any, ...], value: Any, words: str
) -> None:
    one = small_session()
    part = content = copy.deepcopy(checkpoint.capture(one, small_progress(one)))
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    with pytest.raises(RunError, match=words):
        checkpoint.restore(small_session(), content, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("opt", "zzz"), ("batch_size", 0), ("epochs", "x"), ("lr", float("nan")), ("momentum", None)],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    one = small_session()
    content = checkpoint.capture(one, small_progress(one))
    assert checkpoint.experiment_of(content, tmp_path) == one.experiment
    content["experiment"][name] = value
    with pytest.raises(RunError, match=f"damaged: {name} = "):
        checkpoint.experiment_of(content, tmp_path)


def test_a_run_without_gradient_scaling_cannot_resume_with_it(tmp_path: Path) -> None:
    one = small_session()
    content = checkpoint.capture(one, small_progress(one))
    with pytest.raises(RunError, match="must name its --amp-dtype"):
        checkpoint.restore(small_session(amp=True, amp_dtype="float16"), content, tmp_path)


def test_the_state_of_another_experiment_is_refused(tmp_path: Path) -> None:
    one = small_session()
    content = checkpoint.capture(one, small_progress(one))
    other = open_session(
        Experiment(model="plain"), CPU, build("plain"), (one.train, None, one.test)
    )
    with pytest.raises(RunError, match="does not fit this run"):
        checkpoint.restore(other, content, tmp_path)
    content["experiment"]["color"] = "red"
    with pytest.raises(RunError, match="color"):
        checkpoint.experiment_of(content, tmp_path)


@pytest.mark.parametrize(("norm", "fits"), [(0.5, True), (None, True), ("0.5", False)])
def test_the_gradient_norm_is_a_number_or_absent(tmp_path: Path, norm: Any, fits: bool) -> None:
    one = small_session()
    content = checkpoint.capture(one, small_progress(one)) | {"gradient_norm": norm}
    if fits:
        assert checkpoint.restore(one, content, tmp_path).gradient_norm == norm
        return
    with pytest.raises(RunError, match="norm is not a number"):
        checkpoint.restore(one, content, tmp_path)


def test_a_checkpoint_of_older_versions_has_no_gradient_norm(tmp_path: Path) -> None:
    one = small_session()
    content = checkpoint.capture(one, small_progress(one))
    del content["gradient_norm"]
    assert checkpoint.restore(one, content, tmp_path).gradient_norm is None


def test_weights_for_an_evaluation(tmp_path: Path) -> None:
    weights, other = small_session().model.state_dict(), build("feedback")
    checkpoint.load_weights(other, weights, tmp_path)
    assert same(other.state_dict(), weights)
    with pytest.raises(RunError, match=r"does not fit the model \(the weights have other names"):
        checkpoint.load_weights(build("plain"), weights, tmp_path)
    with pytest.raises(RunError, match=r"does not fit the model \(fc1.weight is "):
        checkpoint.load_weights(build("feedback", hidden=5), weights, tmp_path)
