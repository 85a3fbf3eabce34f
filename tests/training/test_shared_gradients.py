"""Several processes compute what one computes."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.launch import launched
from helpers.runs import rows
from torch import nn

from rsnn_fmnist import cli, models, run
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.data import splits, synthetic
from rsnn_fmnist.data.loader import Loader, batch_indices
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.errors import RunError, UsageError
from rsnn_fmnist.interrupt import Interrupt
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.session import Progress, Session, open_session
from rsnn_fmnist.storage import checkpoint
from rsnn_fmnist.tracking.diagnostics import Diagnostics
from rsnn_fmnist.training.loop import evaluate
from rsnn_fmnist.training.shared_gradients import refuse_unshareable
from rsnn_fmnist.training.step import Evaluation, training_step
from rsnn_fmnist.world import ALONE, World, processes

CPU = torch.device("cpu")
MODELS = ("plain", "feedback", "stateful-synapse")


def in_processes(size: int, folder: Path, work: Callable[..., Any], *given: Any) -> list[Any]:
    """What `work(world, *given)` returns in each of `size` processes, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torch.multiprocessing.spawn(_process, (size, port, folder, work, given), nprocs=size)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _process(rank: int, size: int, port: str, folder: Path, work: Any, given: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    with processes("cpu") as world:
        result = work(world, *given)
    torch.save(result, folder / f"{rank}.pt")


def synthetic_session(world: World, name: str, graph: bool = True, **settings: Any) -> Session:
    """A session on 2,560 synthetic pictures: 20 batches of 128."""
    torch.manual_seed(1)
    loader = Loader(Pictures.from_images(*synthetic.draw(2560, 1)), CPU)
    experiment = Experiment(model=name, **settings)
    loaders = (loader, None, loader)
    model = models.build(name)
    return open_session(experiment, CPU, model, loaders, graph=graph, world=world)


def twenty_steps(world: World) -> dict[str, Any]:
    """In float64: loss sums after each of 20 steps, and the weights then, by model and step."""
    torch.set_default_dtype(torch.float64)
    found = {}
    for name in MODELS:
        for graph in (True, False):
            session = synthetic_session(world, name, graph)
            sums = Sums(CPU)
            step = training_step(session, sums)
            losses = []
            for batch in batch_indices(torch.arange(2560), 128, drop_last=True):
                step(world.share(batch))
                losses.append(sums.totals[0].item() / 128)
            weights = nn.utils.parameters_to_vector(session.model.parameters())
            found[f"{name}, {graph}"] = (losses, sums.totals.tolist(), weights.detach())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_in_float64_the_losses_are_those_of_one_process(
    tmp_path: Path, size: int, float64: None
) -> None:
    alone = twenty_steps(ALONE)
    for rank, found in enumerate(in_processes(size, tmp_path, twenty_steps)):
        assert found.keys() == alone.keys()
        for kind, (losses, totals, weights) in found.items():
            expected, expected_totals, expected_weights = alone[kind]
            assert len(losses) == 20
            assert losses == pytest.approx(expected, abs=1e-9, rel=0), (rank, kind)
            assert totals[1:] == expected_totals[1:]
            assert totals[3] == 2560
            assert torch.allclose(weights, expected_weights, rtol=0, atol=1e-9)
            assert expected[-1] - expected[-2] < 0.9 * expected[0]  # it has learned something
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(size))
    for kind, (*_, weights) in first.items():
        assert all(torch.equal(other[kind][2], weights) for other in others)


def overflow(world: World) -> list[Any]:
    """A step in which one process's gradients overflow, and one in which none does."""
    session = synthetic_session(world, "plain", amp=True, amp_dtype="float16")
    step = training_step(session, Sums(CPU))
    weight = next(session.model.parameters())
    before = weight.detach().clone()
    spoil = weight.register_hook(lambda g: g * float("inf") if world.rank == 1 else g)
    step(world.share(torch.arange(128)))
    skipped = torch.equal(weight, before)
    spoil.remove()
    step(world.share(torch.arange(128, 256)))
    return [skipped, session.scaler.get_scale(), weight.detach().clone(), before]


@pytest.mark.slow
def test_an_overflow_in_one_process_makes_all_skip_the_step(tmp_path: Path) -> None:
    found = in_processes(2, tmp_path, overflow)
    for skipped, scale, weight, before in found:
        assert skipped
        assert scale == 2**15  # half of what a scaler begins with
        assert not torch.equal(weight, before)
        assert torch.equal(weight, found[0][2])


def evaluation(world: World, root: Path, run_directory: Path) -> tuple[list[float], Any]:
    """A checkpoint's sums over the test pictures, and the diagnostics."""
    content = checkpoint.load(run_directory / "latest.pt")
    experiment = checkpoint.experiment_of(content, run_directory)
    pictures = splits.load("fashion-mnist", root, download=False)
    session = run.build_session(experiment, Machine(), CPU, pictures, world)
    session.model.load_state_dict(content["model"])
    diagnostics = Diagnostics(session, Progress(0, Sums(CPU)), None)
    interrupt = Interrupt()
    interrupt.shared = world.size > 1
    with diagnostics.observing():
        sums, _ = evaluate(session, Evaluation(session, session.test), interrupt)
    return sums.totals.tolist(), diagnostics.scalars() if world.first else None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures_root: Path) -> Path:
    """The directory of a run of one epoch, by one process."""
    folder = tmp_path_factory.mktemp("one")
    assert cli.main(real_epoch(folder, pictures_root)) == 0
    return folder / "run"


def real_epoch(folder: Path, root: Path) -> list[str]:
    flags = "--model feedback --epochs 1 --device cpu --run-name run --quiet --no-download".split()
    return [*flags, "--data-path", str(root), "--output-dir", str(folder)]


@pytest.mark.slow
@pytest.mark.pictures
@pytest.mark.parametrize("size", [2, 3])
def test_an_evaluation_counts_every_picture_once(
    tmp_path: Path, trained: Path, pictures_root: Path, size: int
) -> None:
    alone, inside = evaluation(ALONE, pictures_root, trained)
    found = in_processes(size, tmp_path, evaluation, pictures_root, trained)
    for totals, _ in found:
        assert totals[1:] == alone[1:]
        assert totals[0] == pytest.approx(alone[0], rel=1e-6)
        assert totals[3] == 10_000
    assert alone[1] > 5_000
    assert found[0][1] == inside
    assert 0 < inside["units/firing_rate/sn1"] < 1


@pytest.mark.slow
@pytest.mark.pictures
def test_an_epoch_in_float32_is_close_to_that_of_one_process(
    tmp_path: Path, trained: Path, pictures_root: Path
) -> None:
    words = real_epoch(tmp_path, pictures_root)
    with launched(2, words, ["-m", "rsnn_fmnist"]) as job:
        out, err = job.communicate(timeout=300)
    assert job.returncode == 0, err
    assert len(out.splitlines()) == 3  # the summary, once
    (row,), (expected,) = rows(tmp_path / "run"), rows(trained)
    assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=0.02)
    assert row["train_acc1"] == pytest.approx(expected["train_acc1"], abs=2)
    facts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert facts["processes"] == 2


def test_what_several_processes_cannot_do() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))
    refuse_unshareable(model, 128, ALONE)
    with pytest.raises(RunError, match="the model's 1 computes statistics of a batch"):
        refuse_unshareable(model, 128, World(size=2))
    refuse_unshareable(model[2], 2, World(size=2))
    with pytest.raises(UsageError, match="--batch-size 2: fewer pictures than the 3 processes"):
        refuse_unshareable(model[2], 2, World(size=3))
