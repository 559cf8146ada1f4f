"""What is special about the CPU backend of the convolution; test_causal_conv1d.py has what is not.

Lengths, channels and widths here lie around the borders of its tiles, groups and vectors.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dnassm.errors import BackendError
from dnassm.kernels.causal_conv1d import cases, causal_conv1d
from dnassm.kernels.causal_conv1d.arguments import Conv
from dnassm.kernels.causal_conv1d.cases import Case

pytest.importorskip("llvmlite")

from dnassm.kernels.causal_conv1d import cpu, cpu_code
from dnassm.kernels.causal_conv1d.cpu_code import CHANNELS, TILE

Results = dict[str, Tensor]


def outcome(inputs: Results, backend: str = "cpu", **options: Any) -> Results:
    """Values and gradients by name."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    given: dict[str, Any] = {"silu": True, **leaves, **options}
    y, state = causal_conv1d(**given, backend=backend, return_state=True)
    # Gradients of both results that are no constants, and the same in every dtype.
    (y.float().square().sum() / 2 + state.float().square().sum()).backward()
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items()}
    return {"y": y.detach(), "state": state.detach(), **gradients}


def assert_near(got: Results, want: Results, dtype: torch.dtype, *, factor: float = 1.0) -> None:
    tolerance = cases.TOLERANCES[dtype]
    for name, expected in want.items():
        if expected.numel() == 0:
            continue
        error = (got[name].double() - expected).abs()
        assert error.max() <= factor * tolerance.worst * expected.abs().max(), name


def assert_same(got: Results, want: Results, names: Any = None) -> None:
    for name in names or want:
        assert torch.equal(got[name], want[name]), name


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Right at every border


