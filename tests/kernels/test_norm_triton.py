"""The Triton norms on the CPU: laws of test_norm.py in Triton's interpreter.

A process of its own, since the interpreter is chosen when triton is imported. No bfloat16: the
interpreter cuts off what a GPU rounds. And both kernels are compiled for an H100, which needs none.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAWS = Path(__file__).with_name("test_norm.py")
VALUES = "test_values_and_every_gradient_are_those_of_the_reference"
CHOSEN = [
    *(
        f"{VALUES}[triton-{case}-torch.float32]"
        for case in (
            "width 1",
            "width 33",
            "width 4097",
            "one row",
            "residual, many rows",
            "residual, layer, bias",
            "gate, many rows",
            "gate, layer, bias",
            "groups",
            "strided",
            "strided, residual",
            "strided, gate",
        )
    ),
    f"{VALUES}[triton-residual of the dtype of x-torch.float16]",
    f"{VALUES}[triton-gate, groups-torch.float16]",
    "test_a_row_alone_is_the_row_in_its_batch",
    "test_a_row_of_zeros_is_normed_to_zeros_with_finite_gradients",
    "test_a_mean_far_from_zero_costs_no_digits",
    "test_programs_that_take_several_tiles_give_the_same",
    "test_every_run_gives_the_same_bits[triton-residual, many rows]",
    "test_nothing_beside_a_tensor_is_read_or_written",
    "test_gradients_are_written_where_they_are_wanted",
    "test_rows_with_any_strides_are_taken_as_they_are",
    "test_an_expanded_gradient_is_taken[triton]",
    "test_the_two_gradients_of_a_sum_may_be_changed_apart[triton]",
]
COMPILE = """
import inspect, warnings
warnings.simplefilter("ignore")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from dnassm.kernels.norm.triton import kernels

pointers = {
    **dict.fromkeys(("x", "gate", "dy", "y", "dx", "dgate"), "*bf16"),
    **dict.fromkeys(("residual", "total", "dtotal", "dresidual"), "*fp32"),
    **dict.fromkeys(("weight", "bias", "partial"), "*fp32"),
}
for gated in (False, True):
    known = dict(x_column=1, centred=gated, has_bias=gated, gated=gated, steps=8, block=256)
    absent = ("residual", "total", "dtotal", "dresidual") if gated else ("gate", "bias", "dgate")
    known.update(dict.fromkeys(absent), each=1)
    for kernel in (kernels.forward, kernels.backward):
        names = list(inspect.signature(kernel.fn).parameters)
        kinds = {**pointers, "eps": "fp32"}
        signature = {n: "constexpr" if n in known else kinds.get(n, "i32") for n in names}
        given = {n: known[n] for n in names if n in known}
        source = ASTSource(fn=kernel, signature=signature, constexprs=given)
        assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(command: list[str], **environment: str) -> None:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, *command], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_they_keep_the_laws_in_the_interpreter():
    names = [f"{LAWS}::{name}" for name in CHOSEN]
    run(["-m", "pytest", "-q", "-k", "triton", *names], TRITON_INTERPRET="1")


def test_their_kernels_are_compiled_without_a_gpu(tmp_path):
    run(["-c", COMPILE], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
