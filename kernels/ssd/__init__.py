"""SSD: the recurrence of Mamba-2, one decay per head, by matrix products, with states in and out.

The public functions check their arguments and hand them to an operator of torch, which hands them
to a backend; every backend computes what `reference` computes, so that choosing one changes speed
and never meaning.
"""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.ssd import op
from dnassm.kernels.ssd.op import BACKENDS

__all__ = ["BACKENDS", "ssd", "ssd_step"]

Tensors = dict[str, Tensor | None]


@overload
def ssd(
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
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[False] = False,
    chunk: int | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def ssd(
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
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: Literal[True],
    chunk: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def ssd(
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
    dt_limit: tuple[float, float] = (0.0, math.inf),
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    reverse: bool = False,
    return_state: bool = False,
    chunk: int | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute y[t] = (h[t] C[t] + D x[t]) silu(z[t]), h[t] = exp(d[t] A) h[t-1] + d[t] x[t] B[t]^T.

    Here d = softplus(dt + dt_bias), kept within `dt_limit`; h is (P, N) in every head. B and C are
    shared by the H/G heads of a group.

    Args:
        x: (B, L, H, P) input.
        dt: (B, L, H) step size, before bias and softplus.
        A: (H,) continuous-time decay, negative for a stable recurrence, float32 or float64.
        B: (B, L, G, N) input map, G divides H.
        C: (B, L, G, N) output map.
        D: (H,) or (H, P) skip connection.
        z: (B, L, H, P) gate.
        dt_bias: (H,) added to dt before the softplus.
        dt_softplus: False takes dt + dt_bias as it is.
        dt_limit: smallest and largest d; beyond them d is the limit and passes no gradient.
        initial_state: (B, H, P, N) state before position 0, (S, H, P, N) if packed; zeros when
            None.
        cu_seqlens: (S+1,) int32 or int64, the edges of S sequences packed on one row (B = 1):
            sequence s is the positions cu_seqlens[s] to cu_seqlens[s+1], 0-based half-open.
        reverse: walk every sequence from its last position to its first. `initial_state` is what
            comes before that walk, so after the last position.
        return_state: also return the state after the walk.
        chunk: positions taken at once by one matrix product; a backend takes the nearest size that
            it has. It changes speed and memory, not the result. None leaves it to the backend.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        y (B, L, H, P) in the dtype of x; with `return_state` also the state, of the shape of the
        initial one and the dtype of A. Both carry gradients to every tensor argument.

    Raises:
        ShapeError: a shape, dtype, device, limit or chunk does not fit, or a value of cu_seqlens or
            initial_state; the message names the argument.
        BackendError: the backend asked for cannot run here.

    Source: Dao and Gu 2024, arXiv:2405.21060, sections 5 and 6.
    """
    _check_core("ssd", ("B", "L"), x, dt, A, B, C)
    tensors: Tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C}
    optional: Tensors = {"D": D, "z": z, "dt_bias": dt_bias, "initial_state": initial_state}
    _check_edges(x, cu_seqlens)
    sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    _check_optional("ssd", x, optional, (sequences, *x.shape[2:], B.shape[-1]))
    _check_kind("ssd", x.device, tensors | optional)
    low, high = _checked_limit("ssd", dt_limit)
    if chunk is not None and chunk < 1:
        raise ShapeError(f"ssd: chunk must be at least 1, or None for the backend's, got {chunk}")
    edges = None if cu_seqlens is None else cu_seqlens.to(torch.int32)
    y, final, _ = op.apply(
        *tensors.values(),
        *optional.values(),
        edges,
        dt_softplus,
        low,
        high,
        reverse,
        chunk,
        backend,
    )
    return (y, final) if return_state else y


def ssd_step(
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
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor]:
    """Advance by one position: the shapes of `ssd` without L.

    Args:
        x: (B, H, P) input.
        dt: (B, H) step size.
        A: (H,) decay.
        B: (B, G, N) input map.
        C: (B, G, N) output map.
        state: (B, H, P, N) state before this position; not changed.
        D: (H,) or (H, P) skip connection.
        z: (B, H, P) gate.
        dt_bias: (H,) bias of dt.
        dt_softplus: as in `ssd`.
        dt_limit: as in `ssd`.

    Returns:
        y (B, H, P) and the next state (B, H, P, N).
    """
    _check_core("ssd_step", ("B",), x, dt, A, B, C)
    tensors: Tensors = {"x": x, "dt": dt, "A": A, "B": B, "C": C}
    optional: Tensors = {"state": state, "D": D, "z": z, "dt_bias": dt_bias}
    _check_optional("ssd_step", x, optional, (*x.shape, B.shape[-1]))
    _check_kind("ssd_step", x.device, tensors | optional)
    low, high = _checked_limit("ssd_step", dt_limit)
    y, following = op.step(*tensors.values(), *optional.values(), dt_softplus, low, high)
    return y, following


def _check_core(
    name: str, axes: tuple[str, ...], x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> None:
    lead = ", ".join(axes)
    if x.dim() != len(axes) + 2 or 0 in x.shape:
        raise ShapeError(f"{name}: x must be ({lead}, H, P), none of them 0, got {tuple(x.shape)}")
    heads = x.shape[-2]
    if dt.shape != x.shape[:-1]:
        raise ShapeError(
            f"{name}: dt must be {tuple(x.shape[:-1])} like x without P, got {tuple(dt.shape)}"
        )
    if tuple(A.shape) != (heads,):
        raise ShapeError(f"{name}: A must be (H,) = ({heads},), got {tuple(A.shape)}")
    if A.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"{name}: A must be float32 or float64, the dtype of the state, got {A.dtype}"
        )
    for map_name, tensor in (("B", B), ("C", C)):
        fits = tensor.dim() == len(axes) + 2 and tensor.shape[:-2] == x.shape[:-2]
        if not fits or 0 in tensor.shape or heads % tensor.shape[-2]:
            sizes = ", ".join(str(size) for size in (*x.shape[:-2], "G", "N"))
            raise ShapeError(
                f"{name}: {map_name} must be ({lead}, G, N) = ({sizes}) "
                f"with G a divisor of {heads} and N > 0, got {tuple(tensor.shape)}"
            )
    if B.shape != C.shape:
        raise ShapeError(
            f"{name}: B and C must share a shape, got {tuple(B.shape)}, {tuple(C.shape)}"
        )


def _check_optional(name: str, x: Tensor, given: Tensors, state: tuple[int, ...]) -> None:
    heads, width = x.shape[-2:]
    shapes = {"z": tuple(x.shape), "initial_state": state, "state": state, "dt_bias": (heads,)}
    for argument, tensor in given.items():
        if tensor is None:
            continue
        got = tuple(tensor.shape)
        if argument == "D":
            if got not in ((heads,), (heads, width)):
                raise ShapeError(f"{name}: D must be {(heads,)} or {(heads, width)}, got {got}")
        elif got != shapes[argument]:
            raise ShapeError(f"{name}: {argument} must be {shapes[argument]}, got {got}")


def _check_edges(x: Tensor, cu_seqlens: Tensor | None) -> None:
    if cu_seqlens is None:
        return
    if x.shape[0] != 1:
        raise ShapeError(
            f"ssd: cu_seqlens packs sequences on one row, so B must be 1, got x {tuple(x.shape)}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ShapeError(
            f"ssd: cu_seqlens must be (S+1,) with S > 0, got {tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"ssd: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.device != x.device:
        raise ShapeError(f"ssd: cu_seqlens is on {cu_seqlens.device}, x on {x.device}")


def _check_kind(name: str, device: torch.device, tensors: Tensors) -> None:
    for argument, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != device:
            raise ShapeError(f"{name}: {argument} is on {tensor.device}, x on {device}")
        if not tensor.is_floating_point():
            raise ShapeError(f"{name}: {argument} must be floating point, got {tensor.dtype}")


def _checked_limit(name: str, limit: tuple[float, float]) -> tuple[float, float]:
    low, high = float(limit[0]), float(limit[1])
    if not 0 <= low <= high:
        raise ShapeError(
            f"{name}: dt_limit must be (low, high) with 0 <= low <= high, got {tuple(limit)}"
        )
    return low, high
