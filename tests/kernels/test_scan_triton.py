"""The Triton scan without a GPU: its values in Triton's interpreter, its code compiled for GPUs.

Triton reads TRITON_INTERPRET when it is imported, which another test may have done: both run in a
process of their own, which is this file run as a script. A step takes the interpreter some 50 ms:
the cases are tiny, and chunks and segments are made as small.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from dnassm.kernels import triton_runtime
from dnassm.kernels.selective_scan import BACKENDS, cases, selective_scan, triton
from dnassm.kernels.selective_scan.arguments import Scan
from dnassm.kernels.selective_scan.cases import Case

SMALL = {"_CHUNK": 4, "_SUB": 2, "_SHORTEST_SEGMENT": 4}
EDGES = (0, 1, 6, 12)
"""Of three segments of 4 steps the middle one ends a sequence that the first has begun."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One call of the scan."""

    case: Case
    dtype: torch.dtype = torch.float32
    packed: bool = False
    reverse: bool = False

    def inputs(self) -> dict[str, Tensor]:
        inputs = self.case.inputs(self.dtype)
        if self.packed:
            state = inputs["initial_state"]
            inputs["initial_state"] = torch.cat([(k + 1) * state for k in range(len(EDGES) - 1)])
        return inputs


ONE = Case(batch=1, length=9, channels=3, states=3)
WIDE = dataclasses.replace(ONE, channels=4, groups=2, length=6)
PACKED = dataclasses.replace(ONE, length=EDGES[-1])
RUNS = {
    "one chunk, odd": Run(dataclasses.replace(ONE, length=3, states=1)),
    "N 16": Run(dataclasses.replace(ONE, states=16, length=5)),
    "N 17, reverse": Run(dataclasses.replace(ONE, states=17, length=5), reverse=True),
    "groups, two rows": Run(dataclasses.replace(WIDE, batch=2)),
    "bare, strided": Run(dataclasses.replace(ONE, bare=True, strided=True)),
    "packed": Run(PACKED, packed=True),
    "packed, reverse, bf16": Run(PACKED, torch.bfloat16, packed=True, reverse=True),
    "strided, fp16": Run(dataclasses.replace(ONE, strided=True), torch.float16),
    "steps from 1e-6 to 30": Run(dataclasses.replace(ONE, step=(1e-6, 30.0), decay=(1e-3, 64.0))),
    "two blocks of channels": Run(dataclasses.replace(ONE, channels=33, states=2, length=5)),
}


# In the interpreter (this file as a script)


