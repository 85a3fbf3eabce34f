"""The CPU kernels compute what their references compute.

Outputs are compared by equality on dyadic inputs, multiples of a power of two, over so few steps
that float32 holds every potential exactly and no rounding can flip a spike. Other inputs are
compared in float64.
"""

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import llvmlite
import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rsnn_fmnist import models
from rsnn_fmnist.spiking import (
    IF,
    LIF,
    SURROGATES,
    ATan,
    BackendUnavailableError,
    LinearRecurrentContainer,
    SequenceModule,
    SynapseFilter,
    backend,
    record,
    set_backend,
)
from rsnn_fmnist.spiking.kernels.cpu import functions, openmp
from rsnn_fmnist.spiking.neuron import Neuron
from rsnn_fmnist.spiking.synapse import filter_sequence

Build = Callable[[], SequenceModule]
FLOAT64 = {"rtol": 1e-10, "atol": 1e-10}
FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}

MODULES: dict[str, Build] = {
    "if": IF,
    "if-soft-detached": lambda: IF(v_reset=None, detach_reset=True),
    "lif": lambda: LIF(tau=3.0, v_reset=-0.25, detach_reset=True),
    "lif-soft": lambda: LIF(tau=1.5, v_reset=None, surrogate=SURROGATES["erf"]()),
    "filter": lambda: SynapseFilter(tau=3.0),
    "filter-learnt": lambda: SynapseFilter(tau=1.5, learnable=True),
    "recurrent-if": lambda: LinearRecurrentContainer(IF(detach_reset=True), 5, 5),
    "recurrent-lif": lambda: LinearRecurrentContainer(LIF(tau=3.0, v_reset=-0.25), 5, 5),
    "recurrent-soft": lambda: LinearRecurrentContainer(
        IF(v_reset=None, surrogate=SURROGATES["sigmoid"]()), 5, 5, bias=False
    ),
}


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set torch's number of threads, and have the kernels use all of them for little work too."""
    number, grain = torch.get_num_threads(), functions.GRAIN

    def use(count: int) -> None:
        torch.set_num_threads(count)
        functions.GRAIN = 1

    yield use
    torch.set_num_threads(number)
    functions.GRAIN = grain


def dyadic(*shape: int, low: float, high: float, unit: float = 0.125, seed: int = 0) -> Tensor:
    """Random multiples of `unit` between low and high, in float32."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(round(low / unit), round(high / unit) + 1, shape, generator=generator)
    return numbers * unit


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Normally distributed inputs that make neurons fire at some steps."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.8 + 0.3).to(dtype)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a state, in order."""
    if isinstance(tree, tuple):
        return [tensor for branch in tree for tensor in tensors(branch)]
    return [tree] if isinstance(tree, Tensor) else []


def run(module: SequenceModule, name: str, x_seq: Tensor, state: Any = None) -> list[list[Tensor]]:
    """[outputs, gradients] on a backend: y and the last state; of x, the state and parameters."""
    module = copy.deepcopy(module)
    set_backend(module, name)
    x_seq, state = copy.deepcopy((x_seq.detach(), state))
    sources = [x_seq, *tensors(state), *module.parameters()]
    for source in sources:
        source.requires_grad_()
    y_seq, last = module.sequence(x_seq, state)
    outputs = [y_seq, *tensors(last)]
    upstream = [dyadic(*o.shape, low=-1, high=1, seed=i).to(o.dtype) for i, o in enumerate(outputs)]
    torch.autograd.backward(outputs, upstream)
    missing = [i for i, source in enumerate(sources) if source.grad is None]
    assert not missing, f"sources {missing} got no gradient"
    return [[o.detach() for o in outputs], [source.grad for source in sources]]


