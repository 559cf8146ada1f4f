"""RMSNorm and LayerNorm over the last axis, fused with a residual sum or with a SiLU gate.

The public functions check shapes and call an operator of torch, which hands them to a backend;
every one computes what `reference` computes, so that choosing one changes speed and never meaning.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dnassm.errors import ConfigError, ShapeError
from dnassm.kernels.norm import op

BACKENDS = op.BACKENDS

Kind = Literal["rms", "layer"]


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kind: Kind = "rms",
    eps: float = 1e-5,
    gate: Tensor | None = None,
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """Compute y = weight v / sqrt(mean(v^2) + eps) + bias over the last axis, v = x silu(gate).

    Args:
        x: (..., D), any leading axes, any strides.
        weight: (D,).
        bias: (D,).
        kind: "rms", or "layer": the mean of v is taken off first.
        eps: added to the mean of squares.
        gate: (..., D); None leaves v = x. Mamba-2's gated RMSNorm.
        groups: number of groups of neighbouring channels, each normed by itself; divides D.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        y (..., D) in the dtype of x. Sums are float32, float64 if x is.

    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        ConfigError: an option has no such value.
        BackendError: the backend asked for cannot run here.
    """
    _check("norm", x, {"gate": gate}, {"weight": weight, "bias": bias})
    _check_options("norm", kind, eps)
    if groups < 1 or x.shape[-1] % groups:
        raise ConfigError(f"norm: groups must divide D = {x.shape[-1]}, got {groups}")
    y: Tensor
    y, _ = op.norm(x, weight, bias, None, gate, kind == "layer", eps, groups, x.dtype, backend)
    return y


def add_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    kind: Kind = "rms",
    eps: float = 1e-5,
    residual_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute s = x + residual and its norm, y = weight s / sqrt(mean(s^2) + eps) + bias.

    Args:
        x: (..., D), any leading axes, any strides: what a layer adds to the residual stream.
        residual: (..., D), in any floating dtype.
        weight: (D,).
        bias: (D,).
        kind: "rms", or "layer": the mean of s is taken off first.
        eps: added to the mean of squares.
        residual_dtype: dtype of s; None keeps that of `residual`. y is the norm of s as it is
            returned, so that nothing else is kept for the backward.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        y (..., D) in the dtype of x, and s (..., D). Both carry gradients.

    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        ConfigError: an option has no such value.
        BackendError: the backend asked for cannot run here.
    """
    _check("add_norm", x, {"residual": residual}, {"weight": weight, "bias": bias})
    _check_options("add_norm", kind, eps)
    kept = residual.dtype if residual_dtype is None else residual_dtype
    if not kept.is_floating_point:
        raise ConfigError(f"add_norm: residual_dtype must be floating point, got {kept}")
    y, total = op.norm(x, weight, bias, residual, None, kind == "layer", eps, 1, kept, backend)
    return y, total


def _check(
    op_name: str,
    x: Tensor,
    alike: dict[str, Tensor | None],
    parameters: dict[str, Tensor | None],
) -> None:
    if x.dim() == 0 or 0 in x.shape:
        raise ShapeError(f"{op_name}: x must be (..., D), none of them 0, got {tuple(x.shape)}")
    shapes = {**dict.fromkeys(alike, x.shape), **dict.fromkeys(parameters, x.shape[-1:])}
    for name, tensor in {"x": x, **alike, **parameters}.items():
        if tensor is None:
            continue
        if tensor.shape != shapes.get(name, x.shape):
            raise ShapeError(
                f"{op_name}: {name} must be {tuple(shapes[name])}, got {tuple(tensor.shape)}"
            )
        if tensor.device != x.device:
            raise ShapeError(f"{op_name}: {name} is on {tensor.device}, x on {x.device}")
        if not tensor.is_floating_point():
            raise ShapeError(f"{op_name}: {name} must be floating point, got {tensor.dtype}")


def _check_options(op_name: str, kind: str, eps: float) -> None:
    if kind not in ("rms", "layer"):
        raise ConfigError(f'{op_name}: kind must be "rms" or "layer", got {kind!r}')
    if not eps >= 0:
        raise ConfigError(f"{op_name}: eps must be 0 or more, got {eps}")
