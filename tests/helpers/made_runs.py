"""Run directories as a run writes them, with the metrics that a test chooses."""

import json
from pathlib import Path
from typing import Any

from rsnn_fmnist import config
from rsnn_fmnist.config import Experiment

MACHINE = {"device_name": "One", "backend": "numba", "threads": 1}


def row(epoch: int, accuracy: float, **others: float) -> dict[str, Any]:
    """An epoch's metrics; training is 5 points better, and the loss is a hundredth of the error."""
    return {
        "epoch": epoch,
        "train_loss": 1 - accuracy / 100,
        "train_acc1": accuracy + 5,
        "test_acc1": accuracy,
        "lr": 0.1,
        "train_images_per_second": 1000.0,
        "test_images_per_second": 2000.0,
        "seconds": 2.0,
        **others,
    }


def make_run(
    folder: Path,
    accuracies: list[float],
    *,
    rows: list[dict[str, Any]] | None = None,
    name: str = "",
    **settings: Any,
) -> Path:
    """A run directory in `folder`, with a test accuracy for each epoch or with these rows."""
    experiment = Experiment(**{"model": "plain", "epochs": len(accuracies), **settings})
    run = folder / (name or config.run_name(experiment))
    run.mkdir(parents=True)
    (run / "config.toml").write_text(config.to_toml(experiment))
    (run / "environment.json").write_text(json.dumps(MACHINE))
    start = experiment.start_epoch
    rows = rows or [row(epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return run
