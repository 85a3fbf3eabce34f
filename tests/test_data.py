"""Reading, splitting and ordering of pictures, on small sets made by hand."""

import gzip
import hashlib
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from rsnn_fmnist.data import fashion_mnist, loader
from rsnn_fmnist.data.fashion_mnist import Pictures, Splits, epoch_order, hold_out
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.errors import RunError, UsageError

COUNTS = {"train": 40, "test": 20}
CPU = torch.device("cpu")


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as the IDX file that holds it."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@dataclass(frozen=True)
class FakeSet:
    """40 + 20 random pictures, and the folder that fashion_mnist.load reads them from."""

    root: Path
    arrays: dict[tuple[str, str], np.ndarray]

    @property
    def raw(self) -> Path:
        return self.root / "FashionMNIST" / "raw"

    @property
    def cache(self) -> Path:
        return self.root / "FashionMNIST" / fashion_mnist.CACHE

    def path(self, part: str, kind: str, suffix: str = "") -> Path:
        return self.raw / (fashion_mnist.FILES[part, kind][0] + suffix)

    def unpacked(self) -> "FakeSet":
        for (part, kind), array in self.arrays.items():
            self.path(part, kind).write_bytes(idx(array))
        return self

    def archives(self) -> "FakeSet":
        for (part, kind), array in self.arrays.items():
            self.path(part, kind, ".gz").write_bytes(archive(array))
        return self

    def load(self, **options: bool) -> Splits:
        return fashion_mnist.load("fashion-mnist", self.root, **{"download": False, **options})

    def refusal(self, **options: bool) -> str:
        return refusal(lambda: self.load(**options))

    def holds(self, splits: Splits) -> None:
        """Assert that `splits` is this set."""
        for part, pictures in (("train", splits.train), ("test", splits.test)):
            assert pictures.columns.dtype == torch.uint8
            assert pictures.labels.dtype == torch.int64
            images = pictures.columns.numpy().transpose(0, 2, 1)
            np.testing.assert_array_equal(images, self.arrays[part, "images"])
            np.testing.assert_array_equal(pictures.labels.numpy(), self.arrays[part, "labels"])
        assert splits.val is None


def archive(array: np.ndarray) -> bytes:
    return gzip.compress(idx(array), mtime=0)


