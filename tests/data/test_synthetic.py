"""The synthetic set: balanced, repeatable, and similar to FashionMNIST where that matters."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from rsnn_fmnist.data import synthetic
from rsnn_fmnist.data.pictures import CLASS_NAMES, CLASSES

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


def test_count_and_seed_determine_the_set() -> None:
    np.random.seed(0)
    pictures, labels = synthetic.draw(150, 4)
    np.random.seed(1)
    again, labels_again = synthetic.draw(150, 4)
    np.testing.assert_array_equal(pictures, again)
    np.testing.assert_array_equal(labels, labels_again)

    other, other_labels = synthetic.draw(150, 5)
    assert (labels != other_labels).any()
    both = np.concatenate([pictures, other]).reshape(300, -1)
    assert len(np.unique(both, axis=0)) == 300  # no picture twice, in a set or across


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


def test_mean_and_deviation_are_near_fashion_mnists(some: Drawn) -> None:
    pixels = some[0] / 255
    assert pixels.mean() == pytest.approx(0.2860, rel=0.25)
    assert pixels.std() == pytest.approx(0.3530, rel=0.25)


def test_learnable_but_not_trivial(some: Drawn, others: Drawn) -> None:
    """The nearest class mean, a weak classifier, is right far more often than 1 in 10."""
    (pictures, labels), (unseen, true_labels) = some, others
    means = np.stack([pictures[labels == k].reshape(-1, 784).mean(0) for k in range(10)])
    distances = ((unseen.reshape(-1, 1, 784) - means) ** 2).sum(-1)
    right = distances.argmin(1) == true_labels
    assert 0.5 < right.mean() < 0.9
    per_class = np.array([right[true_labels == k].mean() for k in range(10)])
    assert (per_class > 0.2).all()  # every class can be recognized


def test_class_names() -> None:
    assert len(CLASS_NAMES) == CLASSES == 10
    assert CLASS_NAMES[0] == "T-shirt/top"
    assert CLASS_NAMES[9] == "ankle boot"


@pytest.mark.parametrize("name", ["sneaker", "sandal"])
def test_toes_point_left(name: str) -> None:
    """As in FashionMNIST: a shoe is higher at the right than at the left."""
    pictures, labels = synthetic.draw(400, 6)
    shoe = pictures[labels == CLASS_NAMES.index(name)].mean(0)  # [R, C]
    rows = np.arange(28)[:, None]
    left, right = ((rows * half).sum() / half.sum() for half in (shoe[:, 2:10], shoe[:, 18:26]))
    assert right < left - 1  # row 0 is at the top