BORDERS = {
    **{f"length {n}": Case(length=n) for n in (TILE - 1, TILE, TILE + 1, TILE + 2, 3 * TILE + 9)},
    **{f"length {n} in groups": Case(batch=1, length=n, channels=16) for n in range(5, 21)},
    **{f"width {k}": Case(length=TILE + 5, width=k) for k in (*range(1, 11), 17, 32)},
    **{f"{d} channels": Case(length=20, channels=d) for d in (15, 16, 17, 32)},
    "more channels than a task": Case(length=TILE + 3, channels=2 * CHANNELS + 37),
    "as wide as the rest": Case(length=TILE + 3, width=32, reverse=True),
    "packed": Case.of_sequences(TILE, 1, 2 * TILE + 1, 2, TILE - 1, channels=20),
    "packed, reverse": Case.of_sequences(3, TILE + 2, 1, 2 * TILE, channels=20, reverse=True),
    "packed, many short": Case.of_sequences(*[1, 2, 3, 4, 5] * 60, channels=16),
    "packed, wide": Case.of_sequences(TILE, 5, TILE + 70, width=32),
    "many short rows": Case(batch=400, length=2, channels=16, width=5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", BORDERS.values(), ids=BORDERS)
def test_values_and_gradients_are_right_at_the_borders_of_tiles(case, dtype):
    inputs, options = case.inputs(dtype), case.options()
    exact = {name: tensor.double() for name, tensor in inputs.items()}
    want = outcome(exact, "portable", **options)
    # y enters its own gradient: in bf16 with the rounding of y.
    factor = 3 if dtype == torch.bfloat16 else 1
    assert_near(outcome(inputs, **options), want, dtype, factor=factor)


@pytest.mark.parametrize("portable", [False, True], ids=["this CPU", "any CPU"])
@pytest.mark.parametrize("dtype", list(cases.TOLERANCES), ids=str)
def test_code_for_any_cpu_is_as_right_as_that_for_this_one(monkeypatch, dtype, portable):
    build = cpu_code.compiled
    monkeypatch.setattr(
        cpu_code,
        "compiled",
        lambda variant, *, backward: build(variant, backward=backward, portable=portable),
    )
    inputs = Case(length=TILE + 30, channels=20).inputs(dtype)
    want = outcome({n: t.double() for n, t in inputs.items()}, "portable")
    assert_near(outcome(inputs), want, dtype, factor=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_silu_is_right_from_one_end_of_its_range_to_the_other(dtype):
    x = torch.cat([torch.linspace(-80, 80, 4001), torch.logspace(-30, 0, 500)]).to(dtype)
    got = outcome({"x": x.view(1, -1, 1), "weight": torch.ones(1, 1, dtype=dtype)})["y"].flatten()
    want = x.double() / (1 + torch.exp(-x.double()))
    # -x log2(e) is rounded before exp2, which is 6e-8 of an exponent of up to 115.
    allowed = (5e-7 if dtype == torch.float32 else 1e-15) * (1 + x.double().abs() / 2)
    assert ((got.double() - want).abs() <= allowed * want.abs()).all()


# The same bits


def test_the_number_of_threads_changes_no_bit(restored_threads):
    inputs = Case(batch=3, length=900, channels=CHANNELS + 20).inputs(torch.float32)
    assert inputs["x"].numel() > cpu._ALONE
    found = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        found.append(outcome(inputs))
    for other in found[1:]:
        assert_same(other, found[0])


@pytest.mark.parametrize("length", [2, 200, TILE + 7])
def test_no_bit_of_a_row_depends_on_its_batch(length):
    inputs = Case(batch=5, length=length, channels=40).inputs(torch.float32)
    whole = outcome(inputs)
    along = ("x", "initial_state", "y", "state", "dx", "dinitial_state")
    alone = outcome({n: t[2:3] if n in along else t for n, t in inputs.items()})
    for name in along[2:]:
        assert torch.equal(alone[name], whole[name][2:3]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reverse", [False, True], ids=["onward", "reverse"])
def test_packed_sequences_have_the_bits_of_separate_ones(reverse, dtype):
    edges = [0, 1, 3, TILE, 2 * TILE + 9, 2 * TILE + 10, 4 * TILE]
    inputs = Case(batch=1, length=edges[-1], channels=40).inputs(dtype)
    inputs["initial_state"] = torch.randn(6, 3, 40).to(dtype)
    packed = outcome(inputs, cu_seqlens=torch.tensor(edges), reverse=reverse)
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        part = {**inputs, "x": inputs["x"][:, start:end]}
        part["initial_state"] = inputs["initial_state"][row : row + 1]
        alone = outcome(part, reverse=reverse)
        for name in ("y", "dx"):
            assert torch.equal(alone[name], packed[name][:, start:end]), name
        for name in ("state", "dinitial_state"):
            assert torch.equal(alone[name], packed[name][row : row + 1]), name


def test_no_bit_depends_on_the_length_of_a_tile(monkeypatch):
    """Where a position falls in its group and tile is an accident: it is computed the same way."""
    inputs = Case(length=600, channels=40).inputs(torch.float32)
    whole = outcome(inputs)
    monkeypatch.setattr(cpu, "TILE", 37)
    cpu._cut_rows.cache_clear()
    try:
        cut = outcome(inputs)
    finally:
        cpu._cut_rows.cache_clear()
    assert_same(cut, whole, ("y", "state", "dx", "dinitial_state"))


@pytest.mark.parametrize("reverse", [False, True], ids=["onward", "reverse"])
def test_inputs_are_taken_as_they_lie_in_memory_and_give_the_same_bits(reverse):
    inputs = Case(length=TILE + 50, channels=48).inputs(torch.float32)
    want = outcome(inputs, reverse=reverse)
    projected = torch.randn(2, TILE + 50, 3 * 48)
    projected[..., 48:96] = inputs["x"]
    views = {
        "a slice of a projection": projected[..., 48:96],
        "channels first": inputs["x"].transpose(1, 2).contiguous().transpose(1, 2),
        "time first": inputs["x"].transpose(0, 1).contiguous().transpose(0, 1),
        "every other channel": inputs["x"].repeat_interleave(2, 2)[..., ::2],
    }
    for x in views.values():
        assert_same(outcome({**inputs, "x": x}, reverse=reverse), want)


def test_two_threads_may_call_at_once():
    inputs = Case(batch=2, length=2000, channels=128).inputs(torch.float32)
    want = outcome(inputs)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            got = outcome(inputs)
            wrong.extend(name for name in want if not torch.equal(got[name], want[name]))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# What it touches


class _Allocated(TorchDispatchMode):
    """Counts the bytes of all tensors that operators of torch return."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not function.is_view:
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nothing_of_the_size_of_the_input_is_made_but_the_results(dtype):
    length = 16 * TILE
    x = torch.randn(1, length, CHANNELS).to(dtype)
    call = Conv(x, torch.randn(CHANNELS, 4), None, None, None, silu=True, reverse=False)
    dy, dfinal = torch.randn_like(x), torch.zeros(1, 3, CHANNELS, dtype=dtype)
    for work in (lambda: cpu.forward(call), lambda: cpu.backward(call, dy, dfinal)):
        with _Allocated() as made:
            work()
        scratch = 2 * cpu_code.scratch_bytes(4, 4)  # two threads at most for the tests' tasks
        sums = 16 * 5 * CHANNELS * 8
        assert x.nbytes <= made.bytes <= x.nbytes + scratch + 2 * sums


def test_what_is_not_finite_stays_in_its_channel_and_its_reach():
    inputs = Case(batch=1, length=TILE + 60, channels=35).inputs(torch.float32)
    clean = outcome(inputs)
    for place, value in ((TILE - 1, torch.nan), (TILE + 10, torch.inf)):
        spoilt = {name: tensor.clone() for name, tensor in inputs.items()}
        spoilt["x"][0, place, 33] = value
        got = outcome(spoilt)  # without a warning
        apart = [c for c in range(35) if c != 33]
        assert torch.equal(got["y"][..., apart], clean["y"][..., apart])
        assert torch.equal(got["dweight"][apart], clean["dweight"][apart])
        reached = (got["y"] != clean["y"])[0, :, 33].nonzero().flatten()
        assert place <= int(reached.min())
        assert int(reached.max()) < place + 4


# Where it does not run


def test_more_taps_than_are_written_out_are_left_to_another():
    inputs = Case(length=5, width=cpu.WIDEST + 1).inputs(torch.float32)
    with pytest.raises(BackendError, match="'cpu' cannot run here: writes out at most 32 taps"):
        causal_conv1d(**inputs, backend="cpu")
    want = causal_conv1d(**inputs, backend="portable")
    assert torch.equal(causal_conv1d(**inputs), want)


def test_without_llvmlite_there_is_a_reason_and_no_error(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "llvmlite" else found(name, *more),
    )
    inputs = Case().inputs(torch.float32)
    with pytest.raises(BackendError, match="'cpu' cannot run here: llvmlite is not installed"):
        causal_conv1d(**inputs, backend="cpu")
    assert causal_conv1d(**inputs).isfinite().all()


def test_asking_for_the_backends_does_not_import_llvmlite():
    program = """
import sys
from dnassm.kernels.causal_conv1d.op import BACKENDS
BACKENDS.all()
assert "llvmlite" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
