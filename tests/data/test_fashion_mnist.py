"""Reading FashionMNIST from its files: small sets made by hand, and the real pictures."""

import gzip
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fake_set import FakeSet, denying, refusal
from helpers.idx_files import archive, idx, md5_of

from rsnn_fmnist.data import fashion_mnist, loader
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Splits

CPU = torch.device("cpu")


def test_idx_of_three_dimensions() -> None:
    content = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3]) + bytes([1, 2, 3, 4, 5, 255])
    array = fashion_mnist.parse_idx(content, (2, 1, 3), Path("file"))
    assert array.dtype == np.uint8
    assert array.tolist() == [[[1, 2, 3]], [[4, 5, 255]]]


GOOD = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 8, 9])
BAD_IDX = {
    "empty": b"",
    "cut in the magic number": GOOD[:3],
    "cut in the header": GOOD[:6],
    "cut by one byte": GOOD[:-1],
    "a byte too many": GOOD + b"\0",
    "does not begin with zero": b"\1" + GOOD[1:],
    "of another type": GOOD[:2] + b"\x0d" + GOOD[3:],
    "of another dimension": GOOD[:3] + b"\3" + GOOD[4:],
    "declares fewer than it holds": GOOD[:7] + b"\2" + GOOD[8:],
    "a valid file of another length": GOOD[:7] + b"\2" + GOOD[8:-1],
    "little-endian": GOOD[:4] + b"\3\0\0\0" + GOOD[8:],
}


def test_idx_of_one_dimension() -> None:
    assert fashion_mnist.parse_idx(GOOD, (3,), Path("file")).tolist() == [7, 8, 9]


@pytest.mark.parametrize("content", BAD_IDX.values(), ids=BAD_IDX)
def test_bad_idx_is_refused(content: bytes) -> None:
    message = refusal(lambda: fashion_mnist.parse_idx(content, (3,), Path("folder/file")))
    assert message.startswith("folder/file: damaged: ")
    assert "delete it and run again" in message


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_reads_every_picture_and_writes_nothing(fake: FakeSet, packed: bool) -> None:
    fake.archives() if packed else fake.unpacked()
    before = {path: path.stat().st_mtime_ns for path in fake.root.rglob("*")}
    fake.check(fake.load())
    fake.check(fake.load(download=True))  # there is nothing to fetch
    assert {path: path.stat().st_mtime_ns for path in fake.root.rglob("*")} == before


def test_columns_are_time(fake: FakeSet) -> None:
    images = np.zeros((40, 28, 28), np.uint8)
    images[7, 3, 20] = 255  # row 3, column 20
    fake.arrays["train", "images"] = images
    columns = fake.unpacked().load().train.columns
    assert columns.shape == (40, 28, 28)
    assert columns.nonzero().tolist() == [[7, 20, 3]]
    assert columns.is_contiguous()


def test_an_unpacked_file_is_preferred_to_the_archive(fake: FakeSet) -> None:
    fake.unpacked()
    for part, kind in fashion_mnist.FILES:
        fake.path(part, kind, ".gz").write_bytes(b"not an archive")
    fake.check(fake.load())


def test_unpacked_and_archives_mix(fake: FakeSet) -> None:
    fake.archives().path("test", "labels", ".gz").unlink()
    fake.path("test", "labels").write_bytes(idx(fake.arrays["test", "labels"]))
    fake.check(fake.load())


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_one_missing_file_without_download(fake: FakeSet, packed: bool) -> None:
    fake.archives() if packed else fake.unpacked()
    fake.path("test", "images", ".gz" if packed else "").unlink()
    message = fake.refusal()
    assert str(fake.raw) in message
    for name, md5, _ in fashion_mnist.FILES.values():
        assert f"{name}.gz (md5 {md5})" in message
    for remedy in ("--no-download", "--data-path", "--dataset synthetic"):
        assert remedy in message


def test_missing_files_are_listed_and_no_folder_is_created(tmp_path: Path) -> None:
    message = refusal(lambda: fashion_mnist.load(tmp_path / "no", download=False))
    assert str(tmp_path / "no" / "FashionMNIST" / "raw") in message
    for name, md5 in {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    }.items():
        assert f"{name} (md5 {md5})" in message
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("kind", ["images", "labels"])
def test_unpacked_file_of_another_length(fake: FakeSet, part: str, kind: str) -> None:
    path = fake.unpacked().path(part, kind)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole + b"\0"):
        path.write_bytes(content)
        message = fake.refusal()
        assert message.startswith(f"{path}: damaged: ")
        assert "delete it" in message


def test_test_set_in_place_of_the_training_set(fake: FakeSet) -> None:
    fake.unpacked()
    shutil.copy(fake.path("test", "images"), fake.path("train", "images"))
    message = fake.refusal()
    assert message.startswith(f"{fake.path('train', 'images')}: damaged: ")
    assert "40 x 28 x 28" in message


def test_label_above_nine(fake: FakeSet) -> None:
    fake.arrays["test", "labels"][13] = 10
    message = fake.unpacked().refusal()
    assert message.startswith(f"{fake.path('test', 'labels')}: damaged: holds the label 10; ")
    assert "delete it" in message


