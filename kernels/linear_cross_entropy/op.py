"""The loss as operators of torch: what compile, checkpointing and DDP need to know.

``dnassm::linear_cross_entropy`` returns the loss of every token, 4 bytes each, and the log of its
sum of exp, with which the backward finds every probability again. Weights and sums over tokens
are plain operators of torch around it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels import operators
from dnassm.kernels.backends import Backends, without_autocast
from dnassm.kernels.linear_cross_entropy.arguments import Gradients, Loss

BACKENDS = Backends(__package__)

_ARGUMENTS = (
    "Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, int ignore_index, "
    "float smoothing, str backend"
)

losses = operators.define(
    f"linear_cross_entropy({_ARGUMENTS}, bool check) -> (Tensor losses, Tensor lse)"
)
losses_backward = operators.define(
    f"linear_cross_entropy_backward({_ARGUMENTS}, Tensor lse, Tensor dlosses) "
    "-> (Tensor, Tensor, Tensor)"
)


def _check_targets(call: Loss) -> None:
    """Look at the numbers of `targets`.

    Raises:
        ShapeError: one is neither ignore_index nor in [0, V).
    """
    targets = call.targets
    bad = (targets < 0) | (targets >= call.vocabulary)
    bad &= targets != call.ignore_index
    if not bad.any():
        return
    where = tuple(bad.nonzero()[0].tolist())
    raise ShapeError(
        f"linear_cross_entropy: targets must be 0..{call.vocabulary - 1} or ignore_index "
        f"{call.ignore_index}, got {int(targets[where])} at {list(where)} "
        f"({int(bad.sum())} such of {targets.numel()})"
    )


def _captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, backend, check = arguments
    call = Loss(*given)
    # To look waits for a GPU, which a CUDA graph that is captured must not.
    if call.hidden.is_cpu or (check and not _captured(call.hidden)):
        _check_targets(call)
    chosen = BACKENDS.choose(backend, call)
    with without_autocast(call.hidden.device):
        result: tuple[Tensor, Tensor] = chosen.forward(call)
    return result


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    *given, backend, _ = arguments
    call = Loss(*given)
    BACKENDS.choose(backend, call)
    found = call.hidden.new_empty(call.targets.shape, dtype=call.inner)
    return found, torch.empty_like(found)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, backend, lse, dlosses = arguments
    call = Loss(*given)
    chosen = BACKENDS.choose(backend, call)
    with without_autocast(call.hidden.device):
        gradients: Gradients = chosen.backward(call, lse, dlosses)
    return tuple(call.hidden.new_empty(0) if g is None else g for g in gradients)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    hidden, weight, bias = arguments[:3]
    return tuple(
        hidden.new_empty(0) if t is None else t.new_empty(t.shape) for t in (hidden, weight, bias)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:4], output[1])
    ctx.options = inputs[4:-1]


def _differentiate(ctx: Any, dlosses: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    *tensors, lse = ctx.saved_tensors
    dlosses = torch.zeros_like(lse) if dlosses is None else dlosses
    dhidden, dweight, dbias = losses_backward(*tensors, *ctx.options, lse, dlosses)
    found = (dhidden, dweight, None if tensors[2] is None else dbias)
    return (*found, None, None, None, None, None)


operators.implement(
    losses, _forward, _forward_fake, operators.differentiated_by(losses, _setup, _differentiate)
)
operators.implement(
    losses_backward, _backward, _backward_fake, operators.once_differentiable(losses_backward)
)
