"""Causal depthwise convolution over (B, L, D), with the last inputs carried as its state.

The public functions check shapes and call an operator of torch, which hands them to a backend;
every one computes what `reference` computes, so that choosing one changes speed and never meaning.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.causal_conv1d import op

BACKENDS = op.BACKENDS


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute y[t] = bias + sum_k weight[k] x[t - K + 1 + k] per channel, then SiLU if asked for.

    Args:
        x: (B, L, D) input, any strides.
        weight: (D, K); the last column meets the present position.
        bias: (D,).
        silu: apply y * sigmoid(y) to the result.
        initial_state: (B, K-1, D), packed (S, K-1, D): the inputs before the first position of each
            sequence, in the order of the walk; zeros when None.
        cu_seqlens: (S+1,) integers, 0 = cu[0] < cu[1] < ... < cu[S] = L: the one row of the batch
            holds S sequences, [cu[s], cu[s+1]), 0-based half-open; none sees another.
        reverse: walk each sequence from its last position to its first. What comes out is
            flip(causal_conv1d(flip(x))), sequence by sequence.
        return_state: return the state as well.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        y (B, L, D) in the dtype of x. With `return_state` also the state, like `initial_state`: the
        last K-1 inputs of each sequence in the order of its walk, in the dtype of x. Both carry
        gradients to every tensor argument.

    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        BackendError: the backend asked for cannot run here.
    """
    _check_input(x, weight, cu_seqlens)
    channels, width = weight.shape
    rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    _check_kind("causal_conv1d", x, weight, bias, ("initial_state", initial_state))
    if initial_state is not None and initial_state.shape != (rows, width - 1, channels):
        raise ShapeError(
            f"causal_conv1d: initial_state must be {(rows, width - 1, channels)}, "
            f"got {tuple(initial_state.shape)}"
        )
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(torch.int32)
    y, state = op.conv(x, weight, bias, initial_state, cu_seqlens, silu, reverse, backend)
    return (y, state) if return_state else y


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *, silu: bool = False
) -> tuple[Tensor, Tensor]:
    """Advance by one position: x (B, D), state (B, K-1, D) -> y (B, D) and the next state.

    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
    """
    if x.dim() != 2 or 0 in x.shape:
        raise ShapeError(
            f"causal_conv1d_step: x must be (B, D), none of them 0, got {tuple(x.shape)}"
        )
    _check_weight("causal_conv1d_step", weight, x.shape[1])
    _check_kind("causal_conv1d_step", x, weight, bias, ("state", state))
    shape = (x.shape[0], weight.shape[1] - 1, x.shape[1])
    if state.shape != shape:
        raise ShapeError(f"causal_conv1d_step: state must be {shape}, got {tuple(state.shape)}")
    result: tuple[Tensor, Tensor] = op.step(x, weight, bias, state, silu)
    return result


def _check_input(x: Tensor, weight: Tensor, cu_seqlens: Tensor | None) -> None:
    if x.dim() != 3 or 0 in x.shape:
        raise ShapeError(
            f"causal_conv1d: x must be (B, L, D), none of them 0, got {tuple(x.shape)}"
        )
    _check_weight("causal_conv1d", weight, x.shape[2])
    if cu_seqlens is None:
        return
    if x.shape[0] != 1:
        raise ShapeError(
            f"causal_conv1d: cu_seqlens packs sequences on one row: x must be (1, L, D), "
            f"got {tuple(x.shape)}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ShapeError(
            f"causal_conv1d: cu_seqlens must be (S+1,) with S > 0, got {tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ShapeError(
            f"causal_conv1d: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}"
        )
    if cu_seqlens.device != x.device:
        raise ShapeError(f"causal_conv1d: cu_seqlens is on {cu_seqlens.device}, x on {x.device}")
    if x.shape[1] >= 1 << 31:
        raise ShapeError(
            f"causal_conv1d: x with cu_seqlens must be below 2^31 long, got {x.shape[1]}"
        )


def _check_weight(op_name: str, weight: Tensor, channels: int) -> None:
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ShapeError(
            f"{op_name}: weight must be (D, K) = ({channels}, K), got {tuple(weight.shape)}"
        )


def _check_kind(
    op_name: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: tuple[str, Tensor | None],
) -> None:
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ShapeError(
            f"{op_name}: bias must be {tuple(weight.shape[:1])}, got {tuple(bias.shape)}"
        )
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias), state):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ShapeError(f"{op_name}: {name} is on {tensor.device}, x on {x.device}")
        if not tensor.is_floating_point():
            raise ShapeError(f"{op_name}: {name} must be floating point, got {tensor.dtype}")
