"""One position on a GPU in one kernel: the step kernels in Triton's interpreter, and compiled.

Processes of their own, since the interpreter is chosen when triton is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

IN_THE_INTERPRETER = """
import torch
from dnassm.kernels.causal_conv1d import causal_conv1d, causal_conv1d_step
from dnassm.kernels.causal_conv1d.cases import Case as Conv
from dnassm.kernels.selective_scan import selective_scan, selective_scan_step
from dnassm.kernels.selective_scan.cases import Case as Scan

def near(got, want, allowed):
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= allowed * want.abs().max(), (got, want)

def positions(inputs, names):
    return {n: t[:, 0] if n in names else t for n, t in inputs.items()}

for dtype, allowed in ((torch.float32, 1e-6), (torch.float16, 1e-3)):
    for case in (
        Scan(length=1),
        Scan(length=1, channels=70, groups=2, states=5, batch=3),
        Scan(length=1, channels=33, states=16, strided=True),
        Scan(length=1, bare=True),
    ):
        inputs = case.inputs(dtype)
        if case.bare:
            inputs["initial_state"] = torch.zeros(2, *inputs["A"].shape)
        exact = {n: t.double() for n, t in inputs.items()}
        softplus = {"dt_softplus": not case.bare}
        want = selective_scan(**exact, **softplus, return_state=True, backend="reference")
        given = positions(inputs, ("x", "dt", "B", "C", "z"))
        state = given.pop("initial_state")
        y, state = selective_scan_step(**given, **softplus, state=state)
        assert (y.dtype, state.dtype) == (dtype, inputs["A"].dtype)
        near(y, want[0][:, 0], allowed)
        near(state, want[1], 1e-6 if dtype == torch.float32 else allowed)
    for case in (
        Conv(length=1),
        Conv(length=1, channels=33, batch=3, strided=True),
        Conv(length=1, width=1),
        Conv(length=1, width=7, channels=130),
    ):
        inputs = case.inputs(dtype)
        exact = {n: t.double() for n, t in inputs.items()}
        for silu in (False, True):
            want = causal_conv1d(**exact, silu=silu, return_state=True, backend="reference")
            given = positions(inputs, ("x",))
            state = given.pop("initial_state")
            y, state = causal_conv1d_step(**given, state=state, silu=silu)
            assert (y.dtype, state.dtype) == (dtype, dtype)
            near(y, want[0][:, 0], allowed)
            assert torch.equal(state, want[1].to(dtype))
    inputs = Conv(length=1).inputs(dtype)
    del inputs["bias"]
    y, _ = causal_conv1d_step(inputs["x"][:, 0], inputs["weight"], None, inputs["initial_state"])
    exact = {n: t.double() for n, t in inputs.items()}
    near(y, causal_conv1d(**exact, backend="reference")[:, 0], allowed)
"""

IN_PLACE = """
import torch
import torch.nn.functional as F
from dnassm.config import ModelConfig
from dnassm.generation import Stepper
from dnassm.kernels.mamba_inner import Walk, mamba_inner_step, triton
from dnassm.kernels.mamba_inner.cases import Case
from dnassm.model import DNAModel

def near(got, want, allowed):
    assert got.shape == want.shape
    assert (got.double() - want).abs().max() <= allowed * want.abs().max(), (got, want)

CASES = (
    Case(batch=2, length=1, inner=70, states=16, rank=5),
    Case(batch=2, length=1, bare=True),
    Case(batch=1, length=1, states=1, rank=1, taps=2),
    Case(batch=2, length=1, inner=1, taps=7),
)
BOUNDS = ((torch.float32, 2e-6, 4), (torch.float16, 3e-3, 1), (torch.bfloat16, 2e-2, 2))
for dtype, allowed, count in BOUNDS:
    for case in CASES[:count]:
        named = case.inputs(dtype).named()
        given = {name.removesuffix(" 0"): tensor for name, tensor in named.items()}
        if case.bare:
            given["conv_state"] = torch.zeros(2, 3, case.inner)
            given["ssm_state"] = torch.zeros(2, case.inner, case.states)
        x, shared = given.pop("x")[:, 0], [given.pop("in_weight"), given.pop("out_weight")]
        exact = Walk(**{name: tensor.double() for name, tensor in given.items()})
        want, state = mamba_inner_step(x.double(), *(w.double() for w in shared), exact)
        walk = Walk(**given)
        assert triton.fits(F.linear(x, shared[0]), walk)
        got, after = mamba_inner_step(x, *shared, walk, in_place=True)
        assert after.conv is walk.conv_state and after.ssm is walk.ssm_state
        near(got, want, allowed)
        near(after.conv, state.conv, allowed)
        near(after.ssm, state.ssm, allowed)

