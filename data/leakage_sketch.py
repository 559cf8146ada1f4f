"""Which share of a sequence's k-mers occurs in a stream of others: FracMinHash by sourmash.

sourmash makes the k-mers canonical, skips those with an unknown base, hashes them and keeps those
below 2^64 / scaled (Irber et al. 2022, doi:10.1101/2022.01.11.475838). Only the hashes of the
held-out sequences are kept; what they are held against streams past, in bounded memory.

Why sourmash: it is the library of this method (BSD-3, Rust, wheels for every platform, hashes that
other tools know), where datasketch and mmh3 would hash each k-mer from Python. A sketch of n hashes
takes it n^2 steps (4 million bases, each kept: over ten minutes), so sketches here are of a few
thousand and joined by numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from dnassm.errors import ConfigError
from dnassm.extras import require

DEFAULT_K = 21
"""At 21 a k-mer of a human genome occurs by chance once in 700 others of its length; and odd, so
that none is its own reverse complement."""
_HASHES_PER_SEQUENCE = 256
_BATCH = 1 << 16
_SKETCH_HASHES = 1 << 11
_MOST_K = 51

Hashes = npt.NDArray[np.uint64]


class Sketcher:
    """Hashes of the sampled canonical k-mers of a sequence.

    Args:
        k: bases of a k-mer, odd.
        scaled: one of `scaled` k-mers is kept; 1 keeps all.

    Raises:
        ConfigError: k is even or out of range.
        MissingExtraError: sourmash is not installed.
    """

    def __init__(self, k: int = DEFAULT_K, scaled: int = 1) -> None:
        if not 5 <= k <= _MOST_K or k % 2 == 0:
            raise ConfigError(f"k: expected an odd number from 5 to {_MOST_K}, got {k}")
        self.k = k
        self.scaled = scaled
        self._library = require("sourmash", "leakage", "k-mer containment")

    def __call__(self, sequence: str) -> Hashes:
        """Return the sorted hashes of a sequence of letters, each once."""
        letters = sequence.upper().replace("U", "T")
        step = _SKETCH_HASHES * self.scaled
        pieces = range(0, max(len(letters) - self.k + 1, 1), step)
        found = [self._sketch(letters[at : at + step + self.k - 1]) for at in pieces]
        return np.unique(np.concatenate(found))

    def _sketch(self, letters: str) -> Hashes:
        sketch = self._library.MinHash(n=0, ksize=self.k, scaled=self.scaled)
        sketch.add_sequence(letters, force=True)
        return np.fromiter(sketch.hashes, dtype=np.uint64, count=len(sketch))


def scaled_for(length: int, k: int) -> int:
    """Sampling that leaves about 256 k-mers of a sequence of `length` bases; a power of 2."""
    return 1 << max(0, ((length - k + 1) // _HASHES_PER_SEQUENCE).bit_length() - 1)


def containment(queries: Sequence[Hashes], reference: Iterable[Hashes]) -> list[float | None]:
    """Share of the hashes of each query that occur anywhere in the reference.

    Args:
        queries: hashes of each sequence; kept in memory.
        reference: hashes of pieces of what they are held against; read once.

    Returns:
        A number in [0, 1] for each query, None where it has no hash.
    """
    known = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *queries]))
    seen = np.zeros(known.size, dtype=bool)
    for batch in _batches(reference) if known.size else ():
        at = np.minimum(np.searchsorted(known, batch), known.size - 1)
        seen[at[known[at] == batch]] = True
    return [
        float(seen[np.searchsorted(known, query)].mean()) if query.size else None
        for query in queries
    ]


def _batches(pieces: Iterable[Hashes]) -> Iterator[Hashes]:
    """Join small pieces: one search for many short sequences."""
    held: list[Hashes] = []
    size = 0
    for piece in itertools.chain(pieces, (None,)):
        if piece is not None:
            held.append(piece)
            size += piece.size
        if held and (piece is None or size >= _BATCH):
            yield np.concatenate(held)
            held, size = [], 0
