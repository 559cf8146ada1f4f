"""The Mamba-2 block as the laws of every op see it: its two states laid side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.causal_conv1d import causal_conv1d_step
from dnassm.kernels.laws import SHORT, Bound, Subject
from dnassm.kernels.mamba2_inner import BACKENDS, State, mamba2_inner
from dnassm.kernels.mamba2_inner.arguments import TENSORS, Block
from dnassm.kernels.mamba2_inner.cases import Case
from dnassm.kernels.norm import norm
from dnassm.kernels.ssd import ssd_step

_GROUPS, _STATES, _WIDEST = 2, 16, 64
# Now and then all of ten channels are small at once, and the norm blows their rounding up; of the
# hundreds of a model they never are. So much is added to their mean square.
_EPS = 0.1
_SHARED = tuple(name for name in TENSORS if name != "x" and not name.endswith("_state"))
# Two products, a convolution, a recurrence and a norm, each result rounded: some ten roundings meet
# in y. The sums of dA cancel: at 2^20 positions the composition of the operators is off by 3.2e-2
# in bfloat16 and 5.2e-3 in float16, just as the fused block is.
_WIDER = {"dA": 5 / 3}
_BOUNDS = {
    torch.float64: Bound(1e-12, 1e-12, "eps 2e-16, some thousand steps and sums"),
    torch.float32: Bound(1e-5, 5e-5, "eps 6e-8, sums over channels, times sqrt(L) = 64 at L 4097"),
    torch.bfloat16: Bound(3e-2, 6e-2, "some ten tensors in a row rounded to 8 bits", _WIDER),
    torch.float16: Bound(4e-3, 8e-3, "some ten tensors in a row rounded to 11 bits", _WIDER),
}


def _block(inputs: Mapping[str, Tensor], state: Tensor | None = None) -> Block:
    """The call on these tensors, whose states are one (S, (K-1) W + E N)."""
    given: dict[str, Any] = {name: inputs.get(name) for name in TENSORS}
    options: dict[str, Any] = {"groups": _GROUPS, "dt_min": 0.0, "dt_max": math.inf, "eps": _EPS}
    block = Block(**given, **options, cu_seqlens=None, reverse=False, keep=(), backend="auto")
    if state is None:
        return block
    conv, ssm = (shape[1:] for shape in block.state_shapes)
    parts = state.split([math.prod(conv), math.prod(ssm)], dim=1)
    found = {"conv_state": parts[0].unflatten(1, conv), "ssm_state": parts[1].unflatten(1, ssm)}
    return _block({**inputs, **found})


def _joined(like: Tensor, conv: Tensor, ssm: Tensor) -> Tensor:
    return torch.cat([conv.flatten(1).to(like.dtype), ssm.flatten(1).to(like.dtype)], dim=1)


def _call(
    inputs: Mapping[str, Tensor], *, backend: str = "auto", **options: Any
) -> tuple[Tensor, Tensor]:
    """`backend` is one of this op, or one of its operators for the composition."""
    block = _block(inputs, inputs["initial_state"])
    given: dict[str, Any] = {name: getattr(block, name) for name in TENSORS}
    y, (conv, ssm) = mamba2_inner(
        **given,
        **options,
        groups=_GROUPS,
        eps=_EPS,
        return_state=True,
        fused=backend in ("auto", "fused"),
        backend="auto" if backend in BACKENDS.all() else backend,
    )
    return y, _joined(inputs["initial_state"], conv, ssm)


def _step(inputs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """One position by the steps of the operators."""
    block = _block({**inputs, "x": inputs["x"].unsqueeze(1)}, state)
    assert block.conv_state is not None  # noqa: S101  for mypy
    assert block.ssm_state is not None  # noqa: S101
    z, v, dt = F.linear(inputs["x"], block.in_weight).split(block.splits, dim=1)
    u, conv = causal_conv1d_step(
        v, block.conv_weight, block.conv_bias, block.conv_state.to(v.dtype), silu=True
    )
    x, B, C = block.maps(u)
    y, ssm = ssd_step(x, dt, block.A, B, C, block.ssm_state, D=block.D, dt_bias=block.dt_bias)
    normed = norm(y.flatten(1), block.norm_weight, gate=z, eps=_EPS, groups=_GROUPS)
    after = State(conv, ssm)
    return F.linear(normed, block.out_weight), _joined(state, *after)


def _inputs(dtype: torch.dtype, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    """E = M, which bounds what float64 takes; heads as those of SSD."""
    head_dim = min(_WIDEST, max(1, channels // 4))
    heads = channels // head_dim
    case = Case(batch, length, channels, heads, head_dim, groups=_GROUPS, states=_STATES)
    found = case.inputs(dtype)
    ssm = found.pop("ssm_state")
    return {**found, "initial_state": _joined(ssm, found.pop("conv_state"), ssm)}


def _bound(dtype: torch.dtype, length: int) -> Bound:
    """Beyond `SHORT` rounding errors of wide numbers add up as random signs do."""
    room = max(1.0, length / SHORT) ** 0.5 if dtype.itemsize >= 4 else 1.0
    return _BOUNDS[dtype].grown(room)


SUBJECT = Subject(
    backends=BACKENDS,
    call=_call,
    step=_step,
    arguments=_block,
    inputs=_inputs,
    along=("x",),
    shared=_SHARED,
    bound=_bound,
)
