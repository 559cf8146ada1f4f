"""SSD in Triton without a GPU: its values in Triton's interpreter, its code compiled for GPUs.

Triton reads TRITON_INTERPRET when it is imported, which another test may have done: both run in a
process of their own, which is this file run as a script. The cases are tiny, and so are segments.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from dnassm.kernels import triton_runtime
from dnassm.kernels.ssd import BACKENDS, cases, triton
from dnassm.kernels.ssd.arguments import Gradients, Into, Ssd
from dnassm.kernels.ssd.cases import Case

SMALL = {"_SEGMENT": (1, 1, 1)}
EDGES = (0, 1, 20, 52)
"""Of chunks of 16 positions: one, two with a short one, two full ones."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the op."""

    case: Case
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def inputs(self) -> dict[str, Tensor]:
        inputs = self.case.inputs(self.dtype)
        if "cu_seqlens" in self.options:
            state = inputs["initial_state"]
            inputs["initial_state"] = torch.cat([(k + 1) * state for k in range(len(EDGES) - 1)])
        return inputs


ONE = Case(batch=1, length=20, heads=1, width=3, states=5)
PACKED = dataclasses.replace(ONE, length=EDGES[-1], gated=False)
PACK = {"cu_seqlens": torch.tensor(EDGES)}
NARROW = dataclasses.replace(ONE, heads=3, width=16, states=16)
RUNS = {
    "three segments": Run(dataclasses.replace(ONE, length=33)),
    "groups, two rows, no gate": Run(
        dataclasses.replace(ONE, batch=2, heads=2, groups=2, gated=False)
    ),
    "bare, strided, steps from 1e-4 to 10": Run(
        dataclasses.replace(ONE, bare=True, strided=True, step=(1e-4, 10.0), decay=(1e-3, 64.0))
    ),
    "two blocks of channels": Run(
        dataclasses.replace(ONE, width=70, length=3, skip_per_channel=True)
    ),
    "packed, reverse, limits": Run(
        PACKED, options={**PACK, "reverse": True, "dt_limit": (0.01, 0.05)}
    ),
    "bf16": Run(NARROW, torch.bfloat16),
    "fp16": Run(dataclasses.replace(ONE, length=16), torch.float16),
}


# In the interpreter (this file as a script)


def round_as_a_gpu() -> None:
    """The interpreter cuts float32 down to bfloat16; a GPU rounds to nearest."""
    import triton.language as tl
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def rounding(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, kind)
        rounded = torch.from_numpy(source.data.copy()).bfloat16().view(torch.uint16)
        return interpreter.TensorHandle(rounded.numpy().reshape(source.data.shape), kind.scalar)

    interpreter.InterpreterBuilder.cast_impl = rounding


def in_interpreter() -> dict[str, Any]:
    round_as_a_gpu()
    for name, value in SMALL.items():
        setattr(triton, name, value)
    faults, first = {}, {}
    for name, run in RUNS.items():
        inputs = run.inputs()
        how = {"chunk": 16, **run.options}
        first[name] = cases.outcome(inputs, backend="triton", **how)
        want = cases.truth(inputs, first[name][1], **how)
        bound = cases.TOLERANCES[run.dtype]
        # Of some tens of numbers the mean is not that of many.
        bound = dataclasses.replace(bound, rms=1.5 * bound.rms)
        faults[name] = cases.faults(first[name][0], want, bound)
    found = {"faults": faults} | laws(*first["groups, two rows, no gate"])
    packed = Run(PACKED, torch.bfloat16, {**PACK, "reverse": True})
    found["misplaced"] = misplaced(RUNS["groups, two rows, no gate"]) + misplaced(packed)
    return found | {"stale": stale()}  # last: it cuts otherwise


def laws(first: dict[str, Tensor], weights: list[Tensor]) -> dict[str, list[str]]:
    """Names of the results that differ where not a bit may."""
    inputs = RUNS["groups, two rows, no gate"].inputs()
    triton._KEPT = 1  # slabs of one segment
    again, _ = cases.outcome(inputs, weights, backend="triton", chunk=16)
    shared = ("A", "D", "dt_bias")
    alone = {key: t if key in shared else t[1:] for key, t in inputs.items()}
    row, _ = cases.outcome(alone, [w[1:] for w in weights], backend="triton", chunk=16)
    per_row = [key for key in row if key[1:] not in shared]
    assert len(per_row) == 7
    return {
        "slabs": [key for key in per_row if not torch.equal(again[key], first[key])],
        "alone": [key for key in per_row if not torch.equal(row[key], first[key][1:])],
    }


