"""The CUDA sources, compiled for the CPU by g++ with `cuda_on_cpu.hpp`, and the torch reference.

Everything of the backend runs except CuPy: `launch.launch` is replaced by calls of the compiled
libraries, with few threads a block. Where inputs are dyadic, all formats hold them exactly, and
outputs are compared by equality.
"""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_cases import (
    GOLDEN_NEURONS,
    NETWORKS,
    Golden,
    check_filter,
    check_network,
    check_neuron,
)
from helpers.kernel_cases import (
    ALL_SURROGATES,
    DTYPES,
    NEURONS,
    RESETS,
    compare,
    dyadic,
    recurrent_functions,
    recurrent_inputs,
    sequence_functions,
)
from torch import Tensor

from rsnn_fmnist.device import choose_backend
from rsnn_fmnist.spiking import IF, LIF, LinearRecurrentContainer, backend
from rsnn_fmnist.spiking.backend import BackendUnavailableError
from rsnn_fmnist.spiking.kernels.cuda import functions, launch, sequences
from rsnn_fmnist.spiking.kernels.cuda.launch import KERNELS, SOURCES, STORAGE, Limits
from rsnn_fmnist.spiking.neuron import Neuron, neuron_sequence
from rsnn_fmnist.spiking.recurrent import linear_recurrent_sequence
from rsnn_fmnist.spiking.synapse import filter_sequence
from rsnn_fmnist.storage import provenance

SPACE = 1 << 17
LIMITS = {  # SAMPLES, STAGED in recurrent.cu -> a device that leads to them
    "4, true": Limits(multiprocessors=1, shared_bytes=SPACE),
    "1, true": Limits(multiprocessors=1000, shared_bytes=SPACE),
    "4, false": Limits(multiprocessors=1, shared_bytes=0),
}
COMPILER = shutil.which("g++") or shutil.which("clang++")
FLAGS = "-O1 -std=c++20 -pthread -shared -fPIC -ffp-contract=off -w".split()
CONVERSIONS = """
template <typename S>
__global__ void stored(const float *x, S *y, int count) {
    for (int i = 0; i < count; ++i) y[i] = store<S>(x[i]);
}
template <typename S>
__global__ void loaded(const S *x, float *y, int count) {
    for (int i = 0; i < count; ++i) y[i] = load(x[i]);
}
EMULATED(stored_Half, stored<Half>)
EMULATED(stored_BFloat, stored<BFloat>)
EMULATED(loaded_Half, loaded<Half>)
EMULATED(loaded_BFloat, loaded<BFloat>)
"""


def symbol(kernel: str, storage: torch.dtype) -> str:
    """A C name for a kernel of one storage."""
    return "".join(c if c.isalnum() else "_" for c in kernel.format(STORAGE[storage]))


