"""The drawn set: what it shares with FashionMNIST, and what it needs not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rsnn_fmnist.data import fashion_mnist, synthetic

Drawn = tuple[NDArray[np.uint8], NDArray[np.int64]]


@pytest.fixture(scope="module")
def some() -> Drawn:
    return synthetic.draw(2000, 1)


@pytest.fixture(scope="module")
def others() -> Drawn:
    return synthetic.draw(500, 2)


@pytest.mark.parametrize("count", [0, 1, 9, 37, 700])
def test_shapes_and_balance(count: int) -> None:
    pictures, labels = synthetic.draw(count, 3)
    assert (pictures.shape, pictures.dtype) == ((count, 28, 28), np.uint8)
    assert (labels.shape, labels.dtype) == ((count,), np.int64)
    per_class = np.bincount(labels, minlength=10)
    assert len(per_class) == 10
    assert per_class.max() - per_class.min() <= (count % 10 > 0)


def test_decided_by_count_and_seed() -> None:
    np.random.seed(0)
    pictures, labels = synthetic.draw(150, 4)
    np.random.seed(1)
    again, labels_again = synthetic.draw(150, 4)
    np.testing.assert_array_equal(pictures, again)
    np.testing.assert_array_equal(labels, labels_again)

    other, other_labels = synthetic.draw(150, 5)
    assert (labels != other_labels).any()
    everyone = np.concatenate([pictures, other]).reshape(300, -1)
    assert len(np.unique(everyone, axis=0)) == 300  # no picture twice, in a set or across


def test_leaves_global_random_state_alone() -> None:
    before = np.random.get_state()[1].copy()
    torch_before = torch.get_rng_state()
    synthetic.draw(20, 0)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_classes_come_in_random_order(some: Drawn) -> None:
    _, labels = some
    repeats = (labels[1:] == labels[:-1]).mean()
    assert 0.05 < repeats < 0.15  # 0.1 expected; 1 or 0 if sorted or dealt in turn


def test_no_blank_picture(some: Drawn) -> None:
    pictures, _ = some
    assert (pictures.max((1, 2)) > 64).all()
    assert ((pictures > 0).sum((1, 2)) > 60).all()


def test_pixels_are_spread_as_fashion_mnists(some: Drawn) -> None:
    pixels = some[0] / 255
    assert pixels.mean() == pytest.approx(0.2860, rel=0.25)
    assert pixels.std() == pytest.approx(0.3530, rel=0.25)


def test_learnable_but_not_trivial(some: Drawn, others: Drawn) -> None:
    """The nearest class mean: a weak reader, right far more often than 1 in 10."""
    (pictures, labels), (unseen, true_labels) = some, others
    means = np.stack([pictures[labels == k].reshape(-1, 784).mean(0) for k in range(10)])
    distances = ((unseen.reshape(-1, 1, 784) - means) ** 2).sum(-1)
    right = distances.argmin(1) == true_labels
    assert 0.5 < right.mean() < 0.9
    per_class = np.array([right[true_labels == k].mean() for k in range(10)])
    assert (per_class > 0.2).all()  # no class is beyond it


def test_names_of_the_classes() -> None:
    assert len(synthetic.CLASSES) == fashion_mnist.CLASSES
    assert synthetic.CLASSES[0] == "T-shirt/top"
    assert synthetic.CLASSES[9] == "ankle boot"


@pytest.mark.parametrize("name", ["sneaker", "sandal"])
def test_toes_point_left(name: str) -> None:
    """As FashionMNIST's do: a shoe is higher at the right than at the left."""
    pictures, labels = synthetic.draw(400, 6)
    shoe = pictures[labels == synthetic.CLASSES.index(name)].mean(0)  # [R, C]
    rows = np.arange(28)[:, None]
    left, right = ((rows * half).sum() / half.sum() for half in (shoe[:, 2:10], shoe[:, 18:26]))
    assert right < left - 1  # row 0 is at the top


def test_load_needs_no_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fashion_mnist, "SYNTHETIC", {"train": (60, 1), "test": (20, 2)})
    nowhere = tmp_path / "nowhere"
    splits = fashion_mnist.load("synthetic", nowhere, download=True, cache=True)
    assert not nowhere.exists()
    assert splits.val is None
    for part, count, seed in ((splits.train, 60, 1), (splits.test, 20, 2)):
        pictures, labels = synthetic.draw(count, seed)
        np.testing.assert_array_equal(part.columns.numpy(), pictures.transpose(0, 2, 1))
        np.testing.assert_array_equal(part.labels.numpy(), labels)
        assert (part.columns.dtype, part.labels.dtype) == (torch.uint8, torch.int64)


def test_load_draws_sets_of_fashion_mnists_size_from_two_seeds() -> None:
    (train, train_seed), (test, test_seed) = (
        fashion_mnist.SYNTHETIC["train"],
        fashion_mnist.SYNTHETIC["test"],
    )
    assert (train, test) == (60_000, 10_000)
    assert train_seed != test_seed