def misplaced(run: Run) -> list[str]:
    """Gradients that differ where they are written side by side, that of x over that of y."""
    call = call_of(run.inputs(), **run.options, chunk=16)
    y, final, marks = triton.forward(call)
    want = triton.backward(call, marks, y, final)
    tensors = (call.x, call.B, call.C, call.dt)
    widths = [tensor[0, 0].numel() for tensor in tensors]
    room = torch.full((*call.x.shape[:2], sum(widths) + 3), torch.nan, dtype=run.dtype)
    *places, beside = room.split([*widths, 3], dim=2)
    into = Into(*(place.view(t.shape) for place, t in zip(places, tensors, strict=True)))
    into.x.copy_(y)
    got = triton.backward(call, marks, into.x, final, into)
    pairs = zip(Gradients._fields, got, want, strict=True)
    wrong = [field for field, mine, theirs in pairs if mine is not None and mine.ne(theirs).any()]
    return wrong if bool(beside.isnan().all()) else [*wrong, "beside"]


def stale() -> list[str]:
    """Faults where a slab ends with an empty chunk: nothing of the slab before it may be added."""
    triton._KEPT, triton._SEGMENT = 1, (32, 32, 32)  # of three chunks of 16, two slabs of two
    inputs = RUNS["three segments"].inputs()
    got, weights = cases.outcome(inputs, backend="triton", chunk=16)
    want = cases.truth(inputs, weights, chunk=16)
    return cases.faults(got, want, cases.TOLERANCES[torch.float32])


# Compiled, without a GPU (this file as a script)


