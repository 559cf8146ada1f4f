"""The Mamba-2 block between two norms as one function: projections, convolution, SSD, gated norm.

`mamba2_inner` keeps little for its backward and computes the rest again, a piece of the sequence at
a time; ``fused=False`` composes the public operators instead and is what it is held to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, overload

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.backends import Backends
from dnassm.kernels.mamba2_inner import op
from dnassm.kernels.mamba2_inner.arguments import (
    KEEP,
    STATES,
    TENSORS,
    Block,
    State,
    default_keep,
)
from dnassm.kernels.mamba2_inner.composed import composed

__all__ = ["BACKENDS", "State", "mamba2_inner"]

BACKENDS = Backends(__package__)
"""Ways to compute the block; what its three operators run on is theirs to choose."""


@overload
def mamba2_inner(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    A: Tensor,
    norm_weight: Tensor,
    out_weight: Tensor,
    *,
    conv_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    D: Tensor | None = None,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    groups: int = 1,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    eps: float = 1e-5,
    reverse: bool = False,
    return_state: Literal[False] = False,
    fused: bool = True,
    keep: Iterable[str] | None = None,
    backend: str = "auto",
) -> Tensor: ...


@overload
def mamba2_inner(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    A: Tensor,
    norm_weight: Tensor,
    out_weight: Tensor,
    *,
    conv_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    D: Tensor | None = None,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    groups: int = 1,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    eps: float = 1e-5,
    reverse: bool = False,
    return_state: Literal[True],
    fused: bool = True,
    keep: Iterable[str] | None = None,
    backend: str = "auto",
) -> tuple[Tensor, State]: ...


def mamba2_inner(
    x: Tensor,
    in_weight: Tensor,
    conv_weight: Tensor,
    A: Tensor,
    norm_weight: Tensor,
    out_weight: Tensor,
    *,
    conv_bias: Tensor | None = None,
    dt_bias: Tensor | None = None,
    D: Tensor | None = None,
    conv_state: Tensor | None = None,
    ssm_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    groups: int = 1,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    eps: float = 1e-5,
    reverse: bool = False,
    return_state: bool = False,
    fused: bool = True,
    keep: Iterable[str] | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, State]:
    """Compute W_out norm(ssd(u, dt, B, C) silu(z)) with [z, v, dt] = W_in x, [u, B, C] = conv(v).

    The convolution ends in SiLU, the norm is RMSNorm over the channels of a group. Letters: M model
    width, E inner width, H heads of P = E/H channels, G groups, N states, W = E + 2GN.

    Args:
        x: (B, L, M) input.
        in_weight: (E + W + H, M): rows of the gate, of what is convolved, of the step size.
        conv_weight: (W, K), as in `causal_conv1d`; W also says what N is.
        A: (H,), as in `ssd`: negative, float32 or float64.
        norm_weight: (E,).
        out_weight: (M, E), or of another number of rows.
        conv_bias: (W,).
        dt_bias: (H,).
        D: (H,) or (H, P) skip connection.
        conv_state: (S, K-1, W) inputs of the convolution before the first position, in the order of
            the walk; S is B, or the number of packed sequences.
        ssm_state: (S, H, P, N) state before the first position; zeros when None.
        cu_seqlens: (S+1,) int32 or int64, the edges of S sequences packed on one row (B = 1), as in
            `ssd`.
        groups: G, of heads that share B and C and of channels normed together; divides H.
        dt_limit: smallest and largest step size, as in `ssd`.
        eps: of the norm.
        reverse: walk every sequence from its last position to its first.
        return_state: also return the state after the walk.
        fused: False composes the public operators; the values and gradients are the same.
        keep: what the backward shall find instead of computing it again, of "projected" (the input
            projection), "convolved", "scan" (what SSD gave, and its marks) and "normed". None: all
            on a CPU, elsewhere "projected" and "scan", the others where they take at most 256 MiB.
        backend: "auto" or a name that all three operators have.

    Returns:
        y (B, L, M) in the dtype of x, under autocast in its dtype; with `return_state` also the
        `State`. Both carry gradients to every tensor.

    Raises:
        ShapeError: a shape, dtype, device or option does not fit; the message names the argument.
        BackendError: the backend asked for cannot run here.

    Source: Dao and Gu 2024, arXiv:2405.21060, section 7 and figure 6.
    """
    _check_input(x, cu_seqlens)
    x, in_weight, out_weight = _autocast(x, in_weight, out_weight)
    if keep is None:
        keep = default_keep(x, out_weight.shape[1:].numel(), conv_weight.shape[:1].numel())
    block = Block(
        x,
        in_weight,
        conv_weight,
        A,
        norm_weight,
        out_weight,
        conv_bias,
        dt_bias,
        D,
        conv_state,
        ssm_state,
        None if cu_seqlens is None else cu_seqlens.to(torch.int32),
        groups,
        float(dt_limit[0]),
        float(dt_limit[1]),
        eps,
        reverse,
        tuple(keep),
        backend,
    )
    _check(block)
    if not fused:
        y, state = composed(block)
    else:
        y, state = _fused(block)
    return (y, state) if return_state else y


def _fused(block: Block) -> tuple[Tensor, State]:
    tensors = [getattr(block, name) for name in TENSORS]
    kept = " ".join((STATES, *block.keep)) if op.needs_gradient(tensors) else ""
    y, conv_state, ssm_state, _ = op.inner(
        *tensors,
        block.cu_seqlens,
        block.groups,
        block.dt_min,
        block.dt_max,
        block.eps,
        block.reverse,
        kept,
        block.backend,
    )
    return y, State(conv_state, ssm_state)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What nn.Linear would cast, cast once: input and projections."""
    kind = tensors[0].device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def _check(block: Block) -> None:
    unknown = [name for name in block.keep if name not in KEEP]
    if unknown:
        raise ShapeError(f"mamba2_inner: keep has no {unknown[0]!r}; have {', '.join(KEEP)}")
    if not 0 <= block.dt_min <= block.dt_max:
        raise ShapeError(
            "mamba2_inner: dt_limit must be (low, high) with 0 <= low <= high, got "
            f"{(block.dt_min, block.dt_max)}"
        )
    if not block.eps >= 0:
        raise ShapeError(f"mamba2_inner: eps must be 0 or more, got {block.eps}")
    _check_tensor(block, "out_weight", (None, None))
    _check_tensor(block, "A", (None,))
    if block.A.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            "mamba2_inner: A must be float32 or float64, the dtype of the state, got "
            f"{block.A.dtype}"
        )
    _check_widths(block)
    for name, shape in _shapes(block).items():
        _check_tensor(block, name, shape)
    for name in ("in_weight", "out_weight"):
        dtype = getattr(block, name).dtype
        if dtype != block.x.dtype:
            raise ShapeError(
                f"mamba2_inner: {name} must be {block.x.dtype} like x, got {dtype}; "
                "cast one of them, or use autocast"
            )


