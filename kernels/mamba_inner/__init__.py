"""The Mamba block between two norms as one function: projections, convolution, scan and gate.

`mamba_inner` keeps little for its backward and computes the rest again, a piece of the sequence at
a time; ``fused=False`` composes the public operators instead and is what it is held to.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, overload

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.backends import Backends
from dnassm.kernels.mamba_inner import op
from dnassm.kernels.mamba_inner.arguments import (
    KEEP,
    STATES,
    Block,
    State,
    Walk,
    default_keep,
)
from dnassm.kernels.mamba_inner.composed import composed
from dnassm.kernels.mamba_inner.step import mamba_inner_step

__all__ = ["BACKENDS", "State", "Walk", "mamba_inner", "mamba_inner_step"]

BACKENDS = Backends(__package__)
"""Ways to compute the block; what its two operators run on is theirs to choose."""


@overload
def mamba_inner(
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    *walks: Walk,
    cu_seqlens: Tensor | None = None,
    return_state: Literal[False] = False,
    exact: bool = False,
    fused: bool = True,
    keep: Iterable[str] | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def mamba_inner(
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    *walks: Walk,
    cu_seqlens: Tensor | None = None,
    return_state: Literal[True],
    exact: bool = False,
    fused: bool = True,
    keep: Iterable[str] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, tuple[State, ...]]: ...


def mamba_inner(
    x: Tensor,
    in_weight: Tensor,
    out_weight: Tensor,
    *walks: Walk,
    cu_seqlens: Tensor | None = None,
    return_state: bool = False,
    exact: bool = False,
    fused: bool = True,
    keep: Iterable[str] | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, tuple[State, ...]]:
    """Compute W_out sum_walks scan(u, dt, B, C) silu(z) with [v, z] = W_in x, u = silu(conv(v)).

    For every walk [low, B, C] = W_x u, dt = W_dt low. Two walks, one of them in reverse, see both
    sides of a position and share the projections in and out. Letters: M model width, E inner width.

    Args:
        x: (B, L, M) input.
        in_weight: (2E, M); the first E rows feed the convolution, the others the gate.
        out_weight: (M, E).
        walks: parameters, states and direction of one walk or more.
        cu_seqlens: (S+1,) int32 or int64, the edges of S sequences packed on one row (B = 1), as in
            `selective_scan`.
        return_state: also return the states after each walk.
        exact: as in `selective_scan`.
        fused: False composes the public operators; the values and gradients are the same.
        keep: what the backward shall find instead of computing it again, of "xz" (the input
            projection), "u" (output of the convolution), "x_dbl" (step size of low rank, B and C),
            "scan" (marks, and the gated output where the backward of the scan does not give it
            again) and, with "scan", "y" (the gated output in any case). None: "x_dbl" and "scan",
            and "xz" on a CPU; elsewhere "xz" and "u" where they take at most 256 MiB.
        backend: "auto" or a name that both operators have.

    Returns:
        y (B, L, M) in the dtype of x, under autocast in its dtype; with `return_state` also the
        `State` of every walk. All carry gradients to every tensor, the states in `walks` included.

    Raises:
        ShapeError: a shape, dtype, device or option does not fit; the message names the argument.
        BackendError: the backend asked for cannot run here.

    Source: Gu and Dao 2023, arXiv:2312.00752, section 3.4 and figure 3; two walks with shared
        projections: Schiff et al. 2024, arXiv:2403.03234, section 3.1.
    """
    x, in_weight, out_weight, *cast = _autocast(x, in_weight, out_weight, *walks)
    _check_input(x, cu_seqlens)
    edges = None if cu_seqlens is None else cu_seqlens.to(torch.int32)
    keep = default_keep(x, out_weight.shape[-1]) if keep is None else tuple(keep)
    block = Block(x, in_weight, out_weight, tuple(cast), edges, exact, keep, backend)
    _check(block)
    if not fused:
        y, found = composed(block)
        return (y, tuple(found)) if return_state else y
    flat = [tensor for walk in block.walks for tensor in walk.tensors().values()]
    reverse = [walk.reverse for walk in block.walks]
    wanted = op.needs_gradient((x, in_weight, out_weight, *flat))
    kept = " ".join((STATES, *keep)) if wanted else ""
    y, states, _ = op.inner(x, in_weight, out_weight, flat, reverse, edges, exact, kept, backend)
    pairs = tuple(State(*pair) for pair in zip(states[::2], states[1::2], strict=True))
    return (y, pairs) if return_state else y


def _autocast(
    x: Tensor, in_weight: Tensor, out_weight: Tensor, *walks: Walk
) -> tuple[Tensor, Tensor, Tensor, *tuple[Walk, ...]]:
    """What nn.Linear would cast, cast once: input and projections."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return (x, in_weight, out_weight, *walks)
    dtype = torch.get_autocast_dtype(kind)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    given = [w._replace(x_weight=cast(w.x_weight), dt_weight=cast(w.dt_weight)) for w in walks]
    return (cast(x), cast(in_weight), cast(out_weight), *given)


