"""The Triton loss on the CPU: laws of test_linear_cross_entropy.py in Triton's interpreter.

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

LAWS = Path(__file__).with_name("test_linear_cross_entropy.py")
VALUES = "test_values_and_every_gradient_are_those_of_the_reference"
CHOSEN = [
    *(
        f"{VALUES}[triton-{case}-torch.float32]"
        for case in (
            "vocabulary 2",
            "vocabulary 17",
            "vocabulary 100",
            "width 1",
            "width 65",
            "one token",
            "no axis",
            "many tokens",
            "weights, none",
            "smoothing",
            "smoothing of all",
            "strided",
        )
    ),
    f"{VALUES}[triton-many tokens-torch.float16]",
    f"{VALUES}[triton-weights-torch.float16]",
    "test_a_head_that_knows_nothing_pays_log_v",
    "test_a_vocabulary_of_one_costs_nothing",
    "test_where_nothing_counts_loss_and_gradients_are_zero",
    "test_an_ignored_token_gets_no_gradient_and_gives_none",
    "test_another_index_may_be_ignored_even_one_of_the_vocabulary",
    "test_logits_beyond_the_range_of_exp_are_taken",
    "test_the_mean_over_many_tokens_keeps_its_gradient_in_float16",
    "test_a_token_alone_is_that_token_in_its_batch",
    "test_programs_that_take_several_tiles_give_the_same",
    "test_a_bad_target_that_nobody_looked_at_has_a_loss_of_nan",
    "test_every_run_gives_the_same_bits",
    "test_nothing_beside_a_tensor_is_read_or_written",
]
COMPILE = """
import inspect, warnings
warnings.simplefilter("ignore")
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from dnassm.kernels.linear_cross_entropy.triton import kernels

sums = ("losses", "sums", "gradients", "unit", "of_weight", "of_bias", "bias")
for wide in (False, True):
    number = "*fp32" if wide else "*bf16"
    size = 32 if wide else 64
    kinds = {
        **dict.fromkeys(sums, "*fp32"),
        **dict.fromkeys(("hidden", "weight", "dhidden"), number),
        "targets": "*i64",
        "smoothing": "fp32",
    }
    known = dict(column_stride=1, tokens=size, columns=16, block=size)
    if not wide:
        known.update(bias=None)
    for kernel in (kernels.forward, kernels.backward):
        names = list(inspect.signature(kernel.fn).parameters)
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


def test_it_keeps_the_laws_in_the_interpreter():
    names = [f"{LAWS}::{name}" for name in CHOSEN]
    run(["-m", "pytest", "-q", "-k", "triton", *names], TRITON_INTERPRET="1")


def test_its_kernels_are_compiled_without_a_gpu(tmp_path):
    run(["-c", COMPILE], TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
