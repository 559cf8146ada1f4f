"""The kernels of the Triton backend; a tile is `tokens` tokens by the `columns` of the vocabulary.

Hidden states and weight are read `block` channels at a time. Products of 16-bit numbers go through
the matrix units, those of float32 do not: there they would lose 13 bits.
"""

# Triton compiles these functions: it reads no annotations but tl.constexpr, and has no keywords.
# ruff: noqa: ANN001, ANN201, ANN202, D103
# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _logits(
    hidden, row_stride, column_stride, weight, bias, at, rows, width, vocabulary,
    tokens: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """(tokens, columns) logits in float32; -inf beyond the vocabulary."""
    entry = tl.arange(0, columns)
    total = tl.zeros((tokens, columns), tl.float32)
    for start in range(0, width, block):
        channel = start + tl.arange(0, block)
        real = channel < width
        place = hidden + at[:, None] * row_stride + channel[None, :].to(tl.int64) * column_stride
        h = tl.load(place, mask=(at < rows)[:, None] & real[None, :], other=0.0)
        place = weight + entry[None, :] * width + channel[:, None]
        w = tl.load(place, mask=(entry < vocabulary)[None, :] & real[:, None], other=0.0)
        total += tl.dot(h, w, input_precision="ieee")
    if bias is not None:
        total += tl.load(bias + entry, mask=entry < vocabulary, other=0.0)[None, :]
    return tl.where((entry < vocabulary)[None, :], total, float("-inf"))


@triton.jit
def forward(
    hidden, row_stride, column_stride, weight, bias, targets, ignored, smoothing, rows, width,
    vocabulary, losses, sums,
    tokens: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * tokens + tl.arange(0, tokens)
    entry = tl.arange(0, columns)[None, :]
    logits = _logits(
        hidden, row_stride, column_stride, weight, bias, at, rows, width, vocabulary,
        tokens, columns, block,
    )  # fmt: skip
    target = tl.load(targets + at, mask=at < rows, other=ignored)
    most = tl.max(logits, 1)
    lse = most + tl.log(tl.sum(tl.exp(logits - most[:, None]), 1))
    finite = tl.where(entry < vocabulary, logits, 0.0)
    of_target = tl.sum(tl.where(entry == target[:, None], finite, 0.0), 1)
    loss = lse - of_target - smoothing * (tl.sum(finite, 1) / vocabulary - of_target)
    # One that is out of range comes here where nobody looked at the targets.
    loss = tl.where((target < 0) | (target >= vocabulary), float("nan"), loss)
    tl.store(losses + at, tl.where(target == ignored, 0.0, loss), mask=at < rows)
    tl.store(sums + at, lse, mask=at < rows)


@triton.jit
def backward(
    hidden, row_stride, column_stride, weight, bias, targets, ignored, smoothing, rows, width,
    vocabulary, sums, gradients, unit, dhidden, of_weight, of_bias, each,
    tokens: tl.constexpr, columns: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Gradients of `each` tiles; their sums for the weight grow in memory that L2 holds."""
    program = tl.program_id(0).to(tl.int64)
    entry = tl.arange(0, columns)
    known = entry < vocabulary
    of_bias_here = tl.zeros((columns,), tl.float32)
    size = tl.load(unit)
    for tile in range(each):
        at = (program * each + tile) * tokens + tl.arange(0, tokens)
        logits = _logits(
            hidden, row_stride, column_stride, weight, bias, at, rows, width, vocabulary,
            tokens, columns, block,
        )  # fmt: skip
        target = tl.load(targets + at, mask=at < rows, other=ignored)
        lse = tl.load(sums + at, mask=at < rows, other=0.0)
        g = tl.load(gradients + at, mask=at < rows, other=0.0)
        g = tl.where(target == ignored, 0.0, g)
        wanted = tl.where(entry[None, :] == target[:, None], 1 - smoothing, 0.0)
        found = tl.exp(logits - lse[:, None]) - wanted - smoothing / vocabulary
        counted = (g != 0)[:, None] & known[None, :]
        found = tl.where(counted, found * g[:, None], 0.0)
        of_bias_here += tl.sum(found, 0)
        d = found.to(hidden.dtype.element_ty)
        for start in range(0, width, block):
            channel = (start + tl.arange(0, block)).to(tl.int64)
            real = channel < width
            inside = (at < rows)[:, None] & real[None, :]
            both = known[:, None] & real[None, :]
            w = tl.load(weight + entry[:, None] * width + channel[None, :], mask=both, other=0.0)
            dh = tl.dot(d, w, input_precision="ieee") * size
            place = dhidden + at[:, None] * width + channel[None, :]
            tl.store(place, dh.to(dhidden.dtype.element_ty), mask=inside)
            place = hidden + at[:, None] * row_stride + channel[None, :] * column_stride
            h = tl.load(place, mask=inside, other=0.0)
            place = of_weight + (program * vocabulary + entry[:, None]) * width + channel[None, :]
            before = tl.load(place, mask=both & (tile > 0), other=0.0)
            tl.store(place, before + tl.dot(tl.trans(d), h, input_precision="ieee"), mask=both)
        tl.debug_barrier()  # what one thread has stored another may load in the next tile
    tl.store(of_bias + program * vocabulary + entry, of_bias_here, mask=known)
