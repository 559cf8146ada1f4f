"""The norms as operators of torch: what compile, checkpointing and DDP need to know.

``dnassm::norm`` returns y and the sum of x and residual, which is all that its backward keeps of
the two. The backend is chosen inside, so that a traced call holds no more than its name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dnassm.kernels import operators
from dnassm.kernels.backends import Backends, without_autocast
from dnassm.kernels.norm.arguments import Gradients, Norm, Wanted

BACKENDS = Backends(__package__)

_OPTIONS = "bool centred, float eps, int groups, ScalarType total_dtype, str backend"

norm = operators.define(
    "norm(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? gate, "
    f"{_OPTIONS}) -> (Tensor y, Tensor total)"
)
norm_backward = operators.define(
    "norm_backward(Tensor value, Tensor weight, Tensor? bias, Tensor? gate, "
    f"{_OPTIONS}, ScalarType x_dtype, ScalarType? residual_dtype, Tensor dy, Tensor? dtotal) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = Norm(*arguments[:-1])
    chosen = BACKENDS.choose(arguments[-1], call)
    with without_autocast(call.x.device):
        y, total = chosen.forward(call)
    return y, call.x.new_empty(0) if total is None else total


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    call = Norm(*arguments[:-1])
    BACKENDS.choose(arguments[-1], call)
    shape = (0,) if call.residual is None else call.x.shape
    return call.x.new_empty(call.x.shape), call.x.new_empty(shape, dtype=call.total_dtype)


def _adjoint(arguments: tuple[Any, ...]) -> tuple[Norm, str, Wanted, Tensor, Tensor | None]:
    """What `norm_backward` was called with; the value stands for x, and there is no residual."""
    value, weight, bias, gate, *options = arguments[:8]
    backend, x_dtype, residual_dtype, dy, dtotal = arguments[8:]
    call = Norm(value, weight, bias, None, gate, *options)
    return call, backend, Wanted(x_dtype, residual_dtype), dy, dtotal


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    call, backend, wanted, dy, dtotal = _adjoint(arguments)
    chosen = BACKENDS.choose(backend, call)
    with without_autocast(call.x.device):
        gradients: Gradients = chosen.backward(call, dy, dtotal, wanted)
    return tuple(call.x.new_empty(0) if g is None else g for g in gradients)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    call, _, wanted, _, _ = _adjoint(arguments)
    value = call.x
    nothing = value.new_empty(0)
    return (
        value.new_empty(value.shape, dtype=wanted.x),
        nothing if wanted.residual is None else value.new_empty(value.shape, dtype=wanted.residual),
        nothing if call.gate is None else call.gate.new_empty(value.shape),
        call.weight.new_empty(call.weight.shape),
        value.new_empty(0) if call.bias is None else call.bias.new_empty(call.bias.shape),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    x, weight, bias, residual, gate = inputs[:5]
    ctx.save_for_backward(x if residual is None else output[1], weight, bias, gate)
    ctx.options = inputs[5:]
    ctx.x_dtype = x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype


def _differentiate(ctx: Any, dy: Tensor | None, dtotal: Tensor | None) -> tuple[Any, ...]:
    value, weight, bias, gate = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(value, dtype=ctx.x_dtype)
    one = ctx.residual_dtype in (None, ctx.x_dtype)
    dx, dresidual, dgate, dweight, dbias = norm_backward(
        value,
        weight,
        bias,
        gate,
        *ctx.options,
        ctx.x_dtype,
        None if one else ctx.residual_dtype,
        dy,
        None if ctx.residual_dtype is None else dtotal,
    )
    of_residual = None
    if ctx.residual_dtype is not None:
        of_residual = dx if one else dresidual
    given = (
        dx,
        dweight,
        None if bias is None else dbias,
        of_residual,
        None if gate is None else dgate,
    )
    return (*given, *(None for _ in ctx.options))


operators.implement(
    norm, _forward, _forward_fake, operators.differentiated_by(norm, _setup, _differentiate)
)
operators.implement(
    norm_backward, _backward, _backward_fake, operators.once_differentiable(norm_backward)
)
