"""The Triton convolution on the CPU: laws of test_causal_conv1d.py in Triton's interpreter.

A process of its own, since the interpreter is chosen when triton is imported. No bfloat16: the
interpreter cuts off what a GPU rounds. And every kernel is compiled for an H100, which needs none.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAWS = Path(__file__).with_name("test_causal_conv1d.py")
VALUES = "test_values_and_every_gradient_are_those_of_the_reference"
CHOSEN = [
    *(
        f"{VALUES}[triton-{case}-torch.float32-silu]"
        for case in (
            "length 1",
            "length 65",
            "wider than long",
            "width 1",
            "33 channels",
            "strided",
            "reverse, wider than long",
            "packed, bare",
            "packed, reverse",
            "packed, wider than long",
        )
    ),
    f"{VALUES}[triton-packed-torch.float16-linear]",
    f"{VALUES}[triton-reverse-torch.float16-linear]",
    *(
        f"test_results_are_written_where_they_are_wanted[triton-{case}]"
        for case in ("33 channels", "reverse, wider than long", "packed")
    ),
    "test_packed_sequences_are_sequences_apart[triton-packed, reverse]",
    "test_what_one_sequence_holds_never_reaches_another[triton]",
    "test_a_row_alone_is_the_row_in_its_batch[triton]",
    "test_every_run_gives_the_same_bits[triton-packed]",
    "test_an_expanded_gradient_is_taken[triton]",
    "test_nothing_beside_an_input_is_read[triton-packed]",
    "test_a_state_does_not_keep_its_input_alive[triton]",
]
COMPILE = """
import inspect, warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dnassm.kernels.causal_conv1d.triton import kernels

constants = dict(
    width=4, silu=True, has_bias=True, has_state=True, steps=32, block=64, summed=16, x_channel=1
)
pointers = {"x": "*bf16", "dy": "*bf16", "y": "*bf16", "dx": "*bf16"}
for name in ("begins", "ends", "states"):
    pointers[name] = "*i64"
for name in ("weight", "bias", "initial", "gradients", "partial", "dfinal"):
    pointers[name] = "*fp32"
for packed in (False, True):
    known = {**constants, "packed": packed, "reverse": packed}
    if not packed:  # and a length of 1, which Triton makes a constant
        known.update(begins=None, ends=None, states=None, length=1)
    for kernel in (kernels.forward, kernels.before_silu, kernels.of_weights, kernels.of_inputs):
        names = list(inspect.signature(kernel.fn).parameters)
        signature = {n: "constexpr" if n in known else pointers.get(n, "i32") for n in names}
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


def test_it_keeps_the_laws_in_the_interpreter():
    run(["-m", "pytest", "-q", *(f"{LAWS}::{name}" for name in CHOSEN)], TRITON_INTERPRET="1")


def test_its_kernels_are_compiled_without_a_gpu(tmp_path):
    run(["-c", COMPILE], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