def assert_same(
    module: SequenceModule, x_seq: Tensor, state: Any = None, *, spikes: bool = True, **close: Any
) -> None:
    """numba's outputs equal torch's, and its gradients are close; the layer fires, not always."""
    outputs, gradients = run(module, "numba", x_seq, state)
    expected, expected_gradients = run(module, "torch", x_seq, state)
    for output, right in zip(outputs, expected, strict=True):
        assert output.dtype == right.dtype
        assert torch.equal(output, right)
    if spikes:
        assert 0.02 < outputs[0].mean() < 0.98, "the layer is silent or saturated"
    for gradient, right in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, right, **(close or FLOAT32))


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("detach_reset", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.5, None])
@pytest.mark.parametrize("tau", [None, 2.0, 4.0])
def test_neurons(
    tau: float | None, v_reset: float | None, detach_reset: bool, surrogate: str
) -> None:
    arguments = (1.0, v_reset, SURROGATES[surrogate](), detach_reset)
    neuron = IF(*arguments) if tau is None else LIF(tau, *arguments)
    steps = {None: 16, 2.0: 12, 4.0: 8}[tau]  # each step needs one or two bits more
    x_seq = dyadic(steps, 3, 11, low=-1, high=3 if tau is None else 5)
    assert_same(neuron, x_seq, dyadic(3, 11, low=-1, high=1, seed=1))


@pytest.mark.parametrize("learnt", [True, False])
def test_filter(learnt: bool) -> None:
    results = []
    for name in ("numba", "torch"):
        x_seq = (dyadic(10, 3, 11, low=0, high=1, unit=0.5) >= 0.5).float().requires_grad_()
        y = dyadic(3, 11, low=-1, high=1).requires_grad_()
        k = torch.tensor(0.25, requires_grad=learnt) if learnt else 0.25
        kernel = backend.implementation(filter_sequence, x_seq, name, k=k)
        y_seq, last = kernel(x_seq, y, k=k)
        ((y_seq * dyadic(10, 3, 11, low=-1, high=1)).sum() + last.square().sum()).backward()
        results.append([y_seq, last, x_seq.grad, y.grad, *([k.grad] if learnt else [])])
    assert all(torch.equal(*pair) for pair in zip(*(r[:2] for r in results), strict=True))
    torch.testing.assert_close(results[0], results[1], **FLOAT32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "neuron",
    [
        IF(detach_reset=True),
        IF(v_reset=-0.5),
        IF(v_reset=None),
        LIF(detach_reset=True),
        LIF(v_reset=None, surrogate=SURROGATES["sigmoid"]()),
    ],
)
def test_linear_recurrent_container(neuron: Neuron, bias: bool) -> None:
    """From rest, and from a state whose y is not 0 or 1."""
    container = LinearRecurrentContainer(neuron, 7, 7, bias)
    for i, parameter in enumerate(container.parameters()):
        parameter.data = dyadic(*parameter.shape, low=-0.5, high=0.75, seed=i)
    x_seq = dyadic(8, 6, 7, low=-1, high=1.5)
    assert_same(container, x_seq)
    state = (dyadic(6, 7, low=-2, high=2, seed=1), dyadic(6, 7, low=-1, high=1, seed=2))
    assert_same(container, x_seq, state)


