"""What is special about the CPU backend of the selective scan: its arithmetic and its threads.

That it computes what the reference computes is tested with all backends in test_selective_scan.py.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

from dnassm.errors import BackendError
from dnassm.kernels import threads, vector_code
from dnassm.kernels.selective_scan import cases, selective_scan
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.cases import Case

pytest.importorskip("llvmlite")

from dnassm.kernels import vector_math
from dnassm.kernels.selective_scan import cpu, cpu_code
from dnassm.kernels.vector_code import Code, Unit, Value

DTYPES = [torch.float32, torch.float64]
PORTABLE = pytest.mark.parametrize("portable", [False, True], ids=["this CPU", "any CPU"])


def applied(function, values: Tensor, *, portable: bool = False) -> Tensor:
    """function(code, vector) over an array whose size is a multiple of 16."""
    unit = Unit("test", values.dtype, portable=portable)
    code = Code(unit, "over_array", ["ptr"])
    fields = code.arguments[0]
    source, target = (code.load(code.at(fields, i, code.int), code.pointer) for i in range(2))
    count = code.load(code.at(fields, 2, code.int), code.int)
    with code.loop(0, count, code.lanes) as index:
        found: Value = function(code, code.load(code.at(source, index), code.vector))
        code.store(found, code.at(target, index))
    code.finish()
    unit.entry("apply", code)
    compiled = unit.compile()
    result = torch.empty_like(values)
    passed = (ctypes.c_int64 * 3)(values.data_ptr(), result.data_ptr(), values.numel())
    compiled.functions["apply"](ctypes.addressof(passed))
    return result


def relative_error(got: Tensor, want: Tensor) -> float:
    return float(((got.double() - want.double()) / want.double()).abs().max())


# Arithmetic


@PORTABLE
@pytest.mark.parametrize(
    ("dtype", "low", "error"), [(DTYPES[0], -126, 1e-7), (DTYPES[1], -1022, 4e-16)]
)
def test_exp2_is_right_over_its_whole_range(dtype, low, error, portable):
    spread = torch.linspace(low, -low, 1 << 20, dtype=dtype)
    near_zero = torch.logspace(-40, 0, 1 << 14, base=2, dtype=dtype)
    halves = torch.arange(-64, 64, dtype=dtype) / 2
    t = torch.cat([spread, near_zero, -near_zero, halves])
    got = applied(vector_math.exp2, t, portable=portable)
    if dtype == torch.float32:
        want = torch.exp2(t.double())
    else:  # not held to its equal: 2^t = 2^k 2^f, with f ln 2 exact enough in an exponential
        whole = t.round()
        want = torch.ldexp(torch.exp2(t - whole), whole)
    assert relative_error(got, want) < error


@PORTABLE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exp2_beyond_its_range_is_zero_infinite_or_nan(dtype, portable):
    edge = 1100.0 if dtype == torch.float64 else 140.0
    low = torch.tensor([-edge, -1e4, -1e10, -1e30, -math.inf, -edge * 2], dtype=dtype)
    odd = torch.tensor([math.nan, 0.0, -0.0, 1.0], dtype=dtype)
    got = applied(vector_math.exp2, torch.cat([low, -low, odd]), portable=portable)
    assert (got[:6] == 0).all()
    assert (got[6:12] == math.inf).all()
    assert got[12].isnan()
    assert got[13:].tolist() == [1.0, 1.0, 2.0]


@PORTABLE
@pytest.mark.parametrize(("dtype", "error"), [(DTYPES[0], 2.5e-7), (DTYPES[1], 1e-15)])
def test_softplus_and_its_slope_are_right_where_they_are_tiny_too(dtype, error, portable):
    """Relative to a step of 1e-30, not to 1: what is lost in a small step is lost in every one."""
    s = torch.cat([torch.linspace(-70, 70, 1 << 16), torch.linspace(-2, 2, 1 << 16)]).to(dtype)
    exact = s.double()
    small = torch.log1p(torch.exp(-exact.abs()))
    want = exact.clamp(min=0) + small
    slope = torch.where(exact > 0, torch.ones_like(exact), torch.exp(exact)) / (
        1 + torch.exp(-exact.abs())
    )
    for index, truth in enumerate((want, slope)):
        got = applied(
            lambda code, v, i=index: vector_math.softplus(code, v)[i], s, portable=portable
        )
        # The product of s and log2(e) is rounded before exp2: 6e-8 of an exponent of up to 100.
        allowed = error * (1 + (-exact).clamp(min=0) / 2)
        assert ((got.double() - truth).abs() / truth <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_softplus_of_infinities_and_nan(dtype):
    s = torch.tensor([math.inf, -math.inf, math.nan, 0.0, *[1.0] * 12], dtype=dtype)
    got = applied(lambda code, v: vector_math.softplus(code, v)[0], s)
    assert got[:2].tolist() == [math.inf, 0.0]
    assert got[2].isnan()
    assert float(got[3]) == pytest.approx(math.log(2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lane_i_is_the_sum_of_vector_i(dtype):
    lanes = 64 // dtype.itemsize
    values = torch.arange(lanes * lanes, dtype=dtype) ** 2

    def sums(code: Code, first: Value) -> Value:
        del first
        source = code.load(code.at(code.arguments[0], 0, code.int), code.pointer)
        rows = [code.load(code.at(source, i * lanes), code.vector) for i in range(lanes)]
        return vector_math.sum_lanes(code, rows)

    got = applied(sums, values)
    assert torch.equal(got[:lanes], values.view(lanes, lanes).sum(1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("columns", [1, 15, 16, 35])
@pytest.mark.parametrize("step", [1, 2])
def test_tiles_of_half_precision_are_read_exactly_and_written_as_torch_rounds(dtype, columns, step):
    unit = Unit("test", torch.float32)
    code = Code(unit, "one_tile", ["ptr"])
    reader, writer = vector_math.write_tile_reader(unit), vector_math.write_tile_writer(unit)
    given = [code.load(code.at(code.arguments[0], i, code.int), code.int) for i in range(8)]
    inside, outside = (Value(code, code.builder.inttoptr(g.raw, code.pointer)) for g in given[:2])
    way, *rest = given[2:]
    with code.when(way.equals(0)):
        code.call(reader, inside, rest[0], outside, *rest[1:3], rest[3], rest[0], rest[4], 0)
    with code.when(way.equals(1)):
        code.call(writer, inside, rest[0], outside, *rest[1:3], rest[3], rest[0], rest[4], 0)
    code.finish()
    unit.entry("move", code)
    compiled = unit.compile()  # the code lives as long as this
    rows = 5
    wide = (torch.randn(rows, columns * step) * 100).to(dtype)
    wide[0, 0] = math.inf
    half, single = wide[:, ::step], torch.empty(rows, columns)
    size = dtype.itemsize
    kind = vector_code.NUMBER_KINDS[dtype]

    def run(way: int, inside: Tensor, outside: Tensor) -> None:
        strides = (outside.stride(0) * size, outside.stride(1) * size)
        numbers = (inside.data_ptr(), outside.data_ptr(), way, columns, *strides, rows, kind)
        passed = (ctypes.c_int64 * 8)(*numbers)
        compiled.functions["move"](ctypes.addressof(passed))

    run(0, single, half)
    assert torch.equal(single, half.float())
    exact = torch.randn(rows, columns) * 10
    exact[0, 0], exact[-1, -1] = 1 + 2.0**-8 + 2.0**-9, math.nan
    run(1, exact, half)
    torch.testing.assert_close(half, exact.to(dtype), rtol=0, atol=0, equal_nan=True)
    if step == 2:  # what lies between is another's
        assert not torch.equal(wide[:, 1::2], half)


# The backend


def gradients(inputs: dict[str, Tensor], **options: object) -> dict[str, Tensor]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y, state = selective_scan(**leaves, backend="cpu", return_state=True, **options)
    (y.float().square().sum() + state.square().sum()).backward()
    return {"y": y.detach(), "state": state.detach()} | {n: t.grad for n, t in leaves.items()}


@pytest.fixture
def restored_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_changes_no_bit(restored_threads):
    inputs = Case(batch=3, length=900, channels=80, groups=2, states=5).inputs(torch.float32)
    found = []
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        found.append(gradients(inputs))
    for other in found[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in found[0].items())


def test_no_bit_of_a_row_depends_on_its_batch():
    inputs = Case(batch=5, length=200, channels=40, states=6).inputs(torch.float32)
    whole = gradients(inputs)
    shared = ("A", "D", "dt_bias")
    alone = gradients({n: t if n in shared else t[2:3] for n, t in inputs.items()})
    assert all(torch.equal(alone[n], whole[n][2:3]) for n in alone if n not in shared)


def test_pieces_of_the_backward_change_no_bit(monkeypatch):
    inputs = Case(batch=3, length=700, channels=40, states=6).inputs(torch.float32)
    whole = gradients(inputs)
    for budget in (1, 200_000):
        monkeypatch.setattr(cpu, "_PARTIAL_BYTES", budget)
        pieces = gradients(inputs)
        assert all(torch.equal(pieces[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("reverse", [False, True], ids=["onward", "reverse"])
def test_packed_sequences_have_the_bits_of_separate_ones(reverse):
    edges = [0, 1, 64, 65, 200, 201, 400]
    case = Case(batch=1, length=400, channels=24, groups=2, states=7)
    inputs = case.inputs(torch.bfloat16)
    inputs["initial_state"] = torch.randn(6, 24, 7)
    packed = gradients(inputs, cu_seqlens=torch.tensor(edges), reverse=reverse)
    along, sums = ("x", "dt", "B", "C", "z", "y"), ("A", "D", "dt_bias")
    for row, (start, end) in enumerate(itertools.pairwise(edges)):
        part = {n: t[:, start:end] if n in along else t for n, t in inputs.items()}
        part["initial_state"] = inputs["initial_state"][row : row + 1]
        alone = gradients(part, reverse=reverse)
        for name, tensor in alone.items():
            if name in along:
                assert torch.equal(tensor, packed[name][:, start:end]), name
            elif name not in sums:
                assert torch.equal(tensor, packed[name][row : row + 1]), name


def test_marks_that_no_packed_sequence_needs_are_zero_and_not_what_lay_in_memory():
    inputs = Case(batch=1, length=70, channels=3, bare=True).inputs(torch.float32)
    given = {**dict.fromkeys(("D", "z", "dt_bias", "initial_state")), **inputs}
    edges = torch.tensor([0, 10, 70], dtype=torch.int32)
    scan = Scan(**given, cu_seqlens=edges, dt_softplus=True, reverse=False, exact=True)
    marks = cpu.forward(scan)[2]
    tiles = 1 + -(-60 // cpu_code.STEPS)
    assert tuple(marks.shape) == cpu.marks_shape(scan)
    assert marks[tiles - 1].any()
    assert marks.shape[0] > tiles
    assert not marks[tiles:].any()


def test_transposed_inputs_are_taken_as_they_are():
    inputs = Case(length=150, channels=20, states=4).inputs(torch.float32)
    want = gradients(inputs)
    turned = {
        n: t.transpose(1, 2).contiguous().transpose(1, 2) if t.dim() == 3 else t
        for n, t in inputs.items()
    }
    turned["A"] = inputs["A"].T.contiguous().T
    got = gradients(turned)
    assert all(torch.equal(got[name], want[name]) for name in want)


@PORTABLE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_code_for_any_cpu_is_as_right_as_that_for_this_one(monkeypatch, dtype, portable):
    inputs = Case(length=300, channels=20, states=6, step=(1e-4, 10.0)).inputs(dtype)
    compiled = cpu_code.compiled(dtype, portable=portable)
    monkeypatch.setattr(cpu_code, "compiled", lambda dtype: compiled)
    got = selective_scan(**inputs, backend="cpu")
    want = selective_scan(**{n: t.double() for n, t in inputs.items()}, backend="reference")
    tolerance = cases.TOLERANCES[dtype]
    error = (got.double() - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert error < tolerance.rms


def test_a_state_that_fades_does_not_end_among_the_denormals():
    """Nothing flows in after position 0: 2000 steps later float32 has no number so small."""
    inputs = Case(batch=1, length=4000, channels=16, states=4, bare=True).inputs(torch.float32)
    inputs["x"][:, 1:], inputs["dt"][:] = 0, 0.05
    _, state = selective_scan(**inputs, dt_softplus=False, backend="cpu", return_state=True)
    tiny = torch.finfo(torch.float32).tiny
    assert ((state == 0) | (state.abs() >= tiny)).all()
    # and the caller's arithmetic still has denormals
    assert float(torch.tensor(tiny) / 2) > 0


# Processes and threads


def test_two_threads_may_call_at_once():
    inputs = Case(batch=2, length=2000, channels=64, states=16).inputs(torch.float32)
    want = gradients(inputs)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            got = gradients(inputs)
            wrong.extend(name for name in want if not torch.equal(got[name], want[name]))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes_with_threads_of_its_own():
    """In a process of its own: beside pytest's other threads Python would warn of the fork.

    numpy compares: torch's own threads do not survive a fork, and torch.equal would wait for them.
    """
    program = """
