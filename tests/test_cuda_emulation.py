"""The very CUDA sources, compiled by g++ over `cuda_on_cpu.hpp`, against the torch reference.

Everything of the backend runs but CuPy: `launch.launch` is replaced by a call of the compiled
libraries, with as few threads a block as a test likes. Where numbers are dyadic every format holds
them exactly, and outputs are compared by equality.
"""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_golden
import torch
from torch import Tensor

from rsnn_fmnist.run import choose_backend
from rsnn_fmnist.spiking import IF, LIF, SURROGATES, LinearRecurrentContainer, Surrogate, backend
from rsnn_fmnist.spiking.backend import BackendUnavailableError
from rsnn_fmnist.spiking.kernels.cuda import functions, launch, sequences
from rsnn_fmnist.spiking.kernels.cuda.launch import KERNELS, SOURCES, STORAGE, Limits
from rsnn_fmnist.spiking.neuron import Neuron
from rsnn_fmnist.spiking.recurrent import linear_recurrent_sequence
from rsnn_fmnist.spiking.synapse import filter_sequence
from rsnn_fmnist.storage import provenance

DTYPES = list(STORAGE)
TOLERANCE = {  # of gradients, which are stored in the dtype
    torch.float64: 1e-10,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 2e-2,
}
SPACE = 1 << 17
LIMITS = {  # of a device -> SAMPLES, STAGED in recurrent.cu
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
    """Kernels run on the CPU, in blocks of few threads; the names of those that have run."""
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


def dyadic(*shape: int, low: int, high: int, seed: int = 0) -> Tensor:
    """Random eighths in [low, high)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8 * low, 8 * high, shape, generator=generator).double() / 8


def assert_alike(kernel: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Within the dtype's tolerance of what the reference computes in float64."""
    bound = TOLERANCE[dtype]
    atol = bound * max(1.0, exact.abs().max().item() if exact.numel() else 1.0)
    torch.testing.assert_close(kernel.double(), exact, rtol=bound, atol=atol)


def outputs_and_gradients(
    run: Callable[..., Any], inputs: dict[str, Tensor], dtypes: dict[str, torch.dtype]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """run(**inputs as leaves of the dtypes) -> outputs, and gradients of a random weighting."""
    leaves = {n: x.clone().to(dtypes[n]).requires_grad_() for n, x in inputs.items()}
    outputs = run(**leaves)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(output.shape, generator=generator).half() for output in outputs]
    weighted = [
        (output.double() * weight.to(output.device)).sum()
        for output, weight in zip(outputs, weights, strict=True)
    ]
    torch.stack(weighted).sum().backward()
    return outputs, {name: leaf.grad for name, leaf in leaves.items()}


def compare(
    reference: Callable[..., Any],
    kernel: Callable[..., Any],
    inputs: dict[str, Tensor],
    dtype: torch.dtype,
    state: tuple[str, ...] = (),
) -> list[Tensor]:
    """Outputs equal the reference's in the same dtypes, gradients are like its in float64.

    `state` names the inputs that are in float32 at least.
    """
    dtypes = {n: torch.promote_types(dtype, torch.float32) if n in state else dtype for n in inputs}
    outputs, gradients = outputs_and_gradients(kernel, inputs, dtypes)
    expected, _ = outputs_and_gradients(reference, inputs, dtypes)
    for output, want in zip(outputs, expected, strict=True):
        assert output.dtype == want.dtype
        assert torch.equal(output, want)
    wide = dict.fromkeys(inputs, torch.float64)
    for name, exact in outputs_and_gradients(reference, inputs, wide)[1].items():
        assert gradients[name].dtype == dtypes[name]
        assert_alike(gradients[name], exact, dtype)
    return outputs


@dataclass(frozen=True)
class OwnSurrogate(Surrogate):
    """A user's: the kernels do not know its slope."""

    alpha: float = 1.5
    name = "own"

    def slope(self, u: Tensor) -> Tensor:
        return self.alpha / (1 + self.alpha * u.abs())


ALL_SURROGATES = {**SURROGATES, "own": OwnSurrogate}
RESETS = {"hard": -0.5, "soft": None}
NEURONS: list[type[Neuron]] = [IF, LIF]


def sequence_functions(layer: Neuron) -> list[Callable[..., Any]]:
    """The reference and the kernel of a layer, of (x, v) only."""
    reference = layer.sequence_function
    kernel = getattr(sequences, reference.__name__)
    return [
        lambda x, v, f=function: f(x, v, **layer.settings()) for function in (reference, kernel)
    ]


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
    """Charges that no format holds exactly: equal at every step, and so are the spikes."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(28, 200, generator=generator).mul(tau).to(dtype)
    v = torch.randn(200, generator=generator).to(torch.promote_types(dtype, torch.float32))
    layer = LIF(tau=tau, v_threshold=0.7, v_reset=RESETS[reset])

    def run(function: Callable[..., Any]) -> tuple[Tensor, Tensor, Tensor]:
        h: list[Tensor] = []
        s, last = function(x, v, **layer.settings(), observe=lambda _, charged: h.append(charged))
        return s, last, torch.cat(h)

    outputs = run(layer.sequence_function)
    for got, want in zip(run(sequences.lif_sequence), outputs, strict=True):
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


def test_neurons_take_views_and_wider_states(launched: list[str]) -> None:
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
    layer, x = IF(), dyadic(5, 3, low=-1, high=3)
    seen: list[Any] = []
    for observe in (None, lambda s, h: seen.append((s, h))):
        sequences.if_sequence(x, torch.zeros(3), **layer.settings(), observe=observe)
    s, _, _ = functions.fire(x, torch.zeros(3).double(), cell(layer), keep_h=False)
    layer.sequence_function(
        x, torch.zeros(3), **layer.settings(), observe=lambda s, h: seen.append((s, h))
    )
    assert torch.equal(seen[0][0], s)
    assert torch.equal(seen[0][1], torch.cat([h for _, h in seen[1:]]))


def cell(layer: Neuron) -> functions.Cell:
    return sequences._cell(**{"tau": None, **layer.settings()})


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


def recurrent_functions(
    sub_module: Neuron, bias: bool = True
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def run(function: Any, x: Tensor, y: Tensor, v: Tensor, weight: Tensor, b: Tensor) -> Any:
        y_seq, (y, v) = function(
            x, (y, v), weight=weight, bias=b if bias else None, sub_module=sub_module
        )
        return y_seq, y, v, b  # b: it gets a gradient even where there is no bias

    return (
        lambda **inputs: run(linear_recurrent_sequence, **inputs),
        lambda **inputs: run(sequences.linear_recurrent_sequence, **inputs),
    )


def recurrent_inputs(steps: int, samples: int, features: int) -> dict[str, Tensor]:
    """Numbers whose sums even bfloat16 holds."""
    if features > 16:  # inhibiting as much as exciting
        generator = torch.Generator().manual_seed(3)
        weight = torch.randint(-2, 3, (features, 2 * features), generator=generator).double() / 4
    else:
        weight = (dyadic(features, 2 * features, low=-1, high=2, seed=3) * 2).round() / 4
        weight.diagonal().fill_(3)
    return {
        "x": (dyadic(steps, samples, features, low=-1, high=2) > 0).double() / 2,
        "y": (dyadic(samples, features, low=-1, high=1, seed=1) > 0).double() * 0.5,
        "v": dyadic(samples, features, low=-1, high=1, seed=2),
        "weight": weight,
        "b": (dyadic(features, low=0, high=1, seed=4) * 2).round() / 4,
    }


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


@pytest.fixture
def instead_of_numba(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The CUDA kernels under the name of the backend that a CPU takes."""
    monkeypatch.setattr(functions, "THREADS", 64)
    monkeypatch.setitem(backend.KERNELS, "numba", ".kernels.cuda.sequences")
    return launched


@pytest.mark.parametrize(("case", "name"), test_golden.GOLDEN_NEURONS)
def test_neurons_equal_the_seeds(
    case: str, name: str, golden: test_golden.Golden, instead_of_numba: list[str]
) -> None:
    test_golden.test_neurons(golden, case, name, "numba")
    assert len(instead_of_numba) == 2


@pytest.mark.parametrize("learnable", [True, False])
def test_the_filter_equals_the_seeds(
    learnable: bool, golden: test_golden.Golden, instead_of_numba: list[str]
) -> None:
    test_golden.test_synapse_filter(golden, learnable, "numba")
    assert len(instead_of_numba) == 2


@pytest.mark.parametrize("name", ["plain", "feedback", "stateful-synapse"])
def test_networks_equal_the_seeds(
    name: str, golden: test_golden.Golden, instead_of_numba: list[str]
) -> None:
    test_golden.test_networks(golden, name, "numba")
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


def test_a_training_batch_has_the_whole_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for plan in (functions.forward_plan, functions.backward_plan):
        shape, grid, block, _ = plan(32, 128, torch.float32, H200)
        assert shape == "1, true"
        assert grid * block[0] * block[1] == 128 * 32
        assert grid >= 64


def test_what_the_kernels_refuse() -> None:
    x = torch.zeros(2, 3)
    weight = torch.empty(1025, 2050)
    assert "1025 wide" in str(sequences.refusal(x, weight=weight, sub_module=IF()))
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
    """A device, and whatever CuPy a test puts on it."""
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
    ("cupy", "says"),
    [
        (None, "needs a working CuPy"),
        (FakeCupy(12090), "CuPy is built for CUDA 12, torch for CUDA 13: remove that CuPy"),
        (FakeCupy(13020, RuntimeError("no NVRTC\nmore")), "cannot compile .*no NVRTC"),
        (FakeCupy(13020, OSError("/tmp/a.cu(1): no header\nmore")), "cannot compile .*no header"),
    ],
    ids=["missing", "of another CUDA", "without NVRTC", "without headers"],
)
def test_a_cupy_that_does_not_work_is_told_in_a_line(pretended: Any, cupy: Any, says: str) -> None:
    pretended(cupy)
    device = torch.device("cuda", 0)
    with pytest.raises(BackendUnavailableError, match=rf"{says}.*rsnn-fmnist\[cuda13\]") as told:
        backend.resolve("cupy", device)
    assert "\n" not in str(told.value)
    assert backend.resolve("auto", device) == "torch"


def test_a_cupy_that_cannot_be_imported_says_why(
    pretended: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It raises a page of advice, with the reason far down."""
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


def test_auto_tells_what_keeps_it_from_the_kernels(pretended: Any, capsys: Any) -> None:
    pretended(None)
    device = torch.device("cuda", 0)
    assert choose_backend("torch", device) == "torch"
    assert capsys.readouterr().err == ""
    assert choose_backend("auto", device) == "torch"
    (line,) = capsys.readouterr().err.splitlines()
    assert "it needs a working CuPy" in line
    assert line.endswith("pip install 'rsnn-fmnist[cuda13]'")


def test_auto_takes_a_cupy_that_works(pretended: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "missing", lambda device: None)
    assert backend.resolve("auto", torch.device("cuda", 0)) == "cupy"
    assert backend.resolve("torch", torch.device("cuda", 0)) == "torch"


def test_cupy_does_not_run_on_a_cpu() -> None:
    with pytest.raises(
        BackendUnavailableError, match=r"does not run on cpu.*rsnn-fmnist\[cuda13\]"
    ):
        backend.resolve("cupy", torch.device("cpu"))