@pytest.mark.parametrize("name", MODULES)
@settings(max_examples=20, deadline=None)
@given(
    steps=st.integers(1, 7),
    samples=st.lists(st.integers(1, 6), min_size=0, max_size=3),
    seed=st.integers(0, 1000),
)
def test_any_shape_in_float64(name: str, steps: int, samples: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    module = MODULES[name]().double()
    x_seq = random(steps, *samples, 5, seed=seed)
    results = [run(module, backend_name, x_seq) for backend_name in ("numba", "torch")]
    torch.testing.assert_close(results[0], results[1], **FLOAT64)


@pytest.mark.parametrize("name", MODULES)
def test_state_gradients_in_float64(name: str) -> None:
    """Two halves, the state passed from one to the other, give the gradients of the whole."""
    torch.manual_seed(0)
    module = MODULES[name]().double()
    set_backend(module, "numba")
    x_seq, upstream = random(8, 4, 5).requires_grad_(), random(8, 4, 5, seed=1)
    sources = [x_seq, *module.parameters()]
    first, state = module.sequence(x_seq[:3])
    second, _ = module.sequence(x_seq[3:], state)
    in_two = torch.autograd.grad(torch.cat((first, second)), sources, upstream)
    set_backend(module, "torch")
    torch.testing.assert_close(
        in_two, torch.autograd.grad(module(x_seq), sources, upstream), **FLOAT64
    )


@pytest.mark.parametrize("name", [name for name in MODULES if "recurrent" not in name])
def test_the_same_bits_as_the_reference(name: str) -> None:
    """Each operation is rounded as in the reference, so outputs are equal in float32 as well."""
    assert_same(MODULES[name](), random(28, 500, 5, dtype=torch.float32), spikes=False)


@pytest.mark.parametrize("name", [name for name in MODULES if "recurrent" in name])
def test_rounding_flips_only_spikes_at_the_threshold(name: str) -> None:
    """Sums over features are taken in another order, so in float32 a few samples may differ."""
    torch.manual_seed(0)
    module, x_seq = MODULES[name](), random(28, 500, 5, dtype=torch.float32)
    outputs, gradients = run(module, "numba", x_seq)
    expected, expected_gradients = run(module, "torch", x_seq)
    differ = (outputs[0] != expected[0]).any(0).any(-1)
    assert differ.sum() <= 2
    set_backend(module.double(), "torch")
    with record(module) as recording, torch.no_grad():
        module(x_seq.double())
    (layer,) = recording.values()
    assert ((layer.h[:, differ] - layer.v_threshold).abs().amin((0, 2)) < 1e-5).all()
    torch.testing.assert_close(
        gradients[0][:, ~differ], expected_gradients[0][:, ~differ], **FLOAT32
    )


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    "shape", [(7, 5), (1, 1, 5), (3, 2, 1, 2, 5), (4, 33, 5), (4, 0, 5)], ids=str
)
def test_more_threads_than_lanes(
    name: str, shape: tuple[int, ...], threads: Callable[[int], None]
) -> None:
    threads(13)
    torch.manual_seed(0)
    module, x_seq = MODULES[name]().double(), random(*shape)
    results = [run(module, backend_name, x_seq) for backend_name in ("numba", "torch")]
    torch.testing.assert_close(results[0], results[1], **FLOAT64)


@pytest.mark.parametrize("name", MODULES)
def test_same_bits_whatever_the_number_of_threads(
    name: str, threads: Callable[[int], None]
) -> None:
    torch.manual_seed(0)
    module, x_seq = MODULES[name](), random(9, 37, 5, dtype=torch.float32)
    module.requires_grad_(False)  # a parameter's gradient is summed by torch's threads
    threads(1)
    one = run_input_only(module, x_seq)
    for count in (1, 2, 3, 8):
        threads(count)
        for result, right in zip(run_input_only(module, x_seq), one, strict=True):
            assert torch.equal(result, right), f"{count} threads"


def run_input_only(module: SequenceModule, x_seq: Tensor) -> list[Tensor]:
    x_seq = x_seq.clone().requires_grad_()
    set_backend(module, "numba")
    y_seq, state = module.sequence(x_seq)
    y_seq.square().sum().backward()
    return [y_seq.detach(), *tensors(state), x_seq.grad]


def test_learnt_decay_has_the_same_gradient_on_any_number_of_threads(
    threads: Callable[[int], None],
) -> None:
    synapse, found = SynapseFilter(tau=3.0, learnable=True), set()
    for count in (1, 2, 3, 8):
        threads(count)
        synapse.w.grad = None
        synapse(random(9, 999, 5, dtype=torch.float32)).square().sum().backward()
        found.add(synapse.w.grad.item())
    assert len(found) == 1


