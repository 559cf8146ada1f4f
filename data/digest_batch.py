"""Digests of many short contigs that are in memory as a whole: a few calls for all of them.

One after the other, the calls would take longer than the digests. All contigs are there, so that
four of about the same length are taken side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import Codes
from dnassm.data.contig_digest import START, hexdigests
from dnassm.data.digest_code import BLOCK, LANES, digest_rows

_Integers = npt.NDArray[np.int64]

_AT_ONCE = 4096
"""Contigs whose states and last blocks are in memory: 2 MB."""
_BITS = 8
"""Bytes behind the padding that hold the number of bits."""
_STEPS = np.array([[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
"""Of four contigs, the longest first: all, until the last one ends, then the first three, ...

A contig in two lanes is computed twice, with the same result.
"""


def digest_each(upper: Codes, codes: Codes, spans: _Integers) -> list[tuple[str, str]]:
    """MD5 of the letters and SHA-256 of the codes of each contig, a row [start, end) of `spans`."""
    found = []
    for first in range(0, len(spans), _AT_ONCE):
        starts, ends = spans[first : first + _AT_ONCE].T
        found += _digest_all((upper, codes), starts, ends)
    return found


def _digest_all(
    streams: tuple[Codes, Codes], starts: _Integers, ends: _Integers
) -> list[tuple[str, str]]:
    states = np.tile(START, (len(starts), 1))
    at = _addresses(states, np.arange(len(starts)) * states.strides[0])
    sizes = (ends - starts) // BLOCK
    _take(at, [_addresses(stream, starts) for stream in streams], sizes)
    tails, sizes = _tails(streams, starts, ends)
    places = np.arange(len(starts)) * tails.strides[1]
    _take(at, [_addresses(tail, places) for tail in tails], sizes)
    return hexdigests(states)


def _addresses(array: npt.NDArray[np.generic], offsets: _Integers) -> _Integers:
    return array.ctypes.data + offsets


def _take(states: _Integers, streams: Sequence[_Integers], blocks: _Integers) -> None:
    """Take each state on by so many blocks of its streams; all but `blocks` are addresses."""
    order = np.argsort(-blocks, kind="stable")
    order = np.resize(order, -(-order.size // LANES) * LANES).reshape(-1, LANES)
    blocks = blocks[order]
    blocks.reshape(-1)[states.size :] = 0  # what fills the last four up
    ends = np.flip(blocks, axis=1)  # of the steps, in blocks
    begins = np.concatenate([np.zeros_like(ends[:, :1]), ends[:, :-1]], axis=1)
    done = BLOCK * begins[:, :, None]
    read = (stream[order][:, _STEPS] + done for stream in streams)
    rows = np.stack([states[order][:, _STEPS], *read], axis=2)
    lasts = ends > begins
    digest_rows(rows[lasts].astype(np.uint64), (ends - begins)[lasts])


def _tails(
    streams: tuple[Codes, Codes], starts: _Integers, ends: _Integers
) -> tuple[Codes, _Integers]:
    """What stands behind the whole blocks, the padding and the number of bits.

    Returns:
        (2, contigs, 2 * BLOCK) bytes of both streams, and how many blocks of them count.
    """
    rest = (ends - starts) % BLOCK
    blocks = -(-(rest + 1 + _BITS) // BLOCK)
    tails = np.zeros((2, len(starts), 2 * BLOCK), dtype=np.uint8)
    column = np.arange(BLOCK)
    places = np.minimum((ends - rest)[:, None] + column, streams[0].size - 1)
    is_rest = column < rest[:, None]
    number = np.arange(len(starts))
    last = BLOCK * blocks[:, None] - _BITS + np.arange(_BITS)
    for tail, stream, order in zip(tails, streams, "<>", strict=True):
        np.multiply(stream[places], is_rest, out=tail[:, :BLOCK])
        tail[number, rest] = 0x80
        bits = (8 * (ends - starts)).astype(f"{order}u8").view(np.uint8).reshape(-1, _BITS)
        tail[number[:, None], last] = bits
    return tails, blocks
