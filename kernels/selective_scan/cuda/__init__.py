"""Selective scan in CUDA C++, compiled at first use: the fast path on NVIDIA GPUs.

Here is what is computed in which order. `shape` says how states are spread over lanes, `cut` how L
is cut into chunks, and `walk` launches the kernels: common.cu and the file of each (README, section
cuda).
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnassm.kernels import nvrtc
from dnassm.kernels.backends import Elsewhere
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cuda.shape import Shape, span_of
from dnassm.kernels.selective_scan.cuda.walk import Walk, dense, walked

PRIORITY = 40

_MOST_STATES = 128


def supports(scan: Scan) -> str | None:
    """Why this backend cannot run, or None."""
    if not scan.x.is_cuda:
        return Elsewhere(f"needs a CUDA device, got {scan.x.device.type}")
    if scan.inner != torch.float32:
        return Elsewhere(f"computes in float32, got x {scan.x.dtype} and A {scan.A.dtype}")
    reason = nvrtc.unavailable(scan.x.device)
    if reason is not None:
        return reason
    if scan.A.shape[1] > _MOST_STATES:
        return f"at most {_MOST_STATES} states per channel, got {scan.A.shape[1]}"
    if scan.x.shape[0] > 65535:
        return f"at most 65535 rows in a batch, got {scan.x.shape[0]}"
    return None


def marks_shape(scan: Scan) -> tuple[int, ...]:
    """The state before every `span`-th step as warps hold it: (B, ceil(L / span), warps, 512)."""
    shape = Shape.of(scan)
    batch, length, channels = scan.x.shape
    groups = scan.B.shape[2]
    warps = groups * -(-(channels // groups) // shape.channels)
    return (batch, -(-length // shape.span), warps, 512)


def mark_steps(length: int, marks: Tensor) -> int:
    """Steps between two `marks` of rows of this length.

    A part of a row that begins on a mark has its marks among the row's; its `backward` takes no
    more of `initial_state` than that there is one.
    """
    return span_of(length, marks.shape[1])


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor]:
    """y, over dt where `Scan.overwrite` names it, the final state, and the marks for `backward`."""
    walk = Walk(scan)
    dt = walk.sequences["dt"]
    over_dt = "dt" in scan.overwrite and dt.is_contiguous()
    y = dt if over_dt else torch.empty(scan.x.shape, dtype=walk.dtype, device=scan.x.device)
    marks = torch.empty(marks_shape(scan), dtype=torch.float32, device=scan.x.device)
    last = marks.new_empty(scan.state_shape)
    walk.enter(0, walk.length, y=y, marks=marks)
    walk.give(last=last)
    walk.cut()
    walk.start(walk.initial_row, adjoint=False)
    walk.forward()
    return y.to(scan.x.dtype), walked(last, scan).to(scan.state_dtype), marks


def backward(scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients; those of dt and x lie over dt and dy where `Scan.overwrite` names them."""
    return _gradients(Walk(scan, marks), marks, dy, dfinal, None)


def backward_and_output(
    scan: Scan, marks: Tensor, dy: Tensor, dfinal: Tensor
) -> tuple[Gradients, Tensor]:
    """Gradients as from `backward`, and y once more: all but its last factor is found for dz."""
    walk = Walk(scan, marks)
    y = _beside_dz(walk)
    if y is None:
        y = torch.empty(scan.x.shape, dtype=walk.dtype, device=scan.x.device)
    found = _gradients(walk, marks, dy, dfinal, y)
    return found, y.to(scan.x.dtype)


