"""What benchmark.py measures, and how each figure is taken: a contestant a function.

Also the program of its workers: `python benchmark_contestants.py TASK` does one task, given as
JSON, in a process of its own and in the environment of the package it measures. So this file
imports nothing but the standard library on top; torch, this project and its peers are imported by
the functions that measure them. A contestant on another device is another entry of CONTESTANTS.
"""

import contextlib
import io
import itertools
import json
import os
import re
import resource
import runpy
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # the checkout: what is measured, installed or not
MODELS = ("plain", "feedback", "stateful-synapse")
TEST_PICTURES = 1_000  # the tutorial's script evaluates on them; that is not measured
WARM_UP_STEPS = 5  # at least; the first ones may compile, or be captured


@dataclass(frozen=True)
class Peer:
    """Someone else's package in an environment of its own."""

    python: str  # where the environment is looked for, from the checkout's root
    version: str  # of spikingjelly: what it must begin with
    packages: str
    build: str = ""  # environment and flags of a second call of pip, for what has to be compiled

    def install(self) -> str:
        folder = Path(self.python).parents[1]
        line = f"python3 -m venv {folder} && {self.python} -m pip install {self.packages}"
        if self.build:
            variable, flags = self.build.split(maxsplit=1)
            line += f" && {variable} {self.python} -m pip install {flags}"
        return line


PEERS = {
    "tutorial": Peer(
        ".peers/tutorial/bin/python",
        "0.0.0.0.12",
        "torch torchvision tensorboard spikingjelly==0.0.0.0.12",
    ),
    "spikingjelly2": Peer(
        ".peers/spikingjelly2/bin/python", "2.", "torch torchvision spikingjelly==2.0.0"
    ),
    "spikingjelly2-native": Peer(
        ".peers/spikingjelly2-native/bin/python",
        "2.",
        "torch torchvision setuptools",
        "SJ_BUILD_NATIVE_CUDA=1 --no-build-isolation --no-binary spikingjelly spikingjelly==2.0.0",
    ),
}


@dataclass(frozen=True)
class Case:
    """What one worker measures once."""

    contestant: str
    model: str
    threads: int | None  # None: as many as the program itself chooses
    root: str  # the torchvision root of the pictures
    seconds: float
    batch: int = 128
    hidden: int = 32
    steps: int = 28  # T


@dataclass(frozen=True)
class Contestant:
    """Something to measure: a runner (Case -> images/s) and how it is set."""

    label: str
    run: Callable[[Case], float]
    how: str
    peer: str | None = None  # whose environment it runs in; None: this one
    models: tuple[str, ...] = MODELS
    threads: tuple[int | None, ...] = ()  # (): those of --threads
    device: str = "cpu"
    backend: str = "auto"  # its own name for what runs the neurons
    amp: bool = False
    graph: bool = True


def throughput(
    steps: Iterator[int], seconds: float, wait: Callable[[], object] = lambda: None
) -> float:
    """Images/s of a loop that yields the images of each step, after a warm-up of seconds / 3.

    wait: returns when the device has done the work so far.
    """
    start, taken = time.perf_counter(), 0
    while taken < WARM_UP_STEPS or time.perf_counter() - start < seconds / 3:
        next(steps)
        taken += 1
    wait()
    images, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        images += next(steps)
    wait()
    return images / (time.perf_counter() - start)


def read_pictures(root: str) -> tuple[Any, Any]:
    """The training pictures, uint8 [M, H, W], and labels, int64 [M]."""
    import numpy as np
    import torch

    raw = Path(root, "FashionMNIST", "raw")
    images = np.fromfile(raw / "train-images-idx3-ubyte", np.uint8, offset=16)
    labels = np.fromfile(raw / "train-labels-idx1-ubyte", np.uint8, offset=8)
    return torch.from_numpy(images.reshape(-1, 28, 28)), torch.from_numpy(labels.astype(np.int64))