def refusal(call: Callable[[], object]) -> str:
    """The message of the RunError that `call` raises: one line."""
    with pytest.raises(RunError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSet:
    rng = np.random.default_rng(0)
    arrays, files = {}, {}
    for (part, kind), (name, _, _) in fashion_mnist.FILES.items():
        count = COUNTS[part]
        if kind == "images":
            array = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        else:
            array = rng.permutation(np.arange(count, dtype=np.uint8) % 10)
        arrays[part, kind] = array
        md5 = hashlib.md5(archive(array), usedforsecurity=False).hexdigest()
        files[part, kind] = (name, md5, count)
    monkeypatch.setattr(fashion_mnist, "FILES", files)
    (tmp_path / "FashionMNIST" / "raw").mkdir(parents=True)
    return FakeSet(tmp_path, arrays)


def set_of(labels: list[int]) -> Pictures:
    """A set whose picture i is i everywhere, so that a picture tells where it came from."""
    columns = torch.arange(len(labels), dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
    return Pictures(columns.contiguous(), torch.tensor(labels))


def splits_of(labels: list[int]) -> Splits:
    return Splits(set_of(labels), None, set_of([0, 1]))


def origins(pictures: Pictures) -> list[int]:
    return pictures.columns[:, 0, 0].tolist()


# IDX files


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
    "a sound file of another length": GOOD[:7] + b"\2" + GOOD[8:-1],
    "little-endian": GOOD[:4] + b"\3\0\0\0" + GOOD[8:],
}


def test_idx_of_one_dimension() -> None:
    assert fashion_mnist.parse_idx(GOOD, (3,), Path("file")).tolist() == [7, 8, 9]


@pytest.mark.parametrize("content", BAD_IDX.values(), ids=BAD_IDX)
def test_bad_idx_is_refused(content: bytes) -> None:
    message = refusal(lambda: fashion_mnist.parse_idx(content, (3,), Path("folder/file")))
    assert message.startswith("folder/file: damaged: ")
    assert "delete it and run again" in message


# Reading a folder


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_reads_every_picture_and_writes_nothing(fake: FakeSet, packed: bool) -> None:
    fake.archives() if packed else fake.unpacked()
    before = {path: path.stat().st_mtime_ns for path in fake.root.rglob("*")}
    fake.holds(fake.load())
    fake.holds(fake.load(download=True))  # there is nothing to fetch
    assert {path: path.stat().st_mtime_ns for path in fake.root.rglob("*")} == before


def test_columns_are_time(fake: FakeSet) -> None:
    images = np.zeros((40, 28, 28), np.uint8)
    images[7, 3, 20] = 255  # row 3, column 20
    fake.arrays["train", "images"] = images
    columns = fake.unpacked().load().train.columns
    assert columns.shape == (40, 28, 28)
    assert columns.nonzero().tolist() == [[7, 20, 3]]
    assert columns.is_contiguous()


def test_unpacked_file_goes_before_the_archive(fake: FakeSet) -> None:
    fake.unpacked()
    for part, kind in fashion_mnist.FILES:
        fake.path(part, kind, ".gz").write_bytes(b"not an archive")
    fake.holds(fake.load())


def test_unpacked_and_archives_mix(fake: FakeSet) -> None:
    fake.archives().path("test", "labels", ".gz").unlink()
    fake.path("test", "labels").write_bytes(idx(fake.arrays["test", "labels"]))
    fake.holds(fake.load())


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_one_missing_file_without_download(fake: FakeSet, packed: bool) -> None:
    fake.archives() if packed else fake.unpacked()
    fake.path("test", "images", ".gz" if packed else "").unlink()
    message = fake.refusal(download=False)
    assert str(fake.raw) in message
    for name, md5, _ in fashion_mnist.FILES.values():
        assert f"{name}.gz (md5 {md5})" in message
    for remedy in ("--no-download", "--data-path", "--dataset synthetic"):
        assert remedy in message


def test_missing_names_the_published_files_and_makes_no_folder(tmp_path: Path) -> None:
    message = refusal(lambda: fashion_mnist.load("fashion-mnist", tmp_path / "no", download=False))
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


def test_archive_of_another_sum(fake: FakeSet) -> None:
    path = fake.archives().path("train", "images", ".gz")
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    message = fake.refusal()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
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
def test_archive_that_does_not_unpack(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    """Even one whose md5 is the one asked for."""
    random = np.random.default_rng(0).integers(0, 16, 1000, dtype=np.uint8)
    content = spoil(archive(random))
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    message = refusal(lambda: fashion_mnist.unpack(path, md5))
    assert message.startswith(f"{path}: damaged: ")
    assert "delete it" in message


def test_archive_of_something_else(fake: FakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(b"")
    path = fake.archives().path("test", "labels", ".gz")
    path.write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    name, _, count = fashion_mnist.FILES["test", "labels"]
    monkeypatch.setitem(fashion_mnist.FILES, ("test", "labels"), (name, md5, count))
    assert fake.refusal().startswith(f"{path}: damaged: begins with nothing, not as IDX; delete it")


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_unreadable_file(fake: FakeSet, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.archives() if packed else fake.unpacked()
    path = fake.path("train", "labels", ".gz" if packed else "")
    for method in ("open", "read_bytes"):
        monkeypatch.setattr(Path, method, denying(getattr(Path, method), path))
    message = fake.refusal()
    assert message.startswith(f"{path}: cannot be read (Permission denied); ")
    assert "--data-path" in message


def denying(method: Callable[..., object], path: Path) -> Callable[..., object]:
    """The tests may run as root, whom no permission stops."""

    def denied(self: Path, *args: object, **kwargs: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", str(self))
        return method(self, *args, **kwargs)

    return denied


@pytest.mark.parametrize("cache", [False, True])
def test_data_path_that_cannot_be_searched(
    fake: FakeSet, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fake.cache if cache else fake.path("train", "images")
    monkeypatch.setattr(Path, "is_file", denying(Path.is_file, first))
    message = fake.refusal(cache=cache)
    assert message.startswith(f"{first}: cannot be read (Permission denied); ")
    assert "--data-path" in message


def test_data_path_too_long(tmp_path: Path) -> None:
    root = tmp_path / ("a" * 300)
    message = refusal(lambda: fashion_mnist.load("fashion-mnist", root, download=False))
    assert str(root) in message
    assert "--data-path" in message


# --cache-dataset


@pytest.mark.parametrize("packed", [False, True], ids=["unpacked", "archives"])
def test_cache_is_made_and_read_back(fake: FakeSet, packed: bool) -> None:
    fake.archives() if packed else fake.unpacked()
    fake.holds(fake.load(cache=True))
    assert fake.cache.is_file()
    made = fake.cache.stat().st_mtime_ns
    shutil.rmtree(fake.raw)
    fake.holds(fake.load(cache=True))
    assert fake.cache.stat().st_mtime_ns == made
    assert not list(fake.root.rglob("*.part"))


def test_cache_is_neither_made_nor_read_unasked(fake: FakeSet) -> None:
    fake.unpacked().load()
    assert not fake.cache.exists()
    fake.cache.write_bytes(b"damaged")
    fake.holds(fake.load())


def flip_a_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_content(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        content = torch.load(path)
        change(content)
        torch.save(content, path)

    return spoil


BAD_CACHE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "not a zip": lambda path: path.write_bytes(b"something else"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "one bit": flip_a_pixel,
    "a list": lambda path: torch.save([1, 2], path),
    "code": lambda path: torch.save({"train_columns": Path}, path),
    "a part missing": other_content(lambda content: content.pop("test_labels")),
    "fewer pictures": other_content(
        lambda content: content.update(train_columns=content["train_columns"][:-1])
    ),
    "fewer labels": other_content(
        lambda content: content.update(test_labels=content["test_labels"][:-1])
    ),
    "of another type": other_content(
        lambda content: content.update(train_columns=content["train_columns"].float())
    ),
    "not tensors": other_content(lambda content: content.update(train_columns="columns")),
}


@pytest.mark.parametrize("spoil", BAD_CACHE.values(), ids=BAD_CACHE)
def test_damaged_cache_is_refused(fake: FakeSet, spoil: Callable[[Path], object]) -> None:
    fake.unpacked().load(cache=True)
    spoil(fake.cache)
    message = fake.refusal(cache=True)
    assert message.startswith(f"{fake.cache}: damaged (")
    assert "delete it and run again" in message
    fake.cache.unlink()
    fake.holds(fake.load(cache=True))


def folder_in_its_place(fake: FakeSet) -> None:
    fake.cache.mkdir()


def folder_in_the_part_files_place(fake: FakeSet) -> None:
    fake.cache.with_suffix(".part").mkdir()


def full_disk(fake: FakeSet) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    fake.cache.with_suffix(".part").symlink_to("/dev/full")


def lock_not_had(fake: FakeSet) -> None:
    fake.cache.with_suffix(".lock").mkdir()


@pytest.mark.parametrize(
    "spoil", [folder_in_its_place, folder_in_the_part_files_place, full_disk, lock_not_had]
)
def test_cache_that_cannot_be_written(fake: FakeSet, spoil: Callable[[FakeSet], None]) -> None:
    spoil(fake.unpacked())
    message = fake.refusal(cache=True)
    assert message.startswith(f"--cache-dataset: cannot write {fake.cache} (")
    assert "--data-path" in message
    assert not fake.cache.is_file()
    assert not [path for path in fake.root.rglob("*.part") if not path.is_dir()]


# The real pictures


@pytest.fixture(scope="module")
def real(pictures_root: Path) -> Splits:
    return fashion_mnist.load("fashion-mnist", pictures_root, download=False)


@pytest.fixture(scope="module")
def unpacked_root(pictures_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy as torchvision needs it; 55 MB, so not left behind."""
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
def test_the_constants_are_the_training_sets(real: Splits) -> None:
    pixels = real.train.columns.numpy() / np.float32(255)
    assert round(float(pixels.mean(dtype=np.float64)), 4) == loader.MEAN
    assert round(float(pixels.std(dtype=np.float64)), 4) == loader.DEVIATION


@pytest.mark.pictures
@pytest.mark.parametrize("part", ["train", "test"])
def test_the_same_as_torchvision(real: Splits, unpacked_root: Path, part: str) -> None:
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
    unpacked = fashion_mnist.load("fashion-mnist", unpacked_root, download=False)
    assert torch.equal(unpacked.train.columns, real.train.columns)
    assert torch.equal(unpacked.test.labels, real.test.labels)


# Holding out


def test_hold_out_takes_each_class_alike_and_the_rest_from_the_first() -> None:
    labels = [i % 10 for i in range(100)]
    splits = hold_out(splits_of(labels), 23, seed=5)
    assert splits.val is not None
    assert splits.val.labels.bincount().tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert splits.train.labels.bincount().tolist() == [7, 7, 7, 8, 8, 8, 8, 8, 8, 8]
    assert origins(splits.test) == [0, 1]


def test_hold_out_parts_the_set() -> None:
    labels = [i // 10 for i in range(100)]
    splits = hold_out(splits_of(labels), 40, seed=5)
    assert splits.val is not None
    train, val = origins(splits.train), origins(splits.val)
    assert sorted(train + val) == list(range(100))
    assert len(val) == 40
    assert splits.train.labels.tolist() == [labels[i] for i in train]
    assert splits.val.labels.tolist() == [labels[i] for i in val]


def test_hold_out_is_a_function_of_the_seed() -> None:
    before = splits_of([i % 10 for i in range(200)])
    held = []
    for seed in (1, 1, 2):
        val = hold_out(before, 50, seed).val
        assert val is not None
        held.append(origins(val))
    assert held[0] == held[1] != held[2]


def test_hold_out_leaves_at_least_one_of_each_class() -> None:
    splits = splits_of([i % 10 for i in range(50)])
    kept = hold_out(splits, 40, seed=0).train
    assert kept.labels.bincount().tolist() == [1] * 10
    for size in (41, 50, 51, 1000):
        with pytest.raises(UsageError, match=rf"--val-size {size}: .*there are 50$"):
            hold_out(splits, size, seed=0)


def test_hold_out_nothing() -> None:
    splits = splits_of([i % 10 for i in range(20)])
    assert hold_out(splits, 0, seed=0) is splits


# Order


def test_epoch_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): epoch_order(50, seed, epoch) for seed in range(3) for epoch in range(3)
    }
    for (seed, epoch), order in orders.items():
        assert order.dtype == torch.int64
        assert order.sort().values.tolist() == list(range(50))
        assert torch.equal(epoch_order(50, seed, epoch), order)
    assert len({tuple(order.tolist()) for order in orders.values()}) == 9
    assert list(range(50)) not in [order.tolist() for order in orders.values()]


def test_epoch_order_has_nothing_to_do_with_global_random_state() -> None:
    orders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
        orders.append(epoch_order(30, 7, 3))
        hold_out(splits_of([i % 10 for i in range(40)]), 10, seed=7)
        assert torch.equal(torch.get_rng_state(), torch_state)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(*orders)