@pytest.mark.parametrize("name", MODULES)
def test_non_contiguous_input_and_state(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().double()
    set_backend(module, "numba")
    x_seq = random(4, 5, 9).permute(2, 0, 1)
    assert not x_seq.is_contiguous()
    y_seq, state = module.sequence(x_seq)
    assert torch.equal(y_seq, module(x_seq.contiguous()))
    if isinstance(state, Tensor):
        state = random(5, 4).t()
    else:
        state = (random(5, 4).t(), random(5, 4, seed=1).t())
    results = [module.sequence(x_seq, state)[0], module.sequence(x_seq, copy_of(state))[0]]
    assert torch.equal(*results)


def copy_of(state: Any) -> Any:
    if isinstance(state, tuple):
        return tuple(copy_of(part) for part in state)
    return state.contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neuron", [IF(), LIF(v_reset=None), SynapseFilter(4.0)])
def test_half_precision_in_and_out_float32_inside(
    neuron: SequenceModule, dtype: torch.dtype
) -> None:
    unit = 1.0 if isinstance(neuron, SynapseFilter) else 0.125
    x_seq = dyadic(8, 3, 11, low=-1, high=4, unit=unit).to(dtype)
    state = dyadic(3, 11, low=-1, high=1, seed=1)
    half = torch.finfo(dtype).eps
    is_neuron = isinstance(neuron, Neuron)
    assert_same(neuron, x_seq, state, spikes=is_neuron, rtol=4 * half, atol=4 * half)


def test_autocast_rounds_as_the_reference_does() -> None:
    """With weights that bfloat16 holds exactly, spikes are equal, and gradients are float32."""
    container = LinearRecurrentContainer(IF(detach_reset=True), 6, 6)
    for i, parameter in enumerate(container.parameters()):
        parameter.data = dyadic(*parameter.shape, low=-0.5, high=0.75, seed=i)
    found = []
    for name in ("numba", "torch"):
        set_backend(container, name)
        container.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            s_seq, (y, v) = container.sequence(dyadic(8, 5, 6, low=-1, high=1.5))
        s_seq.sum().backward()
        assert (s_seq.dtype, y.dtype, v.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
        assert container.rc.weight.grad.dtype == torch.float32
        found.append((s_seq, y, v, container.rc.weight.grad))
    assert all(torch.equal(*pair) for pair in zip(found[0][:3], found[1][:3], strict=True))
    torch.testing.assert_close(found[0][3], found[1][3], rtol=0.02, atol=0.05)


class Noisy(ATan):
    """A surrogate whose forward pass is not that of the kernels."""

    def __call__(self, u: Tensor) -> Tensor:
        return super().__call__(u + 0.25)


class Triangle(ATan):
    """A user's slope, which the kernels call."""

    def slope(self, u: Tensor) -> Tensor:
        return (1 - u.abs()).clamp(min=0)


def neuron_sequence(x_seq: Tensor, v: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    """A user's function, with the name of a kernel."""
    return x_seq * 2, v


class Mine(IF):
    sequence_function = staticmethod(neuron_sequence)


@pytest.mark.parametrize(
    ("module", "x_seq", "message"),
    [
        (IF(surrogate=Noisy(2.0)), torch.rand(4, 3), "surrogate Noisy overrides __call__"),
        (LinearRecurrentContainer(IF(surrogate=Noisy(2.0)), 3, 3), torch.rand(4, 2, 3), "Noisy"),
        (SynapseFilter(2.0), torch.ones(4, 3, dtype=torch.complex64), r"input is torch\.complex64"),
        (Mine(), torch.rand(4, 3), "run neuron_sequence: it has no kernel for this function"),
        (IF(), torch.rand(4, 3, device="meta"), "does not run on meta"),
    ],
)
def test_what_kernels_cannot_do(module: SequenceModule, x_seq: Tensor, message: str) -> None:
    """A backend chosen by name is an error; `auto` runs the reference."""
    set_backend(module, "numba")
    with pytest.raises(BackendUnavailableError, match=message):
        module(x_seq)
    set_backend(module, "torch")
    expected = module(x_seq)
    set_backend(module, "auto")
    assert module(x_seq).shape == expected.shape
    assert x_seq.is_meta or torch.equal(module(x_seq), expected)


def test_a_users_surrogate() -> None:
    x_seq = dyadic(16, 3, 11, low=-1, high=3)
    assert_same(IF(surrogate=Triangle(1.0)), x_seq)


def test_auto_under_torch_func() -> None:
    def loss(x_seq: Tensor) -> Tensor:
        return IF()(x_seq).sum()

    x = random(3, 8, 5)
    gradients = torch.func.vmap(torch.func.grad(loss))(x)
    one = x[1].clone().requires_grad_()
    loss(one).backward()
    torch.testing.assert_close(gradients[1], one.grad, **FLOAT64)


@pytest.mark.parametrize("name", [name for name in MODULES if "filter" not in name])
def test_what_an_observer_is_called_with(name: str) -> None:
    torch.manual_seed(0)
    module, x_seq, seen = MODULES[name]().double(), random(6, 3, 5), []
    for backend_name in ("numba", "torch"):
        set_backend(module, backend_name)
        for context in (torch.enable_grad(), torch.no_grad()):
            with context, record(module) as recording:
                module(x_seq.clone().requires_grad_())
            (layer,) = recording.values()
            seen.append((layer.s, layer.h))
    for other in seen[1:]:
        torch.testing.assert_close(seen[0], other, **FLOAT64)


def test_potentials_are_stored_only_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    fire = functions.fire
    monkeypatch.setattr(
        functions,
        "fire",
        lambda *args, **how: kept.append(fire(*args, **how)[1].shape[0]) or fire(*args, **how),
    )
    IF()(torch.rand(8, 3))
    with torch.no_grad():
        IF()(torch.rand(8, 3, requires_grad=True))
    assert kept == [1, 1]


def test_a_second_derivative_is_refused() -> None:
    x_seq = random(4, 3).requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(IF()(x_seq).sum(), x_seq, create_graph=True)


@pytest.mark.parametrize("name", MODULES)
def test_batched_gradients_are_refused(name: str) -> None:
    """As under jacobian and hessian with vectorize=True; the reference computes them."""
    module, x_seq = MODULES[name]().double(), random(3, 2, 5)

    def jacobian(backend_name: str, vectorize: bool) -> Tensor:
        set_backend(module, backend_name)
        return torch.autograd.functional.jacobian(module, x_seq, vectorize=vectorize)

    with pytest.raises(RuntimeError, match=r"one gradient at a time .* choose backend torch"):
        jacobian("numba", vectorize=True)
    expected = jacobian("torch", vectorize=True)
    torch.testing.assert_close(jacobian("numba", vectorize=False), expected, **FLOAT64)
    set_backend(module, "numba")
    y_seq = module(x_seq.requires_grad_())
    upstream = torch.ones(2, *y_seq.shape, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="one gradient at a time"):
        torch.autograd.grad(y_seq, x_seq, upstream, is_grads_batched=True)


@pytest.mark.parametrize("name", [name for name in MODULES if "recurrent" not in name])
@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_what_is_not_finite_does_what_it_does_in_the_reference(name: str, value: str) -> None:
    """After +inf, a neuron with a hard reset goes on from its rest; all else is NaN or infinite."""
    x_seq = random(7, 2, 5)
    x_seq[2, 0, 1:3] = float(value)
    module, outputs = MODULES[name]().double(), []
    for backend_name in ("numba", "torch"):
        set_backend(module, backend_name)
        outputs.append((module(x_seq), *tensors(module.sequence(x_seq)[1])))
    torch.testing.assert_close(*outputs, rtol=0, atol=0, equal_nan=True)
    if value == "inf" and name in ("if", "lif"):
        assert all(output.isfinite().all() for output in outputs[1])


def test_several_python_threads_at_once(threads: Callable[[int], None]) -> None:
    threads(2)
    module, x_seq = MODULES["recurrent-if"]().double(), random(28, 64, 5)
    expected = run(module, "torch", x_seq)
    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(lambda _: run(module, "numba", x_seq), range(16)):
            torch.testing.assert_close(result, expected, **FLOAT64)


@pytest.mark.parametrize("name", ["plain", "feedback", "stateful-synapse"])
def test_training_is_the_same_in_float64(name: str) -> None:
    """50 steps of SGD have the torch backend's losses."""
    torch.manual_seed(0)
    start = models.build(name).double()
    pictures, labels = random(50, 16, 28, 28), torch.randint(10, (50, 16))
    targets = nn.functional.one_hot(labels, 10).double()
    losses = {}
    for backend_name in ("numba", "torch"):
        model = copy.deepcopy(start)
        set_backend(model, backend_name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        losses[backend_name] = []
        for x, target in zip(pictures, targets, strict=True):
            loss = nn.functional.mse_loss(model(x), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[backend_name].append(loss.item())
    assert losses["numba"] == pytest.approx(losses["torch"], abs=1e-9)
    assert losses["torch"][0] > losses["torch"][-1] > 0


def test_where_numba_finds_no_directory_for_its_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def without_a_cache(loop: Any, *, cache: bool = False, **_: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return loop

    monkeypatch.setattr(openmp, "njit", without_a_cache)
    openmp._say_uncached.cache_clear()
    assert openmp.compiled(len) is len
    assert openmp.compiled(max) is max
    assert capsys.readouterr().err.count("set NUMBA_CACHE_DIR to a folder") == 1


def test_without_a_home_no_folder_named_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert type(openmp.compiled(lambda x: x)._cache).__name__ == "NullCache"


def test_kernels_run_when_the_disk_is_full(tmp_path: Path) -> None:
    program = """
import resource, torch
from rsnn_fmnist.spiking import IF
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
IF()(torch.ones(3, 2)).sum().item() == 6 or exit("wrong")
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, check=True, timeout=120, env=environment, capture_output=True, text=True
    )
    assert done.stderr.count("set NUMBA_CACHE_DIR to a folder that can be written") == 1
    assert not any(path.stat().st_size for path in tmp_path.rglob("*.nb?"))


def test_one_thread_where_torch_has_no_openmp() -> None:
    """The same machine code, linked to functions that run a region in the calling thread."""
    program = """
import ctypes, numba, torch
def no_library(path): raise OSError(path)
ctypes.CDLL = no_library
from rsnn_fmnist.spiking.kernels.cpu import functions, openmp
assert openmp._entries() is openmp.ALONE
functions.GRAIN = 1
from rsnn_fmnist.spiking import LIF
x_seq = torch.rand(6, 40, 5) * 2
module = LIF()
s_seq = module(x_seq)
module.backend = "torch"
assert torch.equal(s_seq, module(x_seq)) and s_seq.any()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_auto_runs_the_reference_where_tensor_operations_are_needed() -> None:
    x = torch.rand(4, 3) * 2
    with FlopCounterMode(display=False):
        assert backend.implementation(filter_sequence, x, "auto", k=0.5) is filter_sequence
        with pytest.raises(BackendUnavailableError, match="TorchDispatchMode"):
            backend.implementation(filter_sequence, x, "numba", k=0.5)
    with torch.autograd.forward_ad.dual_level():
        assert backend.implementation(filter_sequence, x, "auto", k=0.5) is filter_sequence
    subclass = x.as_subclass(type("Mine", (Tensor,), {}))
    assert backend.implementation(filter_sequence, subclass, "auto", k=0.5) is filter_sequence
    traced = torch.jit.trace(IF(), x, check_trace=False)
    assert torch.equal(traced(x + 1), IF()(x + 1))


def test_a_backward_pass_under_autocast() -> None:
    container, x = LinearRecurrentContainer(IF(), 5, 5), torch.rand(6, 4, 5) * 2
    y = container(x)
    with torch.autocast("cpu", torch.bfloat16):
        y.sum().backward()
    assert container.rc.weight.grad.dtype == torch.float32


def test_an_output_edited_in_place_before_its_backward_pass_is_refused() -> None:
    """A layer saves its output for the backward pass without a copy; torch detects the change."""
    y = LinearRecurrentContainer(IF(), 5, 5)(torch.rand(6, 4, 5) * 2)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_state_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"the state, \[2, 3\], does not fit one step"):
        IF().sequence(torch.rand(4, 3), torch.zeros(2, 3))


@pytest.mark.parametrize("content", [b"", b"garbled"])
def test_a_damaged_or_outdated_cache_is_compiled_anew(tmp_path: Path, content: bytes) -> None:
    program = "import torch; from rsnn_fmnist.spiking import IF; IF()(torch.ones(3, 2))"
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for suffix in ("nbi", "nbc"):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment)
        files = list(tmp_path.rglob(f"*.{suffix}"))
        assert files
        for path in files:
            path.write_bytes(content)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment)


def test_the_cache_is_stamped_with_all_that_the_code_is_made_of() -> None:
    assert functions.loops.neuron._cache._cache_file._source_stamp[1] == openmp.DIGEST
    kernels = Path(backend.__file__).parent / "kernels"
    assert set(openmp.SOURCES) == set(kernels.rglob("*.py"))
    assert (numba.__version__, llvmlite.__version__, torch.__version__) == openmp.VERSIONS


@pytest.mark.slow
def test_an_edit_to_what_is_compiled_into_another_file_counts(tmp_path: Path) -> None:
    """The compiled step, in chain.py, contains the surrogates' slopes of rows.py."""
    package = Path(backend.__file__).parents[1]
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    program = """
import torch
from rsnn_fmnist.config import Experiment
from rsnn_fmnist.data.loader import Loader
from rsnn_fmnist.data.pictures import Pictures
from rsnn_fmnist.metrics import Sums
from rsnn_fmnist.models import build
from rsnn_fmnist.session import open_session
from rsnn_fmnist.training.step import choose_step, training_step
torch.manual_seed(0)
model, cpu = build("plain"), torch.device("cpu")
columns = torch.randint(0, 256, (32, 28, 28), dtype=torch.uint8)
loader = Loader(Pictures(columns, torch.arange(32) % 10), cpu)
session = open_session(Experiment(), cpu, model, (loader, None, loader))
assert choose_step(session)[0] == "compiled"
training_step(session, Sums(cpu))(torch.arange(32))
print(model.fc1.weight.grad.abs().sum().item())
"""
    cache = str(tmp_path / "cache")
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}

    def gradient() -> float:
        options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "timeout": 300}
        command = [sys.executable, "-c", program]  # imports the copy, in its working directory
        done = subprocess.run(command, check=True, capture_output=True, text=True, **options)
        return float(done.stdout)

    assert gradient() > 0
    rows = tmp_path / package.name / "spiking" / "kernels" / "cpu" / "rows.py"
    source = rows.read_text()
    assert source.count("slope[j] = half /") == 1
    rows.write_text(source.replace("slope[j] = half /", "slope[j] = real(0) * half /"))
    assert gradient() == 0


def test_what_is_compiled_is_said_once_on_a_terminal(tmp_path: Path) -> None:
    program = """
import torch
from rsnn_fmnist.spiking import IF, SynapseFilter
SynapseFilter()(IF()(torch.ones(3, 2)))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for expected in (1, 0):
        reader, terminal = os.openpty()
        subprocess.run(
            [sys.executable, "-c", program],
            check=True,
            timeout=120,
            env=environment,
            stderr=terminal,
        )
        os.close(terminal)
        text = b""
        with suppress(OSError):  # at the end
            while chunk := os.read(reader, 1000):
                text += chunk
        os.close(reader)
        assert text.decode().count("compiling the CPU kernels") == text.count(b"\n") == expected


def test_numba_that_does_not_work() -> None:
    program = """
import torch
from rsnn_fmnist.spiking import backend
assert backend.resolve("auto", torch.device("cpu")) == "torch"
try: backend.resolve("numba", torch.device("cpu"))
except backend.BackendUnavailableError as e: assert "NUMBA_DISABLE_JIT" in str(e), e
else: exit("accepted")
"""
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=environment)