import os, torch
from dnassm.kernels.selective_scan import selective_scan
from dnassm.kernels.selective_scan.cases import Case
torch.set_num_threads(2)
inputs = Case(batch=2, length=2000, channels=64, states=16).inputs(torch.float32)
want = selective_scan(**inputs, backend="cpu")
child = os.fork()
if child == 0:
    same = (selective_scan(**inputs, backend="cpu").numpy() == want.numpy()).all()
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=120, check=False)
    assert done.returncode == 0


def test_a_caller_whose_pool_is_closed_does_the_work_itself(monkeypatch):
    def closed(workers):
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(threads, "_pool", closed)
    calls = []
    threads.run_on_threads(calls.append, 3, threads=4)
    assert calls == [3]


def test_an_error_in_a_worker_is_the_callers():
    def fail(number):
        raise ValueError(number)

    with pytest.raises(ValueError, match="5"):
        threads.run_on_threads(fail, 5, threads=2)


def test_importing_the_kernels_does_not_import_llvmlite():
    program = """
import sys
from dnassm.kernels.selective_scan import selective_scan
from dnassm.kernels.selective_scan.op import BACKENDS
BACKENDS.all()
assert "llvmlite" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_without_llvmlite_there_is_a_reason_and_no_error(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "llvmlite" else found(name, *more),
    )
    inputs = Case().inputs(torch.float32)
    with pytest.raises(BackendError, match="'cpu' cannot run here: llvmlite is not installed"):
        selective_scan(**inputs, backend="cpu")
    assert selective_scan(**inputs).isfinite().all()
