"""The SSD as operators of torch: what compile, checkpointing and DDP need to know.

``dnassm::ssd`` returns y, the final state and `marks`, which its backward wants kept.
The backend is chosen inside, so that a traced call holds no more than its name.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels import operators
from dnassm.kernels.backends import Backends, without_autocast
from dnassm.kernels.sequences import check_data
from dnassm.kernels.ssd.arguments import Gradients, Ssd

BACKENDS = Backends(__package__)

_TENSORS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, "
    "Tensor? initial_state"
)
_ARGUMENTS = (
    f"{_TENSORS}, Tensor? cu_seqlens, bool dt_softplus, float dt_min, float dt_max, bool reverse, "
    "SymInt? chunk"
)

apply = operators.define(
    f"ssd({_ARGUMENTS}, str backend) -> (Tensor y, Tensor final_state, Tensor marks)"
)
apply_backward = operators.define(
    f"ssd_backward({_ARGUMENTS}, str backend, Tensor marks, Tensor dy, Tensor dfinal) "
    f"-> ({', '.join(['Tensor'] * len(Gradients._fields))})"
)
step = operators.define(
    "ssd_step(Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor state, "
    "Tensor? D, Tensor? z, Tensor? dt_bias, bool dt_softplus, float dt_min, float dt_max) "
    "-> (Tensor y, Tensor next_state)"
)


# The whole sequence


def _forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Ssd(*arguments[:-1])
    check_data("ssd", call.x, call.cu_seqlens, call.initial_state)
    backend = BACKENDS.choose(arguments[-1], call)
    with without_autocast(call.x.device):
        result: tuple[Tensor, Tensor, Tensor] = backend.forward(call)
    return result


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    call = Ssd(*arguments[:-1])
    backend = BACKENDS.choose(arguments[-1], call)
    x = call.x
    return (
        x.new_empty(x.shape),
        x.new_empty(call.state_shape, dtype=call.state_dtype),
        x.new_empty(backend.marks_shape(call), dtype=call.inner),
    )


def _backward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, backend_name, marks, dy, dfinal = arguments
    call = Ssd(*given)
    backend = BACKENDS.choose(backend_name, call)
    with without_autocast(call.x.device):
        gradients: Gradients = backend.backward(call, marks, dy, dfinal)
    return tuple(call.x.new_empty(0) if g is None else g for g in gradients)


def _backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
    x, tensors = arguments[0], arguments[: len(Gradients._fields)]
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors)


class _Ssd(torch.autograd.Function):
    """The SSD with its gradients."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        y, final, marks = operators.below_autograd(apply, arguments)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(marks)
        ctx.save_for_backward(*arguments[:10], marks)
        ctx.options = arguments[10:]
        return y, final, marks

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, marks = ctx.saved_tensors
        dy, dfinal = gradients[:2]
        x, A, B, edges = tensors[0], tensors[2], tensors[3], tensors[9]
        if dy is None:
            dy = torch.zeros_like(x)
        if dfinal is None:
            rows = x.shape[0] if edges is None else edges.shape[0] - 1
            dfinal = A.new_zeros(rows, x.shape[2], x.shape[3], B.shape[3])
        found = apply_backward(*tensors, *ctx.options, marks, dy, dfinal)
        given = [g if t is not None else None for g, t in zip(found, tensors, strict=False)]
        return (*given, *[None] * (1 + len(ctx.options)))


# One step


def _step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """The equations of one position, in the dtype of the state inside."""
    wide = torch.float64 if torch.float64 in (x.dtype, A.dtype) else torch.float32
    groups = B.shape[1]
    with without_autocast(x.device):
        u, d = x.to(wide), _step_size(dt.to(wide), *options)
        h = torch.exp(d * A.to(wide))[:, :, None, None] * state.to(wide)
        grouped = h.unflatten(1, (groups, -1))
        inflow = (d[:, :, None] * u).unflatten(1, (groups, -1)).unsqueeze(4)
        grouped.addcmul_(inflow, B.to(wide)[:, :, None, None])
        y = torch.matmul(grouped, C.to(wide)[:, :, None, :, None]).squeeze(4).flatten(1, 2)
        if D is not None:
            y = torch.addcmul(y, u, D.to(wide) if D.dim() == 2 else D.to(wide)[:, None])
        if z is not None:
            y = y * F.silu(z.to(wide))
    return y.to(x.dtype), h.to(A.dtype)


def _step_size(
    raw: Tensor,
    dt_bias: Tensor | None,
    dt_softplus: bool,  # noqa: FBT001  the order of the schema
    dt_min: float,
    dt_max: float,
) -> Tensor:
    if dt_bias is not None:
        raw = raw + dt_bias.to(raw.dtype)
    return (F.softplus(raw) if dt_softplus else raw).clamp(dt_min, dt_max)


def _step_fake(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    A, state = arguments[1], arguments[4]
    return x.new_empty(x.shape), A.new_empty(state.shape)


class _Step(torch.autograd.Function):
    """The step with its gradients: those of a sequence of one position."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        y, following = operators.below_autograd(step, arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*arguments[:9])
        ctx.options = arguments[9:]
        return y, following

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, state, D, z, dt_bias = ctx.saved_tensors
        dy, dnext = gradients
        along = (x, dt, B, C, z, torch.zeros_like(x) if dy is None else dy)
        x, dt, B, C, z, dy = (None if t is None else t.unsqueeze(1) for t in along)
        dnext = torch.zeros_like(state, dtype=A.dtype) if dnext is None else dnext
        # No marks: the portable backend finds the states again.
        options = (None, *ctx.options, False, None, "portable", A.new_empty(0), dy, dnext)
        found = apply_backward(x, dt, A, B, C, D, z, dt_bias, state, *options)
        dx, ddt, dA, dB, dC, dD, dz, dbias, dstate = found
        return (
            dx.squeeze(1),
            ddt.squeeze(1),
            dA,
            dB.squeeze(1),
            dC.squeeze(1),
            dstate,
            None if D is None else dD,
            None if z is None else dz.squeeze(1),
            None if dt_bias is None else dbias,
            *[None] * len(ctx.options),
        )


operators.implement(apply, _forward, _forward_fake, operators.differentiated(apply, _Ssd))
operators.implement(
    apply_backward, _backward, _backward_fake, operators.once_differentiable(apply_backward)
)
operators.implement(step, _step, _step_fake, operators.differentiated(step, _Step))
