"""A session small enough for a checkpoint to be written and read in a moment."""

from typing import Any

import torch

from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.models import build
from rsnn_fmnist.session import Best, Progress, Session, open_session

CPU = torch.device("cpu")


def small_session(**settings: Any) -> Session:
    """Feedback with Adam on eight blank pictures, after one step."""
    experiment = Experiment(model="feedback", opt="adam", batch_size=1, **settings)
    pictures = Pictures(torch.zeros(8, 28, 28, dtype=torch.uint8), torch.arange(8))
    torch.manual_seed(settings.get("seed", 0))
    loader = Loader(pictures, CPU)
    session = open_session(experiment, CPU, build("feedback"), (loader, None, loader))
    session.model(torch.rand(4, 28, 28) * 3).sum().backward()
    session.optimizer.step()
    return session


def small_progress(session: Session) -> Progress:
    """After seven batches of epoch 1."""
    sums = Sums(CPU)
    sums.totals.copy_(torch.tensor([0.5, 1, 2, 3]))
    row = {"epoch": 0, "test_acc1": 12.5, "seconds": 1.0}
    best = Best(0, 12.5, {n: t.clone() for n, t in session.model.state_dict().items()})
    return Progress(1, sums, 7, 2.5, [row], best)
