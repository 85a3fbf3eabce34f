"""Several processes compute what one computes, stop together, and resume in any number.

Numbers are compared in processes of torch.multiprocessing; what a person meets, in torchrun's.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ENVIRONMENT, PROGRAM
from test_tracking import points
from torch import nn

from rsnn_fmnist import cli, models, run
from rsnn_fmnist.config import Experiment, Machine
from rsnn_fmnist.data import fashion_mnist, synthetic
from rsnn_fmnist.data.loader import Loader, batch_indices
from rsnn_fmnist.errors import RunError, UsageError
from rsnn_fmnist.interrupt import BROKEN_PIPE, Interrupt, InterruptedRunError
from rsnn_fmnist.session import Progress, Session, open_session
from rsnn_fmnist.storage import checkpoint, provenance
from rsnn_fmnist.tracking.diagnostics import Insight
from rsnn_fmnist.training.loop import evaluate
from rsnn_fmnist.training.step import Sums, training_step
from rsnn_fmnist.world import World, processes, refuse

BENCHMARK = Path(__file__).parents[1] / "scripts" / "benchmark_processes.py"

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


@contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def drawn_session(world: World, name: str, whole_step: bool = True, **settings: Any) -> Session:
    """A session on 2,560 drawn pictures: 20 batches of 128."""
    torch.manual_seed(1)
    loader = Loader(fashion_mnist._pictures(*synthetic.draw(2560, 1)), CPU)
    experiment = Experiment(model=name, **settings)
    loaders = (loader, None, loader)
    model = models.build(name)
    return open_session(experiment, CPU, model, loaders, whole_step=whole_step, world=world)


def twenty_steps(world: World) -> dict[str, Any]:
    """Loss sums after each of 20 steps, and the weights then, by model and kind of step."""
    found = {}
    with float64():
        for name in MODELS:
            for whole_step in (True, False):
                session = drawn_session(world, name, whole_step)
                sums = Sums(CPU)
                step = training_step(session, sums)
                losses = []
                for batch in batch_indices(torch.arange(2560), 128, drop_last=True):
                    step((world.share(batch),))
                    losses.append(sums.totals[0].item() / 128)
                weights = nn.utils.parameters_to_vector(session.model.parameters())
                found[f"{name}, {whole_step}"] = (losses, sums.totals.tolist(), weights.detach())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_in_float64_the_losses_are_those_of_one_process(tmp_path: Path, size: int) -> None:
    alone = twenty_steps(World())
    for rank, found in enumerate(in_processes(size, tmp_path, twenty_steps)):
        assert found.keys() == alone.keys()
        for kind, (losses, totals, weights) in found.items():
            expected, expected_totals, expected_weights = alone[kind]
            assert len(losses) == 20
            assert losses == pytest.approx(expected, abs=1e-9, rel=0), (rank, kind)
            assert totals[1:] == expected_totals[1:]
            assert totals[3] == 2560
            assert torch.allclose(weights, expected_weights, rtol=0, atol=1e-9)
            assert expected[-1] - expected[-2] < 0.9 * expected[0]  # it has learnt something
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(size))
    for kind, (*_, weights) in first.items():
        assert all(torch.equal(other[kind][2], weights) for other in others)


def overflow(world: World) -> list[Any]:
    """A step in which one process's gradients overflow, and one in which none does."""
    session = drawn_session(world, "plain", amp=True, amp_dtype="float16")
    step = training_step(session, Sums(CPU))
    weight = next(session.model.parameters())
    before = weight.detach().clone()
    spoil = weight.register_hook(lambda g: g * float("inf") if world.rank == 1 else g)
    step((world.share(torch.arange(128)),))
    skipped = torch.equal(weight, before)
    spoil.remove()
    step((world.share(torch.arange(128, 256)),))
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
    """A checkpoint's sums over the test pictures, and what is seen inside."""
    content = checkpoint.load(run_directory / "latest.pt")
    experiment = checkpoint.experiment_of(content, run_directory)
    splits = fashion_mnist.load("fashion-mnist", root, download=False)
    session = run.build_session(experiment, Machine(), CPU, splits, world)
    session.model.load_state_dict(content["model"])
    insight = Insight(session, Progress(0, Sums(CPU)), None)
    interrupt = Interrupt()
    interrupt.shared = world.size > 1
    with insight.looking():
        sums, _ = evaluate(session, session.test, interrupt)
    return sums.totals.tolist(), insight.scalars() if world.first else None


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
    alone, inside = evaluation(World(), pictures_root, trained)
    found = in_processes(size, tmp_path, evaluation, pictures_root, trained)
    for totals, _ in found:
        assert totals[1:] == alone[1:]
        assert totals[0] == pytest.approx(alone[0], rel=1e-6)
        assert totals[3] == 10_000
    assert alone[1] > 5_000
    assert found[0][1] == inside
    assert 0 < inside["firing_rate/sn1"] < 1


