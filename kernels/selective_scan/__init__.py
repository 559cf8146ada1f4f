"""Selective scan (S6): the recurrence of Mamba, with states in and out.

The public functions check their arguments and hand them to an operator of torch, which hands them
to a backend; every backend computes what `reference` computes, so that choosing one changes speed
and never meaning.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.selective_scan import op
from dnassm.kernels.selective_scan.mamba_ssm import selective_scan_fn
from dnassm.kernels.selective_scan.op import BACKENDS

__all__ = ["BACKENDS", "MOST_STATES", "selective_scan", "selective_scan_fn", "selective_scan_step"]

MOST_STATES = 256
"""Largest N."""

Tensors = dict[str, Tensor | None]


@overload
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[False] = False,
    exact: bool = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[True],
    exact: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: bool = False,
    exact: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute y[t] = (C[t] h[t] + D x[t]) silu(z[t]), h[t] = exp(d[t] A) h[t-1] + d[t] B[t] x[t].

    Here d = softplus(dt + dt_bias). B and C are shared by the D/G channels of a group.

    Args:
        x: (B, L, D) input.
        dt: (B, L, D) step size, before bias and softplus.
        A: (D, N) continuous-time decay, negative for a stable scan, float32 or float64.
        B: (B, L, G, N) input map, G divides D.
        C: (B, L, G, N) output map.
        D: (D,) skip connection.
        z: (B, L, D) gate.
        dt_bias: (D,) added to dt before the softplus.
        dt_softplus: False takes dt + dt_bias as it is.
        initial_state: (B, D, N) state before position 0, (S, D, N) if packed; zeros when None.
        cu_seqlens: (S+1,) int32 or int64, the edges of S sequences packed on one row (B = 1):
            sequence s is the positions cu_seqlens[s] to cu_seqlens[s+1], 0-based half-open.
        reverse: walk every sequence from its last position to its first. `initial_state` is what
            comes before that walk, so after the last position.
        return_state: also return the state after the walk.
        exact: no backend may skip state that has decayed below 2^-40.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        y (B, L, D) in the dtype of x; with `return_state` also the state, of the shape of the
        initial one and the dtype of A. Both carry gradients to every tensor argument.

    Raises:
        ShapeError: a shape, dtype or device does not fit, or a value of cu_seqlens or
            initial_state; the message names the argument.
        BackendError: the backend asked for cannot run here.

    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2 and section 3.3.2.
    """
    _check_core("selective_scan", ("B", "L"), x, dt, A, B, C)
    tensors: Tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C}
    optional: Tensors = {"D": D, "z": z, "dt_bias": dt_bias, "initial_state": initial_state}
    _check_edges(x, cu_seqlens)
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    _check_optional("selective_scan", x, optional, (sequences, *A.shape))
    _check_kind("selective_scan", x.device, tensors | optional)
    edges = None if cu_seqlens is None else cu_seqlens.to(torch.int32)
    y, final, _ = op.scan(
        *tensors.values(), *optional.values(), edges, dt_softplus, reverse, exact, backend
    )
    return (y, final) if return_state else y


def selective_scan_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """Advance the scan by one position: the shapes of `selective_scan` without L.

    Args:
        x: (B, D) input.
        dt: (B, D) step size.
        A: (D, N) decay.
        B: (B, G, N) input map.
        C: (B, G, N) output map.
        state: (B, D, N) state before this position; not changed.
        D: (D,) skip connection.
        z: (B, D) gate.
        dt_bias: (D,) bias of dt.
        dt_softplus: as in `selective_scan`.

    Returns:
        y (B, D) and the next state (B, D, N).
    """
    _check_core("selective_scan_step", ("B",), x, dt, A, B, C)
    tensors: Tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C}
    optional: Tensors = {"state": state, "D": D, "z": z, "dt_bias": dt_bias}
    _check_optional("selective_scan_step", x, optional, (x.shape[0], *A.shape))
    _check_kind("selective_scan_step", x.device, tensors | optional)
    y, following = op.step(*tensors.values(), *optional.values(), dt_softplus)
    return y, following


def _check_core(
    name: str, axes: tuple[str, ...], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> None:
    lead = ", ".join(axes)
    if x.dim() != len(axes) + 1 or 0 in x.shape:
        raise ShapeError(f"{name}: x must be ({lead}, D), none of them 0, got {tuple(x.shape)}")
    channels = x.shape[-1]
    if dt.shape != x.shape:
        raise ShapeError(f"{name}: dt must be {tuple(x.shape)} like x, got {tuple(dt.shape)}")
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ShapeError(
            f"{name}: A must be (D, N) with D = {channels} and N > 0, got {tuple(A.shape)}"
        )
    if A.shape[1] > MOST_STATES:
        raise ShapeError(f"{name}: N, the states of A, must be at most 256, got {A.shape[1]}")
    if A.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"{name}: A must be float32 or float64, the dtype of the state, got {A.dtype}"
        )
    for map_name, tensor in (("B", B), ("C", C)):
        fits = (
            tensor.dim() == len(axes) + 2
            and tensor.shape[:-2] == x.shape[:-1]
            and tensor.shape[-1] == A.shape[1]
        )
        if not fits or tensor.shape[-2] == 0 or channels % tensor.shape[-2]:
            sizes = ", ".join(str(size) for size in (*x.shape[:-1], "G", A.shape[1]))
            raise ShapeError(
                f"{name}: {map_name} must be ({lead}, G, N) = ({sizes}) "
                f"with G a divisor of {channels}, got {tuple(tensor.shape)}"
            )
    if B.shape != C.shape:
        raise ShapeError(
            f"{name}: B and C must share a shape, got {tuple(B.shape)}, {tuple(C.shape)}"
        )


def _check_optional(name: str, x: Tensor, given: Tensors, state: tuple[int, ...]) -> None:
    shapes = {"z": tuple(x.shape), "initial_state": state, "state": state}
    for argument, tensor in given.items():
        shape = shapes.get(argument, (x.shape[-1],))
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"{name}: {argument} must be {shape}, got {tuple(tensor.shape)}")


def _check_edges(x: Tensor, cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is None:
        return
    if x.shape[0] != 1:
        raise ShapeError(
            f"selective_scan: cu_seqlens packs sequences on one row, so B must be 1, got x "
            f"{tuple(x.shape)}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ShapeError(
            f"selective_scan: cu_seqlens must be (S+1,) with S > 0, got {tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ShapeError(
            f"selective_scan: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}"
        )
    if cu_seqlens.device != x.device:
        raise ShapeError(f"selective_scan: cu_seqlens is on {cu_seqlens.device}, x on {x.device}")


def _check_kind(name: str, device: torch.device, tensors: Tensors) -> None:
    for argument, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != device:
            raise ShapeError(f"{name}: {argument} is on {tensor.device}, x on {device}")
        if not tensor.is_floating_point():
            raise ShapeError(f"{name}: {argument} must be floating point, got {tensor.dtype}")
