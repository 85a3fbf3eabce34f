"""What a session is made of: optimizer, schedule, precision; and which epoch is the best."""

from typing import Any

import pytest
import torch

from rsnn_fmnist import models
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.session import Precision, best_row, build_optimizer, build_scheduler


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"lrs": "cosa", "epochs": 4}, [0.1, 0.0853553, 0.05, 0.0146447]),
        ({"lrs": "cosa", "epochs": 4, "cosa_tmax": 2}, [0.1, 0.05, 0.0, 0.05]),
        ({"lrs": "step", "step_size": 2, "step_gamma": 0.5, "epochs": 5}, [0.1, 0.1, 0.05, 0.05]),
        ({"lrs": "none"}, [0.1, 0.1, 0.1]),
    ],
)
def test_schedules(settings: dict[str, Any], rates: list[float]) -> None:
    experiment = Experiment(model="plain", **settings)
    model = models.build("plain")
    optimizer = build_optimizer(list(model.parameters()), experiment)
    scheduler = build_scheduler(optimizer, experiment, 0)
    for epoch, rate in enumerate(rates):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate, abs=1e-7)
        late = build_optimizer(list(model.parameters()), experiment)
        build_scheduler(late, experiment, epoch)
        assert late.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def test_optimizers_are_the_experiments() -> None:
    model = models.build("plain")
    sgd = build_optimizer(
        list(model.parameters()), Experiment(lr=0.5, momentum=0.25, weight_decay=0.125)
    )
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.5, 0.25)
    assert sgd.defaults["weight_decay"] == 0.125
    adam = build_optimizer(
        list(model.parameters()), Experiment(opt="adam", lr=0.5, weight_decay=0.125)
    )
    assert isinstance(adam, torch.optim.Adam)
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.5, 0.125)


def test_precision() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert Precision.of(Experiment(), cuda).dtype is None
    assert Precision.of(Experiment(amp=True), cpu).dtype is torch.bfloat16
    assert Precision.of(Experiment(amp=True), cuda).dtype is torch.float16
    chosen = Precision.of(Experiment(amp=True, amp_dtype="bfloat16"), cuda)
    assert chosen.dtype is torch.bfloat16
    for dtype in ("float16", "bfloat16"):
        precision = Precision.of(Experiment(amp=True, amp_dtype=dtype), cpu)
        assert precision.scaler().is_enabled() == (dtype == "float16")
        with precision.autocast():
            assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype is getattr(torch, dtype)
    with Precision.of(Experiment(), cpu).autocast():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype is torch.float32


def test_the_best_epoch_is_the_first_of_equals() -> None:
    tests, vals = (1.0, 3.0, 3.0, 2.0), (5.0, 4.0, 6.0, 6.0)
    rows = [
        {"epoch": e, "test_acc1": test, "val_acc1": val}
        for e, (test, val) in enumerate(zip(tests, vals, strict=True))
    ]
    assert best_row(Experiment(), rows)["epoch"] == 1
    assert best_row(Experiment(val_size=10), rows)["epoch"] == 2