def test_archive_with_a_wrong_md5(fake: FakeSet) -> None:
    path = fake.archives().path("train", "images", ".gz")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    message = fake.refusal()
    found = md5_of(content)
    should = fashion_mnist.FILES["train", "images"][1]
    assert message.startswith(f"{path}: damaged: its md5 is {found}, should be {should}; delete it")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-20],  # cut
        lambda content: content[:5],  # cut in gzip's own header
        lambda _: b"<html>no such file</html>",
        lambda content: content[:-8] + b"\0\0\0\0" + content[-4:],  # gzip's own check sum
        lambda content: content[:200] + bytes(40) + content[240:],
    ],
    ids=["cut", "cut in the header", "not gzip", "gzip's check sum", "garbled"],
)
def test_archive_that_cannot_be_unpacked(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Even where the md5 is the expected one."""
    random = np.random.default_rng(0).integers(0, 16, 1000, dtype=np.uint8)
    content = spoil(archive(random))
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    md5 = md5_of(content)
    message = refusal(lambda: fashion_mnist.unpack(path, md5))
    assert message.startswith(f"{path}: damaged: ")
    assert "delete it" in message


def test_archive_of_an_empty_file(fake: FakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(b"")
    path = fake.archives().path("test", "labels", ".gz")
    path.write_bytes(content)
    md5 = md5_of(content)
    name, _, count = fashion_mnist.FILES["test", "labels"]
    monkeypatch.setitem(fashion_mnist.FILES, ("test", "labels"), (name, md5, count))
    assert fake.refusal().startswith(f"{path}: damaged: begins with nothing, which is not IDX; ")


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_unreadable_file(fake: FakeSet, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.archives() if packed else fake.unpacked()
    path = fake.path("train", "labels", ".gz" if packed else "")
    for method in ("open", "read_bytes"):
        monkeypatch.setattr(Path, method, denying(getattr(Path, method), path))
    message = fake.refusal()
    assert message.startswith(f"{path}: cannot be read (Permission denied); ")
    assert "--data-path" in message


def test_data_path_that_cannot_be_searched(fake: FakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    first = fake.path("train", "images")
    monkeypatch.setattr(Path, "is_file", denying(Path.is_file, first))
    message = fake.refusal()
    assert message.startswith(f"{first}: cannot be read (Permission denied); ")
    assert "--data-path" in message


def test_data_path_too_long(tmp_path: Path) -> None:
    root = tmp_path / ("a" * 300)
    message = refusal(lambda: fashion_mnist.load(root, download=False))
    assert str(root) in message
    assert "--data-path" in message


@pytest.fixture(scope="module")
def real(pictures_root: Path) -> Splits:
    return fashion_mnist.load(pictures_root, download=False)


@pytest.fixture(scope="module")
def unpacked_root(pictures_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An unpacked copy, as torchvision needs it; 55 MB, so removed afterwards."""
    root = tmp_path_factory.mktemp("torchvision")
    raw = Path("FashionMNIST") / "raw"
    (root / raw).mkdir(parents=True)
    for name, md5, _ in fashion_mnist.FILES.values():
        (root / raw / name).write_bytes(
            (pictures_root / raw / name).read_bytes()
            if (pictures_root / raw / name).is_file()
            else fashion_mnist.unpack(pictures_root / raw / f"{name}.gz", md5)
        )
    yield root
    shutil.rmtree(root)


@pytest.mark.pictures
def test_the_real_set(real: Splits) -> None:
    assert real.train.columns.shape == (60_000, 28, 28)
    assert real.test.columns.shape == (10_000, 28, 28)
    assert real.val is None
    assert real.train.labels.bincount().tolist() == [6_000] * 10
    assert real.test.labels.bincount().tolist() == [1_000] * 10
    assert real.train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert real.test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert real.train.columns[:3].sum((1, 2)).tolist() == [76247, 84598, 28662]
    assert real.test.columns[:3].sum((1, 2)).tolist() == [33456, 100994, 51520]
    assert real.train.columns.sum().item() == 3_431_114_169
    first = real.train.columns[0].sum(1)  # an ankle boot: toe to the left, shaft to the right
    assert first[:3].tolist() == [226, 1024, 1302]
    assert first[-3:].tolist() == [3738, 3294, 495]


@pytest.mark.pictures
def test_mean_and_deviation_are_those_of_the_training_pixels(real: Splits) -> None:
    pixels = real.train.columns.numpy() / np.float32(255)
    assert round(float(pixels.mean(dtype=np.float64)), 4) == loader.MEAN
    assert round(float(pixels.std(dtype=np.float64)), 4) == loader.DEVIATION


@pytest.mark.pictures
@pytest.mark.parametrize("part", ["train", "test"])
def test_equals_torchvisions_set(real: Splits, unpacked_root: Path, part: str) -> None:
    from torchvision.datasets import FashionMNIST
    from torchvision.transforms import Compose, Normalize, ToTensor

    transform = Compose([ToTensor(), Normalize((0.2860,), (0.3530,))])
    theirs = FashionMNIST(unpacked_root, train=part == "train", transform=transform)
    ours = getattr(real, part)
    assert torch.equal(ours.columns.transpose(1, 2), theirs.data)
    assert torch.equal(ours.labels, theirs.targets)

    some = torch.arange(0, len(ours), len(ours) // 200)
    ((x, labels),) = Loader(ours, CPU).batches([some])
    pairs = [theirs[i] for i in some.tolist()]
    expected = torch.cat([picture for picture, _ in pairs])
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    assert labels.tolist() == [label for _, label in pairs]


@pytest.mark.pictures
def test_unpacked_and_archives_are_the_same_set(real: Splits, unpacked_root: Path) -> None:
    unpacked = fashion_mnist.load(unpacked_root, download=False)
    assert torch.equal(unpacked.train.columns, real.train.columns)
    assert torch.equal(unpacked.test.labels, real.test.labels)
