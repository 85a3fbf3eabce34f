"""Memory curves: their ends are the ordinary accuracy; points between them are checked directly."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.data import splits
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.interrupt import Interrupt
from rsnn_fmnist.metrics import rate_loss
from rsnn_fmnist.report import measurements, memory_curve
from rsnn_fmnist.session import Session
from rsnn_fmnist.spiking import IF
from rsnn_fmnist.training.loop import evaluate
from rsnn_fmnist.training.step import Evaluation

pytestmark = pytest.mark.usefixtures("small_synthetic")
NAMES = ("plain", "feedback", "stateful-synapse")


def opened(name: str, **settings: Any) -> tuple[Session, Pictures]:
    """A network after a little training on the 200 pictures."""
    experiment = Experiment(model=name, dataset="synthetic", **settings)
    machine = Machine(device="cpu")
    pictures = measurements.test_pictures("synthetic", machine)
    torch.manual_seed(5)
    session = measurements.open_test(experiment, machine, pictures)
    optimizer = torch.optim.Adam(session.model.parameters(), lr=0.02)
    ((x, labels),) = session.test.batches([torch.arange(200)])
    for _ in range(20):
        optimizer.zero_grad()
        rate_loss(session.model(x), labels).backward()
        optimizer.step()
    return session, pictures


def accuracy(session: Session, pictures: Pictures | None = None) -> float:
    loader = session.test
    if pictures is not None:
        loader = Loader(pictures, session.device, normalize=session.experiment.normalize)
    return evaluate(session, Evaluation(session, loader), Interrupt())[0].means()[1]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"normalize": False}, {"amp": True}])
def test_the_ends_are_the_ordinary_accuracy(name: str, settings: dict[str, Any]) -> None:
    session, pictures = opened(name, **settings)
    found = memory_curve.measure_curves(session, pictures)
    assert found.read is not None
    assert (len(found.read), len(found.blanked)) == (28, 29)
    whole = accuracy(session)
    assert found.read[27] == whole
    assert found.blanked[0] == whole
    blank = Pictures(torch.zeros_like(pictures.columns), pictures.labels)
    assert found.blanked[28] == accuracy(session, blank)
    assert len(set(found.read)) > 5
    assert len(set(found.blanked)) > 5


@pytest.mark.parametrize("name", NAMES)
def test_a_point_is_the_accuracy_on_pictures_of_that_many_columns(name: str) -> None:
    """The network runs on pictures that are cut off after t columns."""
    session, _ = opened(name)
    found = memory_curve.after_columns(session)
    ((x, labels),) = session.test.batches([torch.arange(200)])
    for t in (1, 9, 20):
        with torch.no_grad():
            scores = session.model(x[:, :, :t])
        correct = (scores.argmax(1) == labels).sum().item()
        assert found[t - 1] == 100 * correct / 200


def test_blank_columns_are_background_before_normalization() -> None:
    session, pictures = opened("feedback")
    before = pictures.columns.clone()
    columns = pictures.columns.clone()
    columns[:, 0:11, :] = 0
    expected = accuracy(session, Pictures(columns, pictures.labels))
    assert memory_curve.without_columns(session, pictures, 11) == expected
    assert torch.equal(pictures.columns, before)


class LastSteps(nn.Module):
    """Ten neurons at the end, whose spikes are averaged over the last five steps only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.sn = nn.Linear(28, 10), IF()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.sn(self.fc(x.permute(2, 0, 1) * 8))[-5:].mean(0)


def linear_scores() -> nn.Module:
    """Scores that are a linear function of three neurons' rates."""
    return nn.Sequential(
        models.ColumnReader(OrderedDict(fc=nn.Linear(28, 3), sn=IF())), nn.Linear(3, 10)
    )


def without_neurons() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (LastSteps, "its scores are not the mean of its last neurons' spikes"),
        (linear_scores, "its last neurons are not one per class, with one step per column"),
        (without_neurons, "its last neurons are not one per class, with one step per column"),
    ],
)
def test_models_with_other_scores_have_the_second_curve_only(
    build: Any, words: str, capsys: Any
) -> None:
    session, pictures = opened("plain")
    torch.manual_seed(1)
    other = replace(session, model=build())
    found = memory_curve.measure_curves(other, pictures)
    assert found.read is None
    assert found.blanked[0] == accuracy(other)
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning == (
        f"rsnn_fmnist: warning: plain: accuracy after each column is left out: {words}"
    )


@pytest.mark.pictures
def test_on_the_real_pictures(pictures_root: Path) -> None:
    pictures = splits.load("fashion-mnist", pictures_root, download=False).test
    torch.manual_seed(5)
    machine = Machine(device="cpu")
    session = measurements.open_test(Experiment(model="feedback"), machine, pictures)
    found = memory_curve.after_columns(session)
    assert found[27] == accuracy(session)
    assert memory_curve.without_columns(session, pictures, 0) == accuracy(session)