def compiled(kind: str) -> dict[str, list[str]]:
    """The kernels that forward and backward would launch, compiled for a GPU that is not here."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    target = GPUTarget("cuda", 90, 32) if kind == "cuda" else GPUTarget("hip", "gfx942", 64)
    driver.set_active(
        types.SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
        )
    )
    found: dict[str, list[str]] = {}
    for name in ("steps", "walk", "fold", "forward", "pairs", "into", "out", "ddt"):
        kernel = getattr(triton._kernels(), f"{name}_kernel")
        kernel.run = recorder(name, kernel.run, found)
    case = Case(batch=1, length=2048, heads=2, width=16, states=16, gated=False)
    inputs = case.inputs(torch.bfloat16)
    inputs["initial_state"] = inputs["initial_state"].repeat(2, 1, 1, 1)
    edges = torch.tensor([0, 5, 2048], dtype=torch.int32)
    call = call_of(inputs, cu_seqlens=edges, reverse=True, chunk=16)
    y, final, marks = triton.forward(call)
    triton.backward(call, marks, y, final)
    return found


def call_of(inputs: dict[str, Tensor], **options: Any) -> Ssd:
    given: dict[str, Any] = {name: inputs.get(name) for name in Gradients._fields}
    given |= {"cu_seqlens": None, "dt_softplus": True, "dt_min": 0.0, "dt_max": math.inf}
    return Ssd(**given | {"reverse": False, "chunk": None} | options)


def recorder(name: str, run: Any, found: dict[str, list[str]]) -> Any:
    """Instead of a launch: all of it but the last step."""

    def compile_only(*arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        found[name] = list(run(*arguments, grid=grid, warmup=True, **options).asm)

    return compile_only


def script(*arguments: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", __file__, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


# Tests


@pytest.fixture(scope="module")
def interpreted() -> Any:
    return script("interpreter", TRITON_INTERPRET="1")


@pytest.mark.parametrize("name", RUNS)
def test_values_and_every_gradient_in_the_interpreter_are_those_of_the_reference(interpreted, name):
    assert interpreted["faults"][name] == []


def test_slabs_change_no_bit(interpreted):
    assert interpreted["slabs"] == []


def test_gradients_are_written_where_they_are_wanted(interpreted):
    assert interpreted["misplaced"] == []


def test_a_slab_adds_nothing_of_the_one_before(interpreted):
    assert interpreted["stale"] == []


def test_a_row_alone_is_bit_by_bit_the_row_in_its_batch(interpreted):
    assert interpreted["alone"] == []


@pytest.mark.parametrize(
    ("kind", "binary"),
    [("cuda", "cubin"), pytest.param("hip", "hsaco", marks=pytest.mark.slow)],
)
def test_every_kernel_compiles_without_a_gpu(tmp_path, kind, binary):
    found = script(kind, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 8
    assert all(binary in results for results in found.values())


def test_looking_for_backends_does_not_import_triton():
    code = (
        "import sys; from dnassm.kernels.ssd import BACKENDS; BACKENDS.all(); "
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return ONE.inputs(torch.float32)


def test_tensors_on_the_cpu_are_refused(given):
    assert triton.supports(call_of(given)) == "the tensors are on the CPU, it needs a GPU"


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"])
def test_float64_is_refused(given, name):
    given[name] = given[name].double()
    assert triton.supports(call_of(given)).startswith(f"{name} is torch.float64, it takes float32")


def test_without_triton_it_says_so(given, monkeypatch):
    monkeypatch.setattr(triton_runtime, "_interpreted", lambda: True)
    monkeypatch.setattr(triton_runtime, "_installed", lambda: False)
    assert triton.supports(call_of(given)) == "triton is not installed"


def test_more_states_than_it_takes_are_named(given, monkeypatch):
    monkeypatch.setattr(triton_runtime, "_interpreted", lambda: True)
    given["B"] = given["C"] = torch.ones(1, 20, 1, 513)
    assert triton.supports(call_of(given)) == "N is 513, it takes up to 512"


def test_it_stands_before_portable():
    names = list(BACKENDS.all())
    assert names.index("triton") < names.index("portable") < names.index("reference")


@pytest.mark.parametrize("sequences", [None, 1, 7, 1000])
@pytest.mark.parametrize(("width", "states"), [(1, 1), (64, 128), (100, 17), (64, 512)])
@pytest.mark.parametrize("length", [1000, 4097, (1 << 20) + 3])
def test_a_plan_covers_every_sequence(length, width, states, sequences):
    x = torch.empty(1, length, 3, width, device="meta")
    maps = torch.empty(1, length, 1, states, device="meta")
    given = {"x": x, "dt": x[..., 0], "A": x[0, 0, :, 0], "B": maps, "C": maps}
    edges = None if sequences is None else torch.empty(sequences + 1, device="meta")
    plan = triton._plan(call_of(given, cu_seqlens=edges))
    assert plan.states >= states
    assert plan.width * plan.states <= triton._TILE
    positions = plan.steps * plan.chunks
    count = sequences or 1
    # The worst cut: every sequence but one is a single position longer than its whole segments.
    whole = (length - count) // positions
    assert plan.segments >= whole + count if count > 1 else plan.segments * positions >= length
    assert plan.segments <= length // positions + count


def test_a_chunk_asked_for_is_taken_up_to_the_next_size():
    given = dataclasses.replace(ONE, length=99).inputs(torch.bfloat16)
    found = [triton._plan(call_of(given, chunk=n)).steps for n in (1, 16, 17, 31, 32, 1000)]
    assert found == [16, 16, 32, 32, 32, 64]


def test_the_table_of_a_pack_has_every_segment_once(given, monkeypatch):
    monkeypatch.setattr(triton, "_SEGMENT", (1, 1, 1))
    inputs = PACKED.inputs(torch.float32)
    run = triton._Run(call_of(inputs, cu_seqlens=torch.tensor(EDGES).int(), chunk=16))
    edges, base, owner = run.tables
    assert edges.tolist() == list(EDGES)
    assert base.tolist() == [0, 1, 3, 5]
    assert owner.tolist() == [0, 1, 1, 2, 2, *[-1] * (run.plan.segments - 5)]


if __name__ == "__main__":
    asked = sys.argv[1]
    print(json.dumps(in_interpreter() if asked == "interpreter" else compiled(asked)))
