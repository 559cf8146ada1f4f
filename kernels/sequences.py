"""What an op cannot see from shapes: where packed sequences begin, if a state is finite."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from dnassm.errors import ShapeError


def check_data(op: str, x: Tensor, cu_seqlens: Tensor | None, initial_state: Tensor | None) -> None:
    """Look at the numbers of `cu_seqlens` and `initial_state`; x is (B, L, D).

    Not while a CUDA graph is captured: it would wait for the device.

    Raises:
        ShapeError: the edges do not rise from 0 to L, or the state is not finite.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if cu_seqlens is not None:
        edges, length = cu_seqlens.tolist(), x.shape[1]
        rising = all(a < b for a, b in itertools.pairwise(edges))
        if edges[0] != 0 or edges[-1] != length or not rising:
            raise ShapeError(
                f"{op}: cu_seqlens must rise from 0 to L = {length}, every sequence at "
                f"least one position long, got {_shortened(edges)}"
            )
    if initial_state is not None and not initial_state.isfinite().all():
        bad = int((~initial_state.isfinite()).sum())
        raise ShapeError(
            f"{op}: initial_state must be finite, got {bad} values that are not, of "
            f"{initial_state.numel()}"
        )


def _shortened(edges: list[int]) -> str:
    if len(edges) <= 12:
        return str(edges)
    return f"[{', '.join(map(str, edges[:6]))}, ..., {', '.join(map(str, edges[-3:]))}]"