def _gradients(
    walk: Walk, marks: Tensor, dy: Tensor, dfinal: Tensor, y: Tensor | None
) -> Gradients:
    """Slab by slab from the end: what a slab hands on enters the one before it."""
    scan, shape = walk.scan, walk.shape
    dy = dense(dy.to(walk.dtype))
    along = _along(walk, dy)
    dB, dC = (
        torch.empty_like(t, dtype=walk.dtype, memory_format=torch.contiguous_format)
        for t in (scan.B, scan.C)
    )
    dlast = walked(dfinal, scan).float().contiguous()
    dinitial = torch.empty_like(dlast)
    walk.give(dlast=dlast, dinitial=dinitial)
    carry = dlast[-1:] if walk.packed else dlast
    sums: list[Tensor] = []
    rows = walk.columns(shape.threads) * scan.B.shape[2] * walk.batch
    slab = walk.slab(rows)
    dmaps = marks.new_empty(rows * min(slab, walk.length), 2 * shape.padded)
    output = 0 if y is None else 1 if _beside_dz(walk) is None else 2
    for begin in reversed(range(0, walk.length, slab)):
        walk.enter(begin, min(slab, walk.length - begin), marks=marks, y=y, dy=dy, **along)
        walk.cut_end_to_end()
        walk.start(carry, adjoint=True)
        carry = torch.empty_like(carry)
        sizes = walk.batch * walk.chunks, scan.A.shape[1] + 2, walk.channels
        # Rows may have a chunk less than others: what nobody writes counts as nothing.
        by_chunk = marks.new_empty(sizes) if walk.chunks == 1 else marks.new_zeros(sizes)
        sums.append(by_chunk)
        walk.give(handed=carry, dmaps=dmaps, by_chunk=by_chunk)
        walk.backward(output=output, apart=_dz_into(walk) is not None)
        walk.reduce(dmaps, dB, dC)
    total = (sums[0] if len(sums) == 1 else torch.cat(sums)).sum(0)
    initial = walked(dinitial if walk.packed else carry, scan)
    return _found(scan, {**along, "dB": dB, "dC": dC}, total, initial)


def _dz_into(walk: Walk) -> Tensor | None:
    """`Scan.dz_into`, if the kernel can write there."""
    into = walk.scan.dz_into
    return into if into is not None and into.dtype == walk.dtype and into.stride(2) == 1 else None


def _beside_dz(walk: Walk) -> Tensor | None:
    """`Scan.y_into`, if the kernel can write there: by the strides of dz."""
    into, dz = walk.scan.y_into, _dz_into(walk)
    if into is None or dz is None or into.dtype != dz.dtype:
        return None
    return into if into.stride() == dz.stride() else None


def _along(walk: Walk, dy: Tensor) -> dict[str, Tensor]:
    """Where the gradients of x, dt and z go: over dy and dt, where there is room, or new tensors.

    The kernel writes dx and ddt at the same places: dy and dt are taken only as they would lie.
    """
    scan, given = walk.scan, walk.sequences
    over = {"dx": ("dy", dy), "ddt": ("dt", given["dt"])}
    found = {
        gradient: source
        if name in scan.overwrite and source.is_contiguous()
        else torch.empty_like(source, memory_format=torch.contiguous_format)
        for gradient, (name, source) in over.items()
    }
    if scan.z is None:
        return found
    into = _dz_into(walk)
    return {**found, "dz": torch.empty_like(found["dx"]) if into is None else into}


def _found(scan: Scan, found: dict[str, Tensor], sums: Tensor, initial: Tensor) -> Gradients:
    """As they are handed back; `sums` (N + 2, D) are those of A, of D and of dt_bias."""
    return Gradients(
        x=found["dx"].to(scan.x.dtype),
        dt=found["ddt"].to(scan.dt.dtype),
        A=sums[:-2].view(scan.A.shape).to(scan.A.dtype),
        B=found["dB"].to(scan.B.dtype),
        C=found["dC"].to(scan.C.dtype),
        D=_like(scan.D, sums[-2]),
        z=_like(scan.z, found.get("dz")),
        dt_bias=_like(scan.dt_bias, sums[-1]),
        initial_state=_like(scan.initial_state, initial),
    )


def _like(given: Tensor | None, gradient: Tensor | None) -> Tensor | None:
    return None if given is None or gradient is None else gradient.to(given.dtype)