def compile_file(file: str, folder: Path) -> ctypes.CDLL:
    """A library of all variants of a file's kernels."""
    emulated = [
        f"EMULATED({symbol(kernel, storage)}, {kernel.format(STORAGE[storage])})"
        for kernel, storage in product(KERNELS[file], DTYPES)
    ]
    source, library = folder / f"{file}.cpp", folder / f"{file}.so"
    lines = ['#include "cuda_on_cpu.hpp"', f'#include "{file}"', *emulated]
    source.write_text("\n".join([*lines, CONVERSIONS if file == "neuron.cu" else ""]))
    includes = [f"-I{SOURCES}", f"-I{Path(__file__).parent}"]
    done = subprocess.run(
        [str(COMPILER), *FLAGS, *includes, str(source), "-o", str(library)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ctypes.CDLL]:
    if COMPILER is None:
        pytest.skip("no C++ compiler: neither g++ nor clang++ is on the PATH")
    probe = [COMPILER, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"]
    if subprocess.run(probe, input=b"#include <barrier>", capture_output=True).returncode:
        pytest.skip(f"no C++20 compiler: {COMPILER} has no std::barrier")
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    with ThreadPoolExecutor() as pool:
        return dict(zip(KERNELS, pool.map(lambda f: compile_file(f, folder), KERNELS), strict=True))


def call(function: Any, grid: int, block: tuple[int, int], *arguments: Any) -> None:
    values = [np.atleast_1d(launch._passed(argument)) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    function(grid, *block, pointers)


@pytest.fixture
def launched(libraries: dict[str, ctypes.CDLL], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels run on the CPU, in blocks of few threads; the list names those that have run."""
    names = []

    def emulated(
        kernel: str,
        storage: torch.dtype,
        grid: int,
        block: tuple[int, int],
        shared_bytes: int,
        *arguments: Any,
    ) -> None:
        assert 0 <= shared_bytes <= SPACE
        (file,) = (file for file, kernels in KERNELS.items() if kernel in kernels)
        names.append(kernel)
        call(getattr(libraries[file], symbol(kernel, storage)), grid, block, *arguments)

    monkeypatch.setattr(launch, "launch", emulated)
    monkeypatch.setattr(launch, "limits", lambda device: LIMITS["1, true"])
    monkeypatch.setattr(functions, "THREADS", 8)
    return names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("surrogate", ALL_SURROGATES)
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_neurons(
    neuron: type[Neuron],
    reset: str,
    detach_reset: bool,
    surrogate: str,
    dtype: torch.dtype,
    launched: list[str],
) -> None:
    layer = neuron(
        v_reset=RESETS[reset], surrogate=ALL_SURROGATES[surrogate](), detach_reset=detach_reset
    )
    x = dyadic(11, 3, 7, low=-1, high=3)  # 21 lanes in blocks of 8; steps no multiple of AHEAD
    v = dyadic(3, 7, low=-1, high=1, seed=1)
    s, _ = compare(*sequence_functions(layer), {"x": x, "v": v}, dtype, state=("v",))
    assert 0.02 < s.double().mean() < 0.98, "silent or saturated: shows nothing"
    assert launched == ["neuron_forward<{}>", "neuron_backward<{}>"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("tau", [1.7, 3.0, 100.0])
def test_leaky_neurons_are_rounded_as_the_reference(
    tau: float, reset: str, dtype: torch.dtype, launched: list[str]
) -> None:
    """Charges that no format holds exactly are equal at every step, and so are the spikes."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(28, 200, generator=generator).mul(tau).to(dtype)
    v = torch.randn(200, generator=generator).to(torch.promote_types(dtype, torch.float32))
    layer = LIF(tau=tau, v_threshold=0.7, v_reset=RESETS[reset])

    def run(function: Callable[..., Any]) -> tuple[Tensor, Tensor, Tensor]:
        h: list[Tensor] = []
        neuron = layer.settings()
        s, last = function(x, v, neuron=neuron, observe=lambda _, charged: h.append(charged))
        return s, last, torch.cat(h)

    outputs = run(neuron_sequence)
    for got, want in zip(run(sequences.neuron_sequence), outputs, strict=True):
        assert torch.equal(got, want)
    assert 0.02 < outputs[0].double().mean() < 0.98, "silent or saturated: shows nothing"


def test_a_recurrent_layer_is_rounded_as_the_reference(launched: list[str]) -> None:
    inputs = recurrent_inputs(16, 5, 9)
    y_seq, *_ = compare(*recurrent_functions(LIF(tau=3.0)), inputs, torch.float32, state=("v",))
    assert 0.02 < y_seq.double().mean() < 0.98, "silent or saturated: shows nothing"


@pytest.mark.parametrize("shape", [(1,), (8, 1), (3, 0, 5), (9, 2, 3, 2), (16, 40)], ids=str)
def test_neurons_of_any_shape(shape: tuple[int, ...], launched: list[str]) -> None:
    inputs = {"x": dyadic(*shape, low=-1, high=3), "v": dyadic(*shape[1:], low=-1, high=1, seed=1)}
    compare(*sequence_functions(LIF(tau=4.0)), inputs, torch.float32)


def test_neurons_accept_views_and_wider_states(launched: list[str]) -> None:
    reference, kernel = sequence_functions(IF())
    x = dyadic(4, 3, 9, low=-1, high=3).permute(2, 0, 1).float()
    for v in (torch.zeros(()), torch.zeros(4, 3, dtype=torch.float64), torch.zeros(3, 4).t()):
        for got, want in zip(kernel(x, v), reference(x, v), strict=True):
            assert torch.equal(got, want)
    assert kernel(x, torch.zeros((), dtype=torch.float64))[0].dtype == torch.float32


@pytest.mark.parametrize("of", [0, 1], ids=["s", "v"])
def test_gradients_of_one_output_alone(of: int, launched: list[str]) -> None:
    gradients = []
    for run in sequence_functions(LIF()):
        x = dyadic(9, 5, low=-1, high=3).requires_grad_()
        gradients += torch.autograd.grad(run(x, torch.zeros(5))[of].sum(), x)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-10)


def test_potentials_are_kept_only_for_a_gradient_or_an_observer(launched: list[str]) -> None:
    neuron, x = IF().settings(), dyadic(5, 3, low=-1, high=3)
    seen: list[Any] = []
    for observe in (None, lambda s, h: seen.append((s, h))):
        sequences.neuron_sequence(x, torch.zeros(3), neuron=neuron, observe=observe)
    s, h, _ = functions.fire(x, torch.zeros(3).double(), neuron, keep_h=False)
    assert h is None
    neuron_sequence(x, torch.zeros(3), neuron=neuron, observe=lambda s, h: seen.append((s, h)))
    assert torch.equal(seen[0][0], s)
    assert torch.equal(seen[0][1], torch.cat([h for _, h in seen[1:]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(11, 3, 7), (1, 1), (8, 16), (4, 0, 3)], ids=str)
def test_filter(shape: tuple[int, ...], dtype: torch.dtype, launched: list[str]) -> None:
    inputs = {
        "x": (dyadic(*shape, low=-1, high=1) > 0.25).double(),
        "y": dyadic(*shape[1:], low=0, high=2, seed=1),
        "k": torch.tensor(0.5),
    }
    compare(
        lambda x, y, k: filter_sequence(x, y, k=k),
        lambda x, y, k: sequences.filter_sequence(x, y, k=k),
        inputs,
        dtype,
        state=("y", "k"),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_filter_with_a_fixed_constant(dtype: torch.dtype, launched: list[str]) -> None:
    x = dyadic(10, 5, low=0, high=2)
    compare(
        lambda x, y: filter_sequence(x, y, k=0.5),
        lambda x, y: sequences.filter_sequence(x, y, k=0.5),
        {"x": x.round(), "y": torch.zeros(5)},
        dtype,
        state=("y",),
    )
    with torch.no_grad():
        assert sequences.filter_sequence(x, torch.zeros(5), k=0.5)[0].grad_fn is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LIMITS)
@pytest.mark.parametrize("sub_module", [IF(), LIF(v_reset=None, detach_reset=True)], ids=str)
@pytest.mark.parametrize(
    ("samples", "features"), [(7, 3), (5, 9), (2, 1), (0, 3)], ids=lambda n: str(n)
)
def test_recurrent(
    samples: int,
    features: int,
    sub_module: Neuron,
    shape: str,
    dtype: torch.dtype,
    launched: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = LIMITS[shape] if samples else LIMITS["1, true"]
    if shape == "4, true":
        limits = limits._replace(multiprocessors=0)  # however few samples
    monkeypatch.setattr(launch, "limits", lambda device: limits)
    y_seq, *_ = compare(
        *recurrent_functions(sub_module),
        recurrent_inputs(9, samples, features),
        dtype,
        state=("v",),
    )
    if samples:
        assert 0.02 < y_seq.double().mean() < 0.98, "silent or saturated: shows nothing"
        assert launched == [f"recurrent_{way}<{{}}, {shape}>" for way in ("forward", "backward")]


@pytest.mark.parametrize("surrogate", ALL_SURROGATES)
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_recurrent_with_every_neuron(
    neuron: type[Neuron], reset: str, detach_reset: bool, surrogate: str, launched: list[str]
) -> None:
    sub_module = neuron(
        v_reset=RESETS[reset], surrogate=ALL_SURROGATES[surrogate](), detach_reset=detach_reset
    )
    inputs = recurrent_inputs(6, 3, 4)
    compare(*recurrent_functions(sub_module, bias=False), inputs, torch.float64, state=("v",))


def test_recurrent_wider_than_a_word_of_spikes(launched: list[str]) -> None:
    inputs = recurrent_inputs(4, 2, 35)
    y_seq, *_ = compare(*recurrent_functions(IF()), inputs, torch.float64, state=("v",))
    assert 0.02 < y_seq.mean() < 0.98, "silent or saturated: shows nothing"


@pytest.mark.parametrize("gradients", [True, False])
def test_recurrent_under_autocast(gradients: bool, launched: list[str]) -> None:
    container = LinearRecurrentContainer(IF(), 4, 4)
    inputs = recurrent_inputs(8, 3, 4)
    with torch.no_grad():
        container.rc.weight.copy_(inputs["weight"])
        container.rc.bias.copy_(inputs["b"])
    x = inputs["x"].float()
    settings = {"weight": container.rc.weight, "bias": container.rc.bias}
    outcomes = []
    for function in (linear_recurrent_sequence, sequences.linear_recurrent_sequence):
        container.zero_grad()
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(gradients):
            y, _ = function(x, container.rest(x[0]), sub_module=IF(), **settings)
            if gradients:
                y.float().sum().backward()
        outcomes.append((y, container.rc.weight.grad))
    (want, want_grad), (got, got_grad) = outcomes
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, want)
    if gradients:
        assert got_grad.dtype == torch.float32
        torch.testing.assert_close(got_grad, want_grad, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("neuron", NEURONS)
def test_after_an_infinite_input_neurons_go_on(neuron: type[Neuron], launched: list[str]) -> None:
    x = torch.tensor([[0.5, 1.0], [torch.inf, -torch.inf], [2.0, 2.0], [0.5, 2.0]])
    outcomes = [f(x, torch.zeros(2)) for f in sequence_functions(neuron(v_reset=-0.5))]
    torch.testing.assert_close(*outcomes, rtol=0, atol=0, equal_nan=True)
    assert outcomes[0][1].isfinite().tolist() == [True, False]


@pytest.mark.parametrize(
    "run",
    [
        lambda x: sequences.neuron_sequence(x, x[0], neuron=IF().settings())[0],
        lambda x: sequences.filter_sequence(x, x[0], k=0.5)[0],
        lambda x: sequences.linear_recurrent_sequence(
            x, (x[0], x[0]), weight=torch.ones(2, 4), bias=None, sub_module=IF()
        )[0],
    ],
    ids=["neuron", "filter", "recurrent"],
)
def test_batched_gradients_are_refused(run: Callable[..., Any], launched: list[str]) -> None:
    with pytest.raises(RuntimeError, match="'cupy' computes one gradient at a time"):
        torch.autograd.functional.jacobian(run, torch.rand(3, 1, 2), vectorize=True)


@pytest.fixture
def instead_of_numba(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The CUDA kernels in place of the backend that runs on a CPU."""
    monkeypatch.setattr(functions, "THREADS", 64)
    monkeypatch.setitem(backend.KERNELS, "numba", ".kernels.cuda.sequences")
    return launched


@pytest.mark.parametrize(("case", "name"), GOLDEN_NEURONS)
def test_neurons_equal_the_golden_ones(
    case: str, name: str, golden: Golden, instead_of_numba: list[str]
) -> None:
    check_neuron(golden, case, name, "numba")
    assert len(instead_of_numba) == 2


@pytest.mark.parametrize("learnable", [True, False])
def test_the_filter_equals_the_golden_one(
    learnable: bool, golden: Golden, instead_of_numba: list[str]
) -> None:
    check_filter(golden, learnable, "numba")
    assert len(instead_of_numba) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_equal_the_golden_ones(
    name: str, golden: Golden, instead_of_numba: list[str]
) -> None:
    check_network(golden, name, "numba")
    assert len(instead_of_numba) == (6 if name == "stateful-synapse" else 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_converted_as_torch_does(
    dtype: torch.dtype, libraries: dict[str, ctypes.CDLL]
) -> None:
    library, name = libraries["neuron.cu"], STORAGE[dtype]
    short = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    loaded = torch.empty(short.shape)
    call(library[f"loaded_{name}"], 1, (1, 1), short, loaded, np.int32(short.numel()))
    torch.testing.assert_close(loaded, short.float(), rtol=0, atol=0, equal_nan=True)

    ends = loaded[loaded.isfinite()].sort().values
    ties = (ends[1:].double() + ends[:-1].double()).div(2).float()
    bits = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0))
    beyond = torch.tensor([65504.0, 65519.9, 65520.0, 65536.0, 3.4e38, 1e-45, float("nan")])
    near = (torch.nextafter(ties, torch.tensor(sign * 9e9)) for sign in (-1, 1))
    x = torch.cat([loaded, ties, *near, beyond, -beyond, bits.to(torch.int32).view(torch.float32)])
    stored = torch.empty(x.shape, dtype=dtype)
    call(library[f"stored_{name}"], 1, (1, 1), x, stored, np.int32(x.numel()))
    numbers = ~x.isnan()
    assert torch.equal(stored[numbers].view(torch.int16), x[numbers].to(dtype).view(torch.int16))
    assert stored[~numbers].isnan().all()


H200 = Limits(multiprocessors=132, shared_bytes=232_448)
TURING = Limits(multiprocessors=40, shared_bytes=65_536)


@pytest.mark.parametrize("limits", [H200, TURING], ids=["H200", "Turing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_width_up_to_the_limit_fits_a_block(dtype: torch.dtype, limits: Limits) -> None:
    for features in range(1, functions.MOST_FEATURES + 1):
        for samples, plan in product(
            (1, 128, 100_000), (functions.forward_plan, functions.backward_plan)
        ):
            shape, grid, block, shared_bytes = plan(features, samples, dtype, limits)
            assert shape in launch.SHAPES
            assert shared_bytes <= limits.shared_bytes
            assert block[0] * block[1] <= 1024
            assert grid * block[1] * int(shape[0]) >= samples


def test_a_training_batch_occupies_the_whole_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for plan in (functions.forward_plan, functions.backward_plan):
        shape, grid, block, _ = plan(32, 128, torch.float32, H200)
        assert shape == "1, true"
        assert grid * block[0] * block[1] == 128 * 32
        assert grid >= 64


def test_what_the_kernels_refuse() -> None:
    x = torch.zeros(2, 3)
    weight = torch.empty(1025, 2050)
    assert "1025 features" in str(sequences.refusal(x, weight=weight, sub_module=IF()))
    assert "k is on meta" in str(sequences.refusal(x, k=torch.zeros((), device="meta")))
    assert "int64" in str(sequences.refusal(x.long()))
    assert sequences.refusal(x, k=torch.zeros(())) is None
    with pytest.raises(RuntimeError, match="tensors of one device, not"):
        launch.launch("filter_forward<{}>", x.dtype, 1, (1, 1), 0, x, x.to("meta"))


REAL_FUNCTION = launch._function


class FakeCupy:
    """An installed CuPy, built for one CUDA, that compiles or does not."""

    def __init__(self, version: int, failure: Exception | None = None) -> None:
        self.cuda = self.runtime = self
        self.failure = failure
        self.runtimeGetVersion = lambda: version

    def RawModule(self, **_: Any) -> Any:  # noqa: N802
        raise self.failure or AssertionError


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch reports a CUDA device; call the fixture with the CuPy that is installed."""
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda index: nullcontext())
    forget_devices()
    yield lambda cupy: monkeypatch.setitem(sys.modules, "cupy", cupy)
    forget_devices()


def forget_devices() -> None:
    caches = (launch.missing, launch._module, REAL_FUNCTION, backend._missing)
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        (None, "needs a working CuPy"),
        (FakeCupy(12090), "CuPy is built for CUDA 12, torch for CUDA 13: remove that CuPy"),
        (FakeCupy(13020, RuntimeError("no NVRTC\nmore")), "cannot compile .*no NVRTC"),
        (FakeCupy(13020, OSError("/tmp/a.cu(1): no header\nmore")), "cannot compile .*no header"),
    ],
    ids=["missing", "of another CUDA", "without NVRTC", "without headers"],
)
def test_a_cupy_that_does_not_work_is_reported_in_one_line(
    pretended: Any, cupy: Any, reason: str
) -> None:
    pretended(cupy)
    device = torch.device("cuda", 0)
    with pytest.raises(
        BackendUnavailableError, match=rf"{reason}.*rsnn-fmnist\[cuda13\]"
    ) as raised:
        backend.resolve("cupy", device)
    assert "\n" not in str(raised.value)
    assert backend.resolve("auto", device) == "torch"


def test_the_reason_why_cupy_cannot_be_imported(
    pretended: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CuPy raises a page of advice; the reason is the error that caused it."""
    (tmp_path / "cupy.py").write_text(
        "try:\n    raise OSError('libcublas.so.13: no such file')\n"
        "except OSError as error:\n    raise ImportError('\\n======\\nFailed') from error\n"
    )
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    line = launch.missing(torch.device("cuda", 0))
    assert line == (
        "it needs a working CuPy (libcublas.so.13: no such file): pip install 'rsnn-fmnist[cuda13]'"
    )


@pytest.mark.parametrize("works", [True, False])
def test_info_compiles_every_kernel(
    pretended: Any, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended(FakeCupy(13020))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    compiled = []

    def function(kernel: str, storage: torch.dtype, index: int) -> None:
        compiled.append((kernel, storage))
        if not works and len(compiled) == 7:
            raise RuntimeError("too much for it")

    monkeypatch.setattr(launch, "_function", function)
    cuda, driver, gpu, kernels = provenance.cuda_lines()
    assert cuda == "cuda         13.2"
    assert driver.startswith("driver       ")
    assert gpu == "cuda:0       Some GPU"
    if works:
        assert kernels == "kernels      compile"
        assert len(set(compiled)) == len(KERNELS) * len(STORAGE)
    else:
        assert "(too much for it): pip install 'rsnn-fmnist[cuda13]'" in kernels


def test_auto_warns_why_it_does_not_use_the_kernels(pretended: Any, capsys: Any) -> None:
    pretended(None)
    device = torch.device("cuda", 0)
    assert choose_backend("torch", device) == "torch"
    assert capsys.readouterr().err == ""
    assert choose_backend("auto", device) == "torch"
    (line,) = capsys.readouterr().err.splitlines()
    assert "it needs a working CuPy" in line
    assert line.endswith("pip install 'rsnn-fmnist[cuda13]'")


def test_auto_uses_a_cupy_that_works(pretended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "missing", lambda device: None)
    assert backend.resolve("auto", torch.device("cuda", 0)) == "cupy"
    assert backend.resolve("torch", torch.device("cuda", 0)) == "torch"


def test_cupy_does_not_run_on_a_cpu() -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"does not run on cpu.*rsnn-fmnist\[cuda13\]"
    ):
        backend.resolve("cupy", torch.device("cpu"))
