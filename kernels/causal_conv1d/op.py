"""The causal convolution as operators of torch: what compile, checkpointing and DDP need to know.

``dnassm::causal_conv1d`` returns y and the final state; its backward finds all else again. The
backend is chosen inside, so that a traced call holds no more than its name.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels import operators
from dnassm.kernels.backends import Backends, without_autocast
from dnassm.kernels.causal_conv1d import triton
from dnassm.kernels.causal_conv1d.arguments import Conv, Gradients
from dnassm.kernels.sequences import check_data

BACKENDS = Backends(__package__)

_ARGUMENTS = (
    "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? cu_seqlens, bool silu, "
    "bool reverse, str backend"
)

conv = operators.define(f"causal_conv1d({_ARGUMENTS}) -> (Tensor y, Tensor final_state)")
conv_backward = operators.define(
    f"causal_conv1d_backward({_ARGUMENTS}, Tensor dy, Tensor dfinal) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
step = operators.define(
    "causal_conv1d_step(Tensor x, Tensor weight, Tensor? bias, Tensor state, bool silu) "
    "-> (Tensor y, Tensor next_state)"
)


# The convolution


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = Conv(*arguments[:-1])
    check_data("causal_conv1d", call.x, call.cu_seqlens, call.initial_state)
    return _run(call, arguments[-1])


def _run(call: Conv, backend: str) -> tuple[Tensor, Tensor]:
    chosen = BACKENDS.choose(backend, call)
    with without_autocast(call.x.device):
        result: tuple[Tensor, Tensor] = chosen.forward(call)
    return result


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = Conv(*arguments[:-1])
    BACKENDS.choose(arguments[-1], call)
    return call.x.new_empty(call.x.shape), call.x.new_empty(call.state_shape)


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, backend, dy, dfinal = arguments
    call = Conv(*given)
    chosen = BACKENDS.choose(backend, call)
    with without_autocast(call.x.device):
        gradients: Gradients = chosen.backward(call, dy, dfinal)
    return tuple(call.x.new_empty(0) if g is None else g for g in gradients)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, tensors = arguments[0], arguments[: len(Gradients._fields)]
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5])
    ctx.options = inputs[5:]


def _differentiate(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    call = Conv(*tensors, *ctx.options[:2])
    if dy is None:
        dy = torch.zeros_like(call.x)
    if dfinal is None:
        dfinal = call.x.new_zeros(call.state_shape)
    gradients = conv_backward(*tensors, *ctx.options, dy, dfinal)
    found = [g if t is not None else None for g, t in zip(gradients, tensors[:4], strict=True)]
    return (*found, None, None, None, None)


# One step


def _step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    silu: bool,  # noqa: FBT001  the order of the schema
) -> tuple[Tensor, Tensor]:
    """A convolution of one position; the state is not looked at: that would wait for the device."""
    at_once = Conv(x, weight, bias, state, None, silu, reverse=False)
    if triton.supports(at_once) is None:
        kernel = importlib.import_module("dnassm.kernels.causal_conv1d.triton.step")
        result: tuple[Tensor, Tensor] = kernel.step(at_once)
        return result
    call = Conv(x.unsqueeze(1), weight, bias, state, None, silu, reverse=False)
    y, following = _run(call, "auto")
    return y.squeeze(1), following


def _step_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(arguments[2].shape)


def _setup_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])
    ctx.silu = inputs[4]


def _differentiate_step(ctx: Any, dy: Tensor | None, dnext: Tensor | None) -> tuple[Any, ...]:
    x, weight, bias, state = ctx.saved_tensors
    dy = torch.zeros_like(x) if dy is None else dy
    dnext = torch.zeros_like(state, dtype=x.dtype) if dnext is None else dnext
    arguments = (x.unsqueeze(1), weight, bias, state, None, ctx.silu, False, "auto")
    found = conv_backward(*arguments, dy.unsqueeze(1), dnext)
    return found[0].squeeze(1), found[1], None if bias is None else found[2], found[3], None


operators.implement(
    conv, _forward, _forward_fake, operators.differentiated_by(conv, _setup, _differentiate)
)
operators.implement(
    conv_backward, _backward, _backward_fake, operators.once_differentiable(conv_backward)
)
operators.implement(
    step, _step, _step_fake, operators.differentiated_by(step, _setup_step, _differentiate_step)
)