def torchrun(size: int, program: list[str]) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*launcher, "--nproc-per-node", str(size), *program]


def launched(size: int, words: list[str], program: list[str] = PROGRAM[1:]) -> Any:
    return subprocess.Popen(
        torchrun(size, [*program, *words]),
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows(directory: Path) -> list[Any]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.pictures
def test_an_epoch_in_float32_is_one_process_s(
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


def pid_of(rank: int, job: Any) -> int:
    """The process of that rank among the launcher's children."""
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in Linux's /proc")
@pytest.mark.parametrize(
    ("signum", "size", "others"), [(signal.SIGKILL, 3, 2), (signal.SIGTERM, 2, 3)]
)
def test_a_job_that_loses_a_process_goes_on_with_another_number(
    tmp_path: Path, signum: int, size: int, others: int
) -> None:
    """The last process gets the signal."""
    flags = "--model plain --dataset synthetic --device cpu -b 64 --lr 0.01 --epochs 100 --tb"
    words = [*flags.split(), "--run-name", "run", "--output-dir", str(tmp_path)]
    words += ["--resume", "auto", "--checkpoint-every", "0.1"]
    directory = tmp_path / "run"
    with launched(size, words) as job:
        deadline = time.monotonic() + 200
        while not (directory / "latest.pt").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(pid_of(size - 1, job), signum)
        out, err = job.communicate(timeout=60)
    assert job.returncode != 0
    assert ("stopped by SIGTERM" in out) == (signum == signal.SIGTERM)
    assert err.count("Traceback") == 1  # torchrun's own
    done = checkpoint.load(directory / "latest.pt")["epoch"]
    assert [row["epoch"] for row in rows(directory)] == list(range(done))
    assert done < 100
    with launched(others, words) as job:
        out, err = job.communicate(timeout=200)
    assert job.returncode == 0, err
    assert f"from epoch {done}" in out
    assert [row["epoch"] for row in rows(directory)] == list(range(100))
    assert [epoch for epoch, _ in points(directory / "tb")["train_loss"]] == list(range(100))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--modle plain", "did you mean --model?"),
        ("--model plain --dataset synthetic -b 1", "fewer pictures than the 2 processes"),
        ("--resume {folder}", "holds no checkpoint of a run"),
    ],
)
def test_a_mistake_is_told_once(tmp_path: Path, flags: str, message: str) -> None:
    with launched(2, flags.format(folder=tmp_path).split()) as job:
        _out, err = job.communicate(timeout=120)
    assert job.returncode == 1  # torchrun's
    told = [line for line in err.splitlines() if line.startswith("rsnn_fmnist: ")]
    assert len(told) == 1, err
    assert message in told[0]
    code = 2 if "see --help" in told[0] else 1
    codes = [line.split()[2] for line in err.splitlines() if "exitcode  :" in line]
    assert codes == [str(code)] * 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_benchmark_of_processes_runs() -> None:
    words = "--processes 1 2 --hidden 8 -b 64 --rounds 1 --seconds 0.1 --model plain".split()
    done = subprocess.run([sys.executable, str(BENCHMARK), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (line.split() for line in done.stdout.splitlines()[-2:])
    assert one[:4] == ["plain", "8", "64", "1"]
    assert one[6] == "1.00"
    assert two[:4] == ["plain", "8", "64", "2"]
    images_per_second, sum_ms, sum_kib = (float(two[i].replace(",", "")) for i in (4, 8, 9))
    assert images_per_second > 0
    assert sum_ms > 0
    assert sum_kib == pytest.approx((39 * 8 + 10 + 7) * 4 / 1024, abs=0.05)  # README's P + 7


def test_the_benchmark_of_processes_compares_with_one() -> None:
    benchmark = runpy.run_path(str(BENCHMARK))
    case, table = benchmark["Case"], benchmark["table"]
    two = {"images_per_second": 3000.0, "sum_seconds": 0.002, "sum_bytes": 2048.0}
    answers = {
        case(1, 8, 64, "plain", 1.0): [{"images_per_second": r} for r in (1000.0, 2000.0, 4000.0)],
        case(2, 8, 64, "plain", 1.0): [two],
    }
    one_line, two_line = (line.split() for line in table(answers).splitlines()[1:])
    assert one_line == ["plain", "8", "64", "1", "2,000", "1,000-4,000", "1.00", "32.00"]
    expected = ["plain", "8", "64", "2", "3,000", "3,000-3,000", "1.50", "21.33", "2.00", "2.0"]
    assert two_line == expected


@pytest.mark.parametrize("count", [0, 1, 2, 7, 128])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 130])
def test_shares_make_the_whole(count: int, size: int) -> None:
    indices = torch.arange(count)
    shares = [World(rank, size).share(indices) for rank in range(size)]
    assert torch.equal(torch.cat(shares), indices)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_world_is_torchrun_s(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert World.of_environment() == World(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    assert World.of_environment() == World(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert World.of_environment() == World(5, 8, 1)
    assert not World.of_environment().first


def test_alone_nothing_is_exchanged() -> None:
    world = World()
    assert world.on_first(lambda: 3) == world.on_all(lambda: 3) == 3
    assert world.gather("x") == ["x"]
    model, sums = nn.Linear(2, 2), Sums(CPU)
    sums.totals += 2
    state, weight = torch.get_rng_state(), model.weight.clone()
    world.begin(model)
    world.complete(sums, Interrupt())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.weight, weight)
    assert sums.totals.tolist() == [2] * 4


def test_what_several_processes_cannot_do() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784), nn.Linear(784, 10))
    refuse(model, 128, World())
    with pytest.raises(RunError, match="the model's 1 takes statistics of a batch"):
        refuse(model, 128, World(size=2))
    refuse(model[2], 2, World(size=2))
    with pytest.raises(UsageError, match="--batch-size 2: fewer pictures than the 3 processes"):
        refuse(model[2], 2, World(size=3))


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(provenance, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert provenance.own_device("cuda", World(5, 8, 1)) == torch.device("cuda:1")
    assert taken == [1]
    assert provenance.own_device("cpu", World(5, 8, 3)) == CPU
    assert provenance.own_device("cuda:1", World()) == torch.device("cuda:1")
    with pytest.raises(UsageError, match="--device cuda:1: each process takes a GPU of its own"):
        provenance.own_device("cuda:1", World(1, 2, 1))
    with pytest.raises(RunError, match="there are 2 CUDA GPUs"):
        provenance.own_device("cuda", World(2, 3, 2))


def test_a_signal_counts_when_all_have_heard_of_it() -> None:
    with Interrupt() as interrupt:
        interrupt.shared = True
        signal.raise_signal(signal.SIGTERM)
        interrupt.check()
        assert interrupt.flags() == [0, 1, 0]
        interrupt.hear([0, 0, 0])
        interrupt.check()
        interrupt.hear([0, 2, 1])
        with pytest.raises(InterruptedRunError, match="SIGTERM"):
            interrupt.check()


def test_a_reader_that_has_gone_is_noted_for_all() -> None:
    interrupt = Interrupt()
    with pytest.raises(InterruptedRunError), interrupt.noting():
        raise InterruptedRunError(BROKEN_PIPE)
    interrupt.shared = True
    with interrupt.noting():
        raise InterruptedRunError(BROKEN_PIPE)
    assert interrupt.flags() == [0, 0, 1]