def _check_widths(block: Block) -> None:
    """Heads divide E, groups divide heads, and the convolution has room for both maps."""
    if block.inner % block.heads:
        raise ShapeError(
            f"mamba2_inner: A must be (H,) with H a divisor of E = {block.inner}, got "
            f"({block.heads},)"
        )
    if block.groups < 1 or block.heads % block.groups:
        raise ShapeError(f"mamba2_inner: groups must divide H = {block.heads}, got {block.groups}")
    _check_tensor(block, "conv_weight", (None, None))
    maps = block.convolved - block.inner
    if maps < 1 or maps % (2 * block.groups):
        raise ShapeError(
            f"mamba2_inner: conv_weight must be (E + 2GN, K) with E = {block.inner}, G = "
            f"{block.groups} and N > 0, got {tuple(block.conv_weight.shape)}"
        )


def _shapes(block: Block) -> dict[str, tuple[int | None, ...]]:
    """What follows from E, H, N and G."""
    inner, heads, (conv, ssm) = block.inner, block.heads, block.state_shapes
    per_channel = block.D is not None and block.D.dim() == 2
    return {
        "in_weight": (sum(block.splits), block.x.shape[2]),
        "norm_weight": (inner,),
        "conv_bias": (block.convolved,),
        "dt_bias": (heads,),
        "D": (heads, inner // heads) if per_channel else (heads,),
        "conv_state": conv,
        "ssm_state": ssm,
    }


def _check_tensor(block: Block, name: str, shape: tuple[int | None, ...]) -> None:
    """Shape (None: any size above 0), device and kind."""
    tensor = getattr(block, name)
    if tensor is None:
        return
    fits = len(shape) == tensor.dim() and all(
        size > 0 if wanted is None else size == wanted
        for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(f"mamba2_inner: {name} must be ({sizes}), got {tuple(tensor.shape)}")
    if tensor.device != block.x.device:
        raise ShapeError(f"mamba2_inner: {name} is on {tensor.device}, x on {block.x.device}")
    if not tensor.is_floating_point():
        raise ShapeError(f"mamba2_inner: {name} must be floating point, got {tensor.dtype}")


def _check_input(x: Tensor, edges: Tensor | None) -> None:
    if x.dim() != 3 or 0 in x.shape:
        raise ShapeError(f"mamba2_inner: x must be (B, L, M), none of them 0, got {tuple(x.shape)}")
    if edges is None:
        return
    if x.shape[0] != 1:
        raise ShapeError(
            "mamba2_inner: cu_seqlens packs sequences on one row, so B must be 1, got x "
            f"{tuple(x.shape)}"
        )
    if edges.dim() != 1 or edges.shape[0] < 2:
        raise ShapeError(
            f"mamba2_inner: cu_seqlens must be (S+1,) with S > 0, got {tuple(edges.shape)}"
        )
    if edges.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"mamba2_inner: cu_seqlens must be int32 or int64, got {edges.dtype}")
    if edges.device != x.device:
        raise ShapeError(f"mamba2_inner: cu_seqlens is on {edges.device}, x on {x.device}")
