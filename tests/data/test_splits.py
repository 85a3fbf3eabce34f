"""Loading a dataset by its name, holding out pictures, and the order of an epoch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fake_set import FakeSet

from rsnn_fmnist.data import splits, synthetic
from rsnn_fmnist.data.pictures import Pictures, Splits
from rsnn_fmnist.data.splits import epoch_order, hold_out
from rsnn_fmnist.errors import UsageError


def set_of(labels: list[int]) -> Pictures:
    """A set in which every pixel of picture i is i, so that a picture shows where it came from."""
    columns = torch.arange(len(labels), dtype=torch.uint8)[:, None, None].expand(-1, 28, 28)
    return Pictures(columns.contiguous(), torch.tensor(labels))


def splits_of(labels: list[int]) -> Splits:
    return Splits(set_of(labels), None, set_of([0, 1]))


def origins(pictures: Pictures) -> list[int]:
    return pictures.columns[:, 0, 0].tolist()


def test_fashion_mnist_is_read_below_the_root(fake: FakeSet) -> None:
    fake.unpacked()
    fake.check(splits.load("fashion-mnist", fake.root, download=False))


def test_the_synthetic_set_needs_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(splits, "SYNTHETIC", {"train": (60, 1), "test": (20, 2)})
    nowhere = tmp_path / "nowhere"
    loaded = splits.load("synthetic", nowhere, download=True)
    assert not nowhere.exists()
    assert loaded.val is None
    for part, count, seed in ((loaded.train, 60, 1), (loaded.test, 20, 2)):
        pictures, labels = synthetic.draw(count, seed)
        np.testing.assert_array_equal(part.columns.numpy(), pictures.transpose(0, 2, 1))
        np.testing.assert_array_equal(part.labels.numpy(), labels)
        assert (part.columns.dtype, part.labels.dtype) == (torch.uint8, torch.int64)


def test_the_synthetic_set_is_as_large_as_fashion_mnist_and_has_two_seeds() -> None:
    (train, train_seed), (test, test_seed) = splits.SYNTHETIC["train"], splits.SYNTHETIC["test"]
    assert (train, test) == (60_000, 10_000)
    assert train_seed != test_seed


def test_hold_out_takes_equal_shares_and_the_remainder_from_the_first_classes() -> None:
    labels = [i % 10 for i in range(100)]
    parts = hold_out(splits_of(labels), 23, seed=5)
    assert parts.val is not None
    assert parts.val.labels.bincount().tolist() == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert parts.train.labels.bincount().tolist() == [7, 7, 7, 8, 8, 8, 8, 8, 8, 8]
    assert origins(parts.test) == [0, 1]


def test_hold_out_moves_pictures_and_loses_none() -> None:
    labels = [i // 10 for i in range(100)]
    parts = hold_out(splits_of(labels), 40, seed=5)
    assert parts.val is not None
    train, val = origins(parts.train), origins(parts.val)
    assert sorted(train + val) == list(range(100))
    assert len(val) == 40
    assert parts.train.labels.tolist() == [labels[i] for i in train]
    assert parts.val.labels.tolist() == [labels[i] for i in val]


def test_hold_out_depends_on_the_seed_only() -> None:
    before = splits_of([i % 10 for i in range(200)])
    held = []
    for seed in (1, 1, 2):
        val = hold_out(before, 50, seed).val
        assert val is not None
        held.append(origins(val))
    assert held[0] == held[1] != held[2]


def test_hold_out_leaves_at_least_one_of_each_class() -> None:
    parts = splits_of([i % 10 for i in range(50)])
    kept = hold_out(parts, 40, seed=0).train
    assert kept.labels.bincount().tolist() == [1] * 10
    for size in (41, 50, 51, 1000):
        with pytest.raises(UsageError, match=rf"--val-size {size}: .*there are 50$"):
            hold_out(parts, size, seed=0)


def test_hold_out_of_no_pictures_changes_nothing() -> None:
    parts = splits_of([i % 10 for i in range(20)])
    assert hold_out(parts, 0, seed=0) is parts


def test_epoch_order_is_a_permutation_that_seed_and_epoch_determine() -> None:
    orders = {
        (seed, epoch): epoch_order(50, seed, epoch) for seed in range(3) for epoch in range(3)
    }
    for (seed, epoch), order in orders.items():
        assert order.dtype == torch.int64
        assert order.sort().values.tolist() == list(range(50))
        assert torch.equal(epoch_order(50, seed, epoch), order)
    assert len({tuple(order.tolist()) for order in orders.values()}) == 9
    assert list(range(50)) not in [order.tolist() for order in orders.values()]


def test_neither_reads_nor_changes_global_random_state() -> None:
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
