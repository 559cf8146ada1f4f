"""The Mamba block as the laws of every op see it: one walk, its two states laid side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.laws import SHORT, Bound, Subject
from dnassm.kernels.mamba_inner import BACKENDS, State, Walk, mamba_inner, mamba_inner_step
from dnassm.kernels.mamba_inner.arguments import TENSORS, Block
from dnassm.kernels.mamba_inner.cases import Case

_SHARED = ("in_weight", "out_weight", *(name for name in TENSORS if not name.endswith("_state")))
# Five products and two recurrences in a row, each result rounded: some ten roundings meet in y.
_BOUNDS = {
    torch.float64: Bound(1e-12, 1e-12, "eps 2e-16, some thousand steps and sums"),
    torch.float32: Bound(1e-5, 5e-5, "eps 6e-8, sums over channels, times sqrt(L) = 64 at L 4097"),
    torch.bfloat16: Bound(2e-2, 4e-2, "some ten tensors in a row rounded to 8 bits"),
    torch.float16: Bound(3e-3, 6e-3, "some ten tensors in a row rounded to 11 bits"),
}


def _split(inputs: Mapping[str, Tensor], states: Tensor) -> State:
    """(S, (K-1) E + E N) -> the states of the convolution and of the scan."""
    inner, taps = inputs["conv_weight"].shape
    conv, ssm = states.split([(taps - 1) * inner, states.shape[1] - (taps - 1) * inner], dim=1)
    return State(conv.unflatten(1, (taps - 1, inner)), ssm.unflatten(1, (inner, -1)))


def _joined(like: Tensor, conv: Tensor, ssm: Tensor) -> Tensor:
    return torch.cat([conv.flatten(1).to(like.dtype), ssm.flatten(1).to(like.dtype)], dim=1)


def _walk(inputs: Mapping[str, Tensor], *, reverse: bool = False) -> Walk:
    named: Any = {name: inputs[name] for name in TENSORS if name in inputs}
    if "initial_state" in inputs:
        conv, ssm = _split(inputs, inputs["initial_state"])
        named |= {"conv_state": conv, "ssm_state": ssm}
    return Walk(**named, reverse=reverse)


def _call(
    inputs: Mapping[str, Tensor],
    *,
    backend: str = "auto",
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`backend` is one of this op, or one of its operators for the composition."""
    y, ((conv, ssm),) = mamba_inner(
        inputs["x"],
        inputs["in_weight"],
        inputs["out_weight"],
        _walk(inputs, reverse=reverse),
        cu_seqlens=cu_seqlens,
        return_state=True,
        fused=backend in ("auto", "fused"),
        backend="auto" if backend in BACKENDS.all() else backend,
    )
    return y, _joined(inputs["initial_state"], conv, ssm)


def _step(inputs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    """One position; the states are copies, so that a kernel may write over them."""
    conv, ssm = (
        part.clone(memory_format=torch.contiguous_format) for part in _split(inputs, state)
    )
    walk = _walk(inputs)._replace(conv_state=conv.to(inputs["x"].dtype), ssm_state=ssm)
    weights = inputs["in_weight"], inputs["out_weight"]
    y, after = mamba_inner_step(inputs["x"], *weights, walk, in_place=True)
    return y, _joined(state, *after)


def _arguments(inputs: Mapping[str, Tensor]) -> Block:
    shared = (inputs["x"], inputs["in_weight"], inputs["out_weight"], (_walk(inputs),))
    return Block(*shared, cu_seqlens=None, exact=False, keep=(), backend="auto")


def _inputs(dtype: torch.dtype, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    """E = M, which bounds what float64 takes; states as wide as those of the scan."""
    rank = max(1, channels // 16)
    case = Case(batch, length, channels, channels, states=16, rank=rank)
    named = case.inputs(dtype).named()
    found = {name.removesuffix(" 0"): tensor for name, tensor in named.items()}
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
    arguments=_arguments,
    inputs=_inputs,
    along=("x",),
    shared=_SHARED,
    bound=_bound,
)