def _check(block: Block) -> None:
    x, inner = block.x, block.out_weight.shape[-1]
    if not block.walks:
        raise ShapeError("mamba_inner: expected at least one walk, got none; give a Walk")
    unknown = [name for name in block.keep if name not in KEEP]
    if unknown:
        raise ShapeError(f"mamba_inner: keep has no {unknown[0]!r}; have {', '.join(KEEP)}")
    _check_tensor(block, "in_weight", block.in_weight, (2 * inner, x.shape[2]), matrix=True)
    _check_tensor(block, "out_weight", block.out_weight, (None, inner), matrix=True)
    for walk in block.walks:
        _check_walk(block, walk, inner)


def _check_walk(block: Block, walk: Walk, inner: int) -> None:
    _check_tensor(block, "conv_weight", walk.conv_weight, (inner, None))
    _check_tensor(block, "A", walk.A, (inner, None))
    if walk.A.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"mamba_inner: A must be float32 or float64, the dtype of the state, got {walk.A.dtype}"
        )
    _check_tensor(block, "dt_weight", walk.dt_weight, (inner, None), matrix=True)
    low_rank = walk.dt_weight.shape[1] + 2 * walk.A.shape[1]
    _check_tensor(block, "x_weight", walk.x_weight, (low_rank, inner), matrix=True)
    for name in ("conv_bias", "dt_bias", "D"):
        _check_tensor(block, name, getattr(walk, name), (inner,))
    conv, ssm = block.state_shapes(walk)
    _check_tensor(block, "conv_state", walk.conv_state, conv)
    _check_tensor(block, "ssm_state", walk.ssm_state, ssm)


def _check_tensor(
    block: Block,
    name: str,
    tensor: Tensor | None,
    shape: tuple[int | None, ...],
    *,
    matrix: bool = False,
) -> None:
    """Shape (None: any size above 0), device and kind; a matrix has the dtype of x."""
    if tensor is None:
        return
    fits = len(shape) == tensor.dim() and all(
        size > 0 if wanted is None else size == wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(f"mamba_inner: {name} must be ({sizes}), got {tuple(tensor.shape)}")
    if tensor.device != block.x.device:
        raise ShapeError(f"mamba_inner: {name} is on {tensor.device}, x on {block.x.device}")
    if matrix and tensor.dtype != block.x.dtype:
        raise ShapeError(
            f"mamba_inner: {name} must be {block.x.dtype} like x, got {tensor.dtype}; "
            "cast one of them, or use autocast"
        )
    if not tensor.is_floating_point():
        raise ShapeError(f"mamba_inner: {name} must be floating point, got {tensor.dtype}")


def _check_input(x: Tensor, edges: Tensor | None) -> None:
    if x.dim() != 3 or 0 in x.shape:
        raise ShapeError(f"mamba_inner: x must be (B, L, M), none of them 0, got {tuple(x.shape)}")
    if edges is None:
        return
    if x.shape[0] != 1:
        raise ShapeError(
            f"mamba_inner: cu_seqlens packs sequences on one row, so B must be 1, got x "
            f"{tuple(x.shape)}"
        )
    if edges.dim() != 1 or edges.shape[0] < 2:
        raise ShapeError(
            f"mamba_inner: cu_seqlens must be (S+1,) with S > 0, got {tuple(edges.shape)}"
        )
    if edges.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"mamba_inner: cu_seqlens must be int32 or int64, got {edges.dtype}")
    if edges.device != x.device:
        raise ShapeError(f"mamba_inner: cu_seqlens is on {edges.device}, x on {x.device}")