def results_of(
    inputs: dict[str, Tensor], run: Run, backend: str, weights: list[Tensor]
) -> dict[str, Tensor]:
    """Values and gradients by name; the loss goes through y and through the final state."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    y, state = selective_scan(
        **leaves,
        dt_softplus=not run.case.bare,
        cu_seqlens=torch.tensor(EDGES, dtype=torch.int32) if run.packed else None,
        reverse=run.reverse,
        return_state=True,
        backend=backend,
    )
    results = (y, state)
    torch.autograd.backward(results, [w.to(r.dtype) for w, r in zip(weights, results, strict=True)])
    found = {"y": y.detach(), "state": state.detach()}
    return found | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def weights_of(run: Run, inputs: dict[str, Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    rows = len(EDGES) - 1 if run.packed else run.case.batch
    y = torch.randn(inputs["x"].shape, generator=generator).to(run.dtype)
    return [y, torch.randn((rows, *inputs["A"].shape), generator=generator)]


def error_of(got: Tensor, want: Tensor) -> float:
    error = (got.double() - want).square().mean().sqrt()
    return float(error / (want.square().mean().sqrt() + 1e-30))


def in_interpreter() -> dict[str, Any]:
    for name, value in SMALL.items():
        setattr(triton, name, value)
    errors, first = {}, {}
    for name, run in RUNS.items():
        inputs = run.inputs()
        weights = weights_of(run, inputs)
        exact = {key: tensor.double() for key, tensor in inputs.items()}
        want = results_of(exact, run, "reference", [w.double() for w in weights])
        first[name] = results_of(inputs, run, "triton", weights)
        errors[name] = {key: error_of(first[name][key], want[key]) for key in want}
    return {"errors": errors} | laws(first)


def laws(first: dict[str, dict[str, Tensor]]) -> dict[str, list[str]]:
    """Names of the results that differ where not a bit may."""
    name = "groups, two rows"
    run = RUNS[name]
    inputs = run.inputs()
    weights = weights_of(run, inputs)
    # Slabs of one chunk of one segment, walked by one program.
    triton._PARTIALS = triton._SCRATCH = 1
    again = results_of(inputs, run, "triton", weights)
    alone = {key: t[1:] if t.shape[0] == 2 and t.dim() > 2 else t for key, t in inputs.items()}
    row = results_of(alone, run, "triton", [weight[1:] for weight in weights])
    per_row = [key for key, tensor in row.items() if tensor.shape[0] == 1 and tensor.dim() > 2]
    assert len(per_row) == 8
    return {
        "slabs": [key for key in again if not torch.equal(again[key], first[name][key])],
        "alone": [key for key in per_row if not torch.equal(row[key], first[name][key][1:])],
    }


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
    for name in ("ends", "adjoints", "fold", "forward", "backward"):
        kernel = getattr(triton._kernels(), f"{name}_kernel")
        kernel.run = recorder(name, kernel.run, found)
    for packed in (False, True) if kind == "cuda" else (True,):
        case = Case(batch=1, length=2048, channels=64, states=16)
        inputs = case.inputs(torch.bfloat16)
        edges = None
        if packed:
            edges = torch.tensor([0, 5, 2048], dtype=torch.int32)
            inputs["initial_state"] = inputs["initial_state"].repeat(2, 1, 1)
        scan = Scan(**inputs, cu_seqlens=edges, dt_softplus=True, reverse=packed, exact=True)
        y, final, marks = triton.forward(scan)
        triton.backward(scan, marks, y, final)
    return found


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
    tolerance = cases.TOLERANCES[RUNS[name].dtype]
    errors = interpreted["errors"][name]
    assert len(errors) == 2 + len(RUNS[name].inputs())
    # The interpreter cuts float32 down to bfloat16 where a GPU rounds it.
    bound = tolerance.rms * (2 if RUNS[name].dtype == torch.bfloat16 else 1)
    for tensor, error in errors.items():
        assert error <= bound, f"{tensor}: {error:.2g} > {bound} ({tolerance.why})"


def test_slabs_and_programs_that_take_several_items_change_no_bit(interpreted):
    assert interpreted["slabs"] == []


def test_a_row_alone_is_bit_by_bit_the_row_in_its_batch(interpreted):
    assert interpreted["alone"] == []


@pytest.mark.parametrize(("kind", "binary"), [("cuda", "cubin"), ("hip", "hsaco")])
def test_every_kernel_compiles_without_a_gpu(tmp_path, kind, binary):
    found = script(kind, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 5
    assert all(binary in results for results in found.values())


def test_looking_for_backends_does_not_import_triton():
    code = (
        "import sys; from dnassm.kernels.selective_scan import BACKENDS; BACKENDS.all(); "
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    options = {"cu_seqlens": None, "dt_softplus": True, "reverse": False, "exact": False}
    return ONE.inputs(torch.float32) | options


def test_tensors_on_the_cpu_are_refused(given):
    assert triton.supports(Scan(**given)) == "the tensors are on the CPU, it needs a GPU"


def test_an_interpreter_asked_for_too_late_is_no_interpreter(given, monkeypatch):
    import triton.language as compiled_library

    monkeypatch.setitem(sys.modules, "triton.language.standard", compiled_library.standard)
    late = type(compiled_library.standard.sum).__name__ == "JITFunction"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert (triton.supports(Scan(**given)) is not None) == late


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_state"])
def test_float64_is_refused(given, name):
    given[name] = given[name].double()
    assert triton.supports(Scan(**given)).startswith(f"{name} is torch.float64, it takes float32")


def test_a_complex_decay_is_refused(given):
    given["A"] = given["A"].to(torch.complex64)
    assert triton.supports(Scan(**given)).startswith("A is torch.complex64, it takes float32")


def test_without_triton_it_says_so(given, monkeypatch):
    monkeypatch.setattr(triton_runtime, "_interpreted", lambda: True)
    monkeypatch.setattr(triton_runtime, "_installed", lambda: False)
    assert triton.supports(Scan(**given)) == "triton is not installed"


def test_it_stands_between_portable_and_the_compiled_backends():
    names = list(BACKENDS.all())
    assert names.index("cuda") < names.index("triton") < names.index("portable")


@pytest.mark.parametrize("states", [1, 16, 17, 256])
@pytest.mark.parametrize(("channels", "groups"), [(1, 1), (512, 1), (48, 16), (4096, 1)])
@pytest.mark.parametrize("length", [1, 127, 129, 4097, (1 << 20) + 3])
def test_a_plan_covers_the_length_and_wastes_less_than_a_segment(length, channels, groups, states):
    x = torch.empty(1, length, channels, device="meta")
    B = torch.empty(1, length, groups, states, device="meta")
    A = torch.empty(channels, states, device="meta")
    scan = Scan(x, x, A, B, B, None, None, None, None, None, True, False, False)
    plan = triton._plan(scan)
    segment = plan.chunks * plan.steps
    assert length <= plan.segments * segment < length + segment
    assert plan.steps % triton._SUB == 0
    assert plan.blocks * plan.block >= channels // groups
    assert plan.states >= states
    assert plan.states * plan.block <= triton._TILE
    assert triton.marks_shape(scan) == (1, plan.segments * plan.chunks, states, channels)


if __name__ == "__main__":
    asked = sys.argv[1]
    print(json.dumps(in_interpreter() if asked == "interpreter" else compiled(asked)))