def run_ours(case: Case) -> float:
    """This project's loader, session and training step, as training.loop.train_epoch uses them."""
    import torch

    from rsnn_fmnist import device
    from rsnn_fmnist.config import Experiment, Machine
    from rsnn_fmnist.data.loader import batch_indices
    from rsnn_fmnist.data.pictures import Pictures, Splits
    from rsnn_fmnist.data.splits import epoch_order
    from rsnn_fmnist.metrics import Sums
    from rsnn_fmnist.run import build_session
    from rsnn_fmnist.training.step import training_step

    contestant = CONTESTANTS[case.contestant]
    machine = Machine(
        device=contestant.device,
        backend=contestant.backend,
        threads=case.threads or 1,
        graph=contestant.graph,
        download=False,
    )
    device.configure(machine)
    images, labels = read_pictures(case.root)
    columns = images.transpose(1, 2).repeat(1, -(-case.steps // 28), 1)[:, : case.steps]
    pictures = Pictures(columns.contiguous(), labels)
    session = build_session(
        Experiment(model=case.model, hidden=case.hidden, batch_size=case.batch, amp=contestant.amp),
        machine,
        torch.device(contestant.device),
        Splits(pictures, None, pictures.subset(torch.arange(1))),
    )
    session.model.train()
    sums = Sums(session.device)
    step = training_step(session, sums)

    def steps() -> Iterator[int]:
        for epoch in itertools.count():
            order = epoch_order(len(session.train), session.experiment.seed, epoch)
            batches = batch_indices(order.to(session.device), case.batch, drop_last=True)
            for selection in session.train.selections(batches):
                step(selection)
                yield case.batch

    return throughput(steps(), case.seconds, sums.wait)


def resident_steps(case: Case, network: Any, forget: Callable[[], object]) -> Iterator[int]:
    """Train a peer's network [T, N, H] -> scores [N, 10] on resident, normalized pictures."""
    import torch
    from torch.nn import functional

    torch.manual_seed(2020)
    device = CONTESTANTS[case.contestant].device
    network.to(device)
    images, labels = (x.to(device) for x in read_pictures(case.root))
    pictures = (images / 255 - 0.2860) / 0.3530  # [M, H, W]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    while True:
        for batch in torch.split(torch.randperm(len(labels), device=device), case.batch):
            if len(batch) < case.batch:
                break
            scores = network(pictures[batch].permute(2, 0, 1))  # [N, H, W] -> [T = W, N, H]
            loss = functional.mse_loss(scores, functional.one_hot(labels[batch], 10).float())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            forget()
            yield len(batch)


def wait_for(case: Case) -> Callable[[], object]:
    """What returns when the contestant's device has done its work."""
    import torch

    cuda = CONTESTANTS[case.contestant].device == "cuda"
    return torch.cuda.synchronize if cuda else lambda: None


def run_lstm(case: Case) -> float:
    """One LSTM layer, its outputs averaged over T, and a linear layer."""
    import torch
    from torch import Tensor, nn

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(28, case.hidden)
            self.scores = nn.Linear(case.hidden, 10)

        def forward(self, x_seq: Tensor) -> Tensor:
            y_seq, _ = self.lstm(x_seq)
            scores: Tensor = self.scores(y_seq.mean(0))
            return scores

    torch.set_num_threads(case.threads or 1)
    steps = resident_steps(case, Network(), lambda: None)
    return throughput(steps, case.seconds, wait_for(case))


def run_spikingjelly2(case: Case) -> float:
    """The same three networks from spikingjelly's own layers; its CPU neurons are torch's."""
    os.environ["SJ_IF_CUDA_IMPLEMENTATION"] = CONTESTANTS[case.contestant].backend
    import torch
    from spikingjelly.activation_based import (  # type: ignore[import-not-found]
        functional,
        layer,
        neuron,
        surrogate,
    )
    from torch import Tensor, nn

    def spikes(step_mode: str = "m") -> Any:
        slope = surrogate.ATan()
        return neuron.IFNode(surrogate_function=slope, detach_reset=True, step_mode=step_mode)

    def hidden_layers() -> list[Any]:
        if case.model == "feedback":
            width = case.hidden
            return [layer.LinearRecurrentContainer(spikes("s"), width, width, step_mode="m")]
        if case.model == "stateful-synapse":
            return [spikes(), layer.SynapseFilter(tau=2.0, learnable=True, step_mode="m")]
        return [spikes()]

    class Rates(nn.Module):
        def forward(self, s_seq: Tensor) -> Tensor:
            return s_seq.mean(0)

    torch.set_num_threads(case.threads or 1)
    network = nn.Sequential(
        nn.Linear(28, case.hidden), *hidden_layers(), nn.Linear(case.hidden, 10), spikes(), Rates()
    )
    steps = resident_steps(case, network, lambda: functional.reset_net(network))
    return throughput(steps, case.seconds, wait_for(case))


def run_tutorial(case: Case) -> float:
    """What `python -m` does with the tutorial's script; it prints its own throughput."""
    script = "spikingjelly.clock_driven.examples.rsnn_sequential_fmnist"
    flags = f"--model {case.model} --device cpu -j 2 --epochs 1 --batch-size {case.batch}"
    folders = ["--data-path", case.root, "--output-dir", str(Path(case.root, "logs"))]
    sys.argv = [script, *flags.split(), *folders]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_module(script, run_name="__main__")
    found = re.search(r"^Train: .*samples/s=([\d.]+)", printed.getvalue(), re.MULTILINE)
    if not found:
        raise RuntimeError("the tutorial's script printed no training throughput")
    return float(found[1])


def measure(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """Measure cases, one after the other in this process -> images/s of each, peak memory."""
    rates = [CONTESTANTS[c["contestant"]].run(Case(**c)) for c in cases]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return {"images_per_second": rates, "peak_mib": peak / unit}


def prepare(device: str, dataset: str, data_path: str, root: str, count: int) -> dict[str, Any]:
    """Write the pictures where every contestant reads them, unpacked -> the machine's facts."""
    from rsnn_fmnist.config import Machine
    from rsnn_fmnist.data import splits, synthetic
    from rsnn_fmnist.device import choose_device
    from rsnn_fmnist.storage import provenance

    chosen = choose_device(device)
    wanted = {"train": ("train", count), "test": ("t10k", TEST_PICTURES)}
    raw = Path(root, "FashionMNIST", "raw")
    raw.mkdir(parents=True)
    if dataset == "fashion-mnist":
        loaded = splits.load(dataset, Machine(data_path=data_path).data_root())
    for part, (stem, size) in wanted.items():
        if dataset == "fashion-mnist":
            pictures = getattr(loaded, part)
            images = pictures.columns[:size].transpose(1, 2).contiguous().numpy()
            labels = pictures.labels[:size].numpy()
        else:
            images, labels = synthetic.draw(size, splits.SYNTHETIC[part][1])
        header = struct.pack(">II", 0x803, size) + struct.pack(">II", 28, 28)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        header = struct.pack(">II", 0x801, size)
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels.astype("u1").tobytes())
    facts = provenance.describe(chosen, "per contestant")
    left_out = {"backend", "threads", *(["device_name"] if device == "cpu" else [])}
    return {name: fact for name, fact in facts.items() if name not in left_out}


def peak() -> dict[str, Any]:
    """GFLOP/s of one core: multiply-adds on vectors that stay in the first cache, best of 20.

    16 sums at once hide the latency of a multiply-add on any processor.
    """
    import numpy as np
    from numba import njit

    from rsnn_fmnist.spiking.kernels.cpu import tiles

    rows, columns, count = 4, 4, 200_000

    @njit  # type: ignore[untyped-decorator]
    def run(a: Any, b: Any, out: Any) -> None:
        n = tiles.VECTOR
        tiles.outer_tile(rows, columns, a, 0, n, 0, b, 0, n, 0, count, 1, out, 0, columns)

    a, b = np.ones((2, max(rows, columns) * tiles.VECTOR), np.float32)
    seconds = []
    for _ in range(21):  # the first one compiles
        start = time.perf_counter()
        run(a, b, np.zeros(rows * columns, np.float32))
        seconds.append(time.perf_counter() - start)
    return {"gflops": 2e-9 * rows * columns * tiles.VECTOR * count / min(seconds)}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "measure": measure,
    "peak": peak,
    "prepare": prepare,
}


def work(task: str) -> int:
    """Do one task, given as JSON, and print its result as the last line."""
    sys.path.insert(0, str(ROOT))
    request = json.loads(task)
    try:
        result = TASKS[request["task"]](**request["arguments"])
    except Exception as error:  # the parent prints it in one line
        print(f"{error}" or type(error).__name__, file=sys.stderr)
        return int(getattr(error, "exit_code", 1))
    print(json.dumps(result))
    return 0


OURS = "this project: resident uint8 pictures, its Loader, optimization step and accuracy sums"
TUTORIAL = "the tutorial's script, -j 2, one epoch, no warm-up; the samples/s it prints of training"
PEERS_LOOP = "pictures resident as floats, fused SGD, no accuracies"
SPIKINGJELLY = f"spikingjelly's multi-step layers; {PEERS_LOOP}"
LSTM = f"torch.nn.LSTM, mean over T, Linear; {PEERS_LOOP}"


def on_cuda(step: str, *, amp: bool = False) -> Contestant:
    """This project with its CUDA kernels, each step one graph, or eager."""
    label = f"rsnn_fmnist, {step}{', --amp' if amp else ''}"
    how = f"{OURS}; CUDA kernels, {step}{', float16' if amp else ''}"
    return Contestant(
        label,
        run_ours,
        how,
        threads=(1,),
        device="cuda",
        backend="cupy",
        amp=amp,
        graph=step == "graph",
    )


def spikingjelly2_on_cuda(name: str, implementation: str, peer: str) -> Contestant:
    """spikingjelly 2.0 with one of its implementations of the neurons."""
    return Contestant(
        f"spikingjelly 2.0, {name}",
        run_spikingjelly2,
        f"{SPIKINGJELLY}; SJ_IF_CUDA_IMPLEMENTATION={implementation}",
        peer,
        threads=(1,),
        device="cuda",
        backend=implementation,
    )


CONTESTANTS = {
    "numba": Contestant("rsnn_fmnist, numba", run_ours, OURS, backend="numba"),
    "numba-amp": Contestant(
        "rsnn_fmnist, numba, --amp", run_ours, OURS + "; bfloat16", backend="numba", amp=True
    ),
    "torch": Contestant("rsnn_fmnist, torch", run_ours, OURS, backend="torch"),
    "tutorial": Contestant(
        "the tutorial's script",
        run_tutorial,
        TUTORIAL + ", as its users run it",
        "tutorial",
        threads=(None,),
    ),
    "tutorial-omp1": Contestant(
        "the tutorial's script, OMP 1",
        run_tutorial,
        TUTORIAL
        + ", with OMP_NUM_THREADS=1: its threads and its 2 loaders then do not compete for two "
        "cores",
        "tutorial",
        threads=(1,),
    ),
    "spikingjelly2": Contestant(
        "spikingjelly 2.0", run_spikingjelly2, SPIKINGJELLY, "spikingjelly2"
    ),
    "lstm": Contestant("torch LSTM(32)", run_lstm, LSTM, models=("lstm",)),
    "cuda": on_cuda("graph"),
    "cuda-amp": on_cuda("graph", amp=True),
    "cuda-eager": on_cuda("eager"),
    "cuda-eager-amp": on_cuda("eager", amp=True),
    "spikingjelly2-triton": spikingjelly2_on_cuda("triton", "triton", "spikingjelly2"),
    "spikingjelly2-native": spikingjelly2_on_cuda("native", "cuda", "spikingjelly2-native"),
    "lstm-cuda": Contestant(
        "torch LSTM(32), cuDNN", run_lstm, LSTM, models=("lstm",), threads=(1,), device="cuda"
    ),
}


if __name__ == "__main__":
    raise SystemExit(work(sys.argv[1]))
