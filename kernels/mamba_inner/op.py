"""The Mamba block as operators of torch: what compile, checkpointing and DDP need to know.

``dnassm::mamba_inner`` returns y, the final states of every walk, and what its backward wants kept.
How it is cut is decided inside, so that a traced call holds no more than its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels import operators
from dnassm.kernels.backends import without_autocast
from dnassm.kernels.mamba_inner import fused
from dnassm.kernels.mamba_inner.arguments import STATES, TENSORS, Block, Walk
from dnassm.kernels.mamba_inner.plan import Plan
from dnassm.kernels.sequences import check_data

_ARGUMENTS = (
    "Tensor x, Tensor in_weight, Tensor out_weight, Tensor?[] walks, bool[] reverse, "
    "Tensor? cu_seqlens, bool exact, str keep, str backend"
)

inner = operators.define(f"mamba_inner({_ARGUMENTS}) -> (Tensor y, Tensor[] states, Tensor[] kept)")
inner_backward = operators.define(
    f"mamba_inner_backward({_ARGUMENTS}, Tensor[] kept, Tensor dy, Tensor[] dstates) "
    "-> (Tensor, Tensor, Tensor, Tensor[])"
)


def _block(
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    walks: list[Tensor | None],
    reverse: list[bool],
    *options: Any,
) -> Block:
    edges, exact, keep, backend = options
    count = len(TENSORS)
    of_each = (walks[start : start + count] for start in range(0, len(walks), count))
    made: list[Walk] = [
        Walk(*tensors, reverse=direction)  # type: ignore[misc, arg-type]
        for tensors, direction in zip(of_each, reverse, strict=True)
    ]
    return Block(x, in_weight, out_weight, tuple(made), edges, exact, tuple(keep.split()), backend)


def _forward(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    block = _block(*arguments)
    check_data("mamba_inner", block.x, block.cu_seqlens, None)
    for walk in block.walks:
        for state in (walk.conv_state, walk.ssm_state):
            check_data("mamba_inner", block.x, None, state)
    forward = fused.Forward(block)
    with torch.no_grad(), without_autocast(block.x.device):
        forward.run()
    return forward.y, forward.states, forward.kept


def _forward_fake(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    block = _block(*arguments)
    y = block.x.new_empty(*block.x.shape[:2], block.out_weight.shape[0])
    states = []
    for walk in block.walks:
        conv, ssm = block.state_shapes(walk)
        states += [block.x.new_empty(conv), walk.A.new_empty(ssm)]
    return y, states, Plan(block).empty_kept()


def _backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    *given, kept, dy, dstates = arguments
    block = _block(*given)
    backward = fused.Backward(block, kept, dy, dstates)
    with torch.no_grad(), without_autocast(block.x.device):
        backward.run()
        sums, x = backward.sums, block.x
        dwalks = [
            x.new_empty(0) if tensor is None else sums.get((index, name), tensor)
            for index, walk in enumerate(block.walks)
            for name, tensor in walk.tensors().items()
        ]
        din, dout = (
            sums.get((-1, name), getattr(block, name)) for name in ("in_weight", "out_weight")
        )
        return backward.dx, din, dout, dwalks


def _backward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    x, in_weight, out_weight, walks = arguments[:4]
    dx, din, dout = (t.new_empty(t.shape) for t in (x, in_weight, out_weight))
    dwalks = [x.new_empty(0) if t is None else t.new_empty(t.shape) for t in walks]
    return dx, din, dout, dwalks


class _Inner(torch.autograd.Function):
    """The block with its gradients; lists are laid out flat: autograd looks into none."""

    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        reverse, exact, keep, backend = options
        if not keep:
            options = (reverse, exact, STATES, backend)
        y, states, kept = operators.below_autograd(inner, _laid_out(tensors, options))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*tensors, *kept)
        ctx.options, ctx.given = options, len(tensors)
        return (y, *states, *kept)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.given], list(saved[ctx.given :])
        block = _block(*_laid_out(tensors, ctx.options))
        x, y_shape = block.x, (*block.x.shape[:2], block.out_weight.shape[0])
        dy, *rest = gradients
        dy = x.new_zeros(y_shape) if dy is None else dy
        empty = []
        for walk in block.walks:
            conv, ssm = block.state_shapes(walk)
            empty += [(x, conv), (walk.A, ssm)]
        dstates = [
            like.new_zeros(shape) if found is None else found
            for (like, shape), found in zip(empty, rest, strict=False)
        ]
        dx, din, dout, dwalks = inner_backward(*_laid_out(tensors, ctx.options), kept, dy, dstates)
        found = [
            None if tensor is None else gradient
            for tensor, gradient in zip(tensors[1:], (dx, din, dout, *dwalks), strict=True)
        ]
        return (None, None, *found)


def _laid_out(tensors: Any, options: tuple[Any, ...]) -> tuple[Any, ...]:
    """(cu_seqlens, x, in_weight, out_weight, *walks) -> arguments of the operator."""
    edges, x, in_weight, out_weight, *walks = tensors
    reverse, exact, keep, backend = options
    return (x, in_weight, out_weight, walks, reverse, edges, exact, keep, backend)


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd will ask for a backward: without one nothing has to be kept."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _differentiable(*arguments: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The operator above autograd."""
    x, in_weight, out_weight, walks, reverse, edges, exact, keep, backend = arguments
    tensors = (x, in_weight, out_weight, *walks)
    if not needs_gradient(tensors):
        return operators.below_autograd(inner, arguments)  # type: ignore[no-any-return]
    y, *rest = _Inner.apply((reverse, exact, keep, backend), edges, *tensors)
    states = 2 * len(reverse)
    return y, rest[:states], rest[states:]


operators.implement(inner, _forward, _forward_fake, _differentiable)
operators.implement(
    inner_backward,
    _backward,
    _backward_fake,
    operators.once_differentiable(inner_backward, ", or mamba_inner with fused=False"),
)