walk = Walk(**given)._replace(ssm_state=torch.zeros(2, 16, 8)[..., ::2])
_, after = mamba_inner_step(x, *shared, walk, in_place=True)
assert after.ssm is not walk.ssm_state, "the kernel takes what lies as it is numbered"
for wide in (1 << 11, 5000):  # 16 states of more channels than registers hold
    named = Case(batch=1, length=1, inner=wide, states=16).inputs(torch.float32).named()
    given = {name.removesuffix(" 0"): tensor for name, tensor in named.items()}
    x, shared = given.pop("x")[:, 0], [given.pop("in_weight"), given.pop("out_weight")]
    walk = Walk(**given)
    assert not triton.fits(F.linear(x, shared[0]), walk)

torch.manual_seed(1)
with torch.no_grad():
    model = DNAModel(ModelConfig(d_model=8, pattern="mm")).eval()
    stepper, state = Stepper(model, 2), model.init_state(2)
    kept = [part for of_block in stepper.state for part in of_block]
    for tokens in torch.randint(4, (3, 2)):
        want, state = model.step(tokens, state)
        near(stepper.step(tokens), want.double(), 1e-5)
    for mine, theirs, first in zip(
        (part for of_block in stepper.state for part in of_block),
        (part for of_block in state for part in of_block),
        kept,
    ):
        assert mine is first
        near(mine, theirs.double(), 1e-5)
"""

COMPILED = """
import inspect, warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dnassm.kernels.causal_conv1d.triton import step as conv
from dnassm.kernels.mamba_inner.triton import step as inner
from dnassm.kernels.selective_scan.triton import step as scan

flags = dict(has_bias=True, has_skip=True, has_gate=True, softplus=True, silu=True)
flags |= dict(width=4, padded=16, block=32)
strides = {"weight_strides": 2, "state_strides": 3}
for kernel, of_x in ((conv._step_kernel, ("i32", "i32")), (scan._step_kernel, None)):
    pairs = (("i32", "i32"),) * 4 + (("i32", "i32", "i32"),) * 3
    sizes = ("channels", "states", "per_group")
    signature, known = {}, {}
    for name in inspect.signature(kernel.fn).parameters:
        if name in flags:
            signature[name], known[name] = "constexpr", flags[name]
        elif name == "strides":
            signature[name] = of_x or pairs
        elif name in strides:
            signature[name] = ("i32",) * strides[name]
        else:
            narrow = "*bf16" if name in ("x", "dt", "B", "C", "z", "y") else "*fp32"
            signature[name] = "i32" if name in sizes else narrow
    source = ASTSource(fn=kernel, signature=signature, constexprs=known)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]

known = dict(block=512, state_block=16, rank_block=16, width_block=4)
narrow, signature = ("xz", "x_weight", "dt_weight", "y"), {}
for name in inspect.signature(inner._step_kernel.fn).parameters:
    kind = "i32" if name in ("channels", "states", "rank", "width") else "*fp32"
    signature[name] = "constexpr" if name in known else "*bf16" if name in narrow else kind
source = ASTSource(fn=inner._step_kernel, signature=signature, constexprs=known)
assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 16})
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def run(script: str, **environment: str) -> None:
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


def test_they_are_a_scan_and_a_convolution_of_one_position():
    run(IN_THE_INTERPRETER, TRITON_INTERPRET="1")


def test_the_mamba_block_steps_in_one_kernel_over_its_own_state():
    run(IN_PLACE, TRITON_INTERPRET="1")


def test_they_are_compiled_without_a_gpu(tmp_path):
    run(COMPILED, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
