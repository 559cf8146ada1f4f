"""The Mamba-2 block as operators of torch: what compile, checkpointing and DDP need to know.

``dnassm::mamba2_inner`` returns y, the final states, and what its backward wants kept. How it is
cut is decided inside, so that a traced call holds no more than its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels import operators
from dnassm.kernels.backends import without_autocast
from dnassm.kernels.mamba2_inner import fused
from dnassm.kernels.mamba2_inner.arguments import STATES, TENSORS, Block, States
from dnassm.kernels.sequences import check_data

_ARGUMENTS = (
    "Tensor x, Tensor in_weight, Tensor conv_weight, Tensor A, Tensor norm_weight, "
    "Tensor out_weight, Tensor? conv_bias, Tensor? dt_bias, Tensor? D, Tensor? conv_state, "
    "Tensor? ssm_state, Tensor? cu_seqlens, int groups, float dt_min, float dt_max, float eps, "
    "bool reverse, str keep, str backend"
)
_GIVEN = len(TENSORS) + 1
"""Arguments that are tensors: cu_seqlens too."""

inner = operators.define(
    f"mamba2_inner({_ARGUMENTS}) -> (Tensor y, Tensor conv_state, Tensor ssm_state, Tensor[] kept)"
)
inner_backward = operators.define(
    f"mamba2_inner_backward({_ARGUMENTS}, Tensor[] kept, Tensor dy, Tensor dconv, Tensor dssm) "
    f"-> ({', '.join(['Tensor'] * len(TENSORS))})"
)


def _block(*arguments: Any) -> Block:
    *given, keep, backend = arguments
    fields: Any = (*given, tuple(keep.split()), backend)
    return Block(*fields)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    block = _block(*arguments)
    for state in (block.conv_state, block.ssm_state):
        check_data("mamba2_inner", block.x, block.cu_seqlens, state)
    forward = fused.Forward(block)
    with torch.no_grad(), without_autocast(block.x.device):
        conv_state, ssm_state = forward.run()
    assert conv_state is not None  # noqa: S101  for mypy: there is a piece
    assert ssm_state is not None  # noqa: S101
    return forward.y, conv_state, ssm_state, [forward.kept[key] for key in block.leaves()]


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    block = _block(*arguments)
    x, (conv, ssm) = block.x, block.state_shapes
    y = x.new_empty(*x.shape[:2], block.out_weight.shape[0])
    return y, x.new_empty(conv), block.A.new_empty(ssm), fused.empty_kept(block)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, kept, dy, dconv, dssm = arguments
    block = _block(*given)
    named = dict(zip(block.leaves(), kept, strict=True))
    with torch.no_grad(), without_autocast(block.x.device):
        return tuple(fused.Backward(block, named, dy, States(dconv, dssm)).run())


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    x = arguments[0]
    return tuple(
        x.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in arguments[: len(TENSORS)]
    )


class _Inner(torch.autograd.Function):
    """The block with its gradients; what is kept is laid out flat: autograd looks into no list."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *given, keep, backend = arguments
        arguments = (*given, keep or STATES, backend)
        y, conv_state, ssm_state, kept = operators.below_autograd(inner, arguments)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*arguments[:_GIVEN], *kept)
        ctx.options = arguments[_GIVEN:]
        return (y, conv_state, ssm_state, *kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        given, kept = saved[:_GIVEN], list(saved[_GIVEN:])
        block = _block(*given, *ctx.options)
        x, (conv, ssm) = block.x, block.state_shapes
        dy, dconv, dssm = gradients[:3]
        dy = x.new_zeros(*x.shape[:2], block.out_weight.shape[0]) if dy is None else dy
        dconv = x.new_zeros(conv) if dconv is None else dconv
        dssm = block.A.new_zeros(ssm) if dssm is None else dssm
        found = inner_backward(*given, *ctx.options, kept, dy, dconv, dssm)
        return (
            *(None if t is None else g for t, g in zip(given, found, strict=False)),
            *(None for _ in ctx.options),
            None,  # cu_seqlens
        )


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd will ask for a backward: without one nothing has to be kept."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _differentiable(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """The operator above autograd."""
    if not needs_gradient(arguments[: len(TENSORS)]):
        return operators.below_autograd(inner, arguments)  # type: ignore[no-any-return]
    y, conv_state, ssm_state, *kept = _Inner.apply(*arguments)
    return y, conv_state, ssm_state, kept


operators.implement(inner, _forward, _forward_fake, _differentiable)
operators.implement(
    inner_backward,
    _backward,
    _backward_fake,
    operators.once_differentiable(inner_backward, ", or mamba2_inner with fused=False"),
)
