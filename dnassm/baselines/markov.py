"""Order-k Markov models of DNA and their interpolated mixture, in bits per base.

Definition, so that the numbers can be compared with anybody's:

- Counts: n(context, base) over every window of k + 1 bases inside one training sequence; with both
  strands counted, every window is counted once as it stands and once as its reverse complement.
- Probability: P(base | context) = (n(context, base) + alpha) / (n(context) + 4 alpha).
- Score: ``-log2 P`` of a base given the k bases before it, read along the plus strand only. The
  first k bases of every test sequence are not scored. A window that holds anything but A C G T
  (soft-masked or not) is neither counted nor scored.

The mixture backs off from order K to order 0 (Jelinek and Mercer 1980; buckets by count as in Chen
and Goodman 1999, doi:10.1006/csla.1999.0128, section 2.3):

    P_k(b | c) = w n(c, b) / n(c) + (1 - w) P_{k-1}(b | c without its first base),   P_{-1} = 1/4

where w depends on the order and on floor(log2 n(c)) + 1, and is 0 where n(c) = 0. The weights are
fitted by EM on a part of the TRAINING sequences that is left out of the counts for it; the counts
are then taken from all of them. No test base is ever looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dnassm.data.alphabet import BASE, Codes, N
from dnassm.errors import ConfigError

MAX_ORDER = 12
_CHUNK = 2_000_000  # windows at a time: bounds the memory of index arrays
_BLOCK = 10_000
_BUCKETS = 34  # floor(log2 n) + 1 of any int32 count, and 0 for a context never seen
_EM_STEPS = 50

Counts = NDArray[np.int32]
"""(4**k, 4): contexts, oldest base first, against the next base."""
Bits = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class BitsPerBase:
    """Mean code length of test sequences under a model.

    Attributes:
        value: bits per scored base.
        scored: number of bases scored, plus strand only.
        skipped: number of bases without a score: the first of each sequence, and next to an N.
    """

    value: float
    scored: int
    skipped: int


class MarkovModel:
    """P(base | the `order` bases before it) by smoothed counts."""

    def __init__(self, counts: Counts, *, order: int, alpha: float) -> None:
        self.counts = counts
        self.order = order
        self.alpha = alpha

    def bits(self, codes: Codes) -> Bits:
        """``-log2 P`` of each base: (L,) codes -> (L,) bits, nan where it is not defined."""
        result = np.full(len(codes), np.nan)
        for place, words in _windows(codes, self.order):
            seen = self.counts.reshape(-1)[words]
            context = self.counts[words >> 2].sum(axis=1)
            result[place] = -np.log2((seen + self.alpha) / (context + 4 * self.alpha))
        return result


class MixtureModel:
    """Orders 0..K interpolated with weights by order and count of the context."""

    def __init__(self, counts: Sequence[Counts], weights: Bits) -> None:
        self.counts = tuple(counts)
        self.weights = weights
        self.order = len(counts) - 1

    def bits(self, codes: Codes) -> Bits:
        """``-log2 P`` of each base: (L,) codes -> (L,) bits, nan where it is not defined."""
        result = np.full(len(codes), np.nan)
        for place, words in _windows(codes, self.order):
            probability = np.full(len(words), 0.25)
            for order, counts in enumerate(self.counts):
                ratio, bucket = _relative_frequency(counts, words & (4 ** (order + 1) - 1))
                weight = self.weights[order, bucket]
                probability = weight * ratio + (1 - weight) * probability
            result[place] = -np.log2(probability)
        return result


def fit_markov(
    sequences: Iterable[Codes], order: int, *, alpha: float = 1.0, both_strands: bool = True
) -> MarkovModel:
    """Count the windows of `order` + 1 bases of training sequences.

    Args:
        sequences: store codes (L,) uint8 of stretches of the plus strand.
        order: 0 to 12; order 12 needs 256 MB for its counts.
        alpha: pseudo-count of each base in each context, above 0.
        both_strands: count the reverse complement of every window too.

    Raises:
        ConfigError: order or alpha out of range.
    """
    _check_order(order)
    if not alpha > 0:
        raise ConfigError(f"Markov model: alpha must be above 0, got {alpha}")
    return MarkovModel(_count(sequences, order, both_strands), order=order, alpha=alpha)


def fit_mixture(
    sequences: Iterable[Codes],
    order: int,
    *,
    both_strands: bool = True,
    held_out_every: int = 10,
    block: int | None = None,
) -> MixtureModel:
    """Fit the interpolated mixture of orders 0..`order`; the module's docstring defines it.

    Args:
        sequences: training codes, as for `fit_markov`.
        order: highest order, 0 to 12.
        both_strands: count the reverse complement of every window too.
        held_out_every: one of so many training blocks fits the weights, at least 2.
        block: bases of a block; a sequence shorter than two blocks is a block of its own. None: of
            10,000 bases, or fewer where the training sequence would not give enough of them.

    Raises:
        ConfigError: an argument out of range, or too little training sequence to hold a block out.
    """
    _check_order(order)
    whole = list(sequences)
    if block is None:
        block = min(_BLOCK, sum(map(len, whole)) // (2 * max(1, held_out_every)))
    if held_out_every < 2 or block < 2 * (order + 1):
        raise ConfigError(
            f"Markov mixture: expected held_out_every >= 2 and block >= {2 * (order + 1)}, got "
            f"{held_out_every} and {block}"
        )
    kept, held = _hold_out(whole, held_out_every, block)
    if not kept or not held:
        raise ConfigError(
            f"Markov mixture: {sum(map(len, whole)):,} training bases make fewer than "
            f"{held_out_every} blocks of {block:,}; give more sequence or a smaller block"
        )
    weights = _fit_weights(kept, held, order, both_strands)
    return MixtureModel([_count(whole, k, both_strands) for k in range(order + 1)], weights)


def bits_per_base(model: MarkovModel | MixtureModel, sequences: Iterable[Codes]) -> BitsPerBase:
    """Mean bits per base of test sequences, each read along the plus strand on its own.

    Raises:
        ConfigError: no base could be scored.
    """
    total, scored, bases = 0.0, 0, 0
    for codes in sequences:
        bits = model.bits(codes)
        defined = ~np.isnan(bits)
        total += float(bits[defined].sum())
        scored += int(defined.sum())
        bases += len(codes)
    if not scored:
        raise ConfigError(
            f"bits per base: none of {bases:,} test bases has {model.order} bases A C G T before it"
        )
    return BitsPerBase(total / scored, scored, bases - scored)


def _check_order(order: int) -> None:
    if not 0 <= order <= MAX_ORDER:
        raise ConfigError(f"Markov model: order must be 0 to {MAX_ORDER}, got {order}")


def _windows(codes: Codes, order: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield (index of the last base, word) of every window of order + 1 bases A C G T.

    A word reads its bases as digits to base 4, oldest first: the last two bits are the last base.
    """
    for start in range(0, len(codes) - order, _CHUNK):
        bases = codes[start : start + _CHUNK + order] & BASE
        count = len(bases) - order
        words = np.zeros(count, dtype=np.int64)
        clean = np.ones(count, dtype=bool)
        for offset in range(order + 1):
            letter = bases[offset : offset + count]
            words <<= 2
            words |= letter
            clean &= letter < N
        place = np.flatnonzero(clean)
        yield place + (start + order), words[place]


def _count(sequences: Iterable[Codes], order: int, both_strands: bool) -> Counts:  # noqa: FBT001
    size = 4 ** (order + 1)
    counts = np.zeros(size, dtype=np.int32)
    for codes in sequences:
        for _, words in _windows(codes, order):
            if size <= len(words):
                counts += np.bincount(words, minlength=size).astype(np.int32)
            else:  # a histogram of 4**13 bins per chunk would cost more than sorting the chunk
                seen, times = np.unique(words, return_counts=True)
                counts[seen] += times.astype(np.int32)
    if both_strands:
        counts = counts + _of_reverse_complements(counts, order + 1)
    return counts.reshape(-1, 4)


def _of_reverse_complements(counts: NDArray[np.int32], length: int) -> NDArray[np.int32]:
    """Counts by word -> counts of each word's reverse complement, in the same order.

    Complementing every base turns word w into 4**length - 1 - w; reversing the order of the bases
    transposes the axes of the table.
    """
    return counts[::-1].reshape((4,) * length).transpose().reshape(-1)


def _relative_frequency(counts: Counts, words: NDArray[np.int64]) -> tuple[Bits, NDArray[np.intp]]:
    """n(c, b) / n(c), 0 where the context was never seen, and the bucket of n(c)."""
    context = counts[words >> 2].sum(axis=1)
    bucket = np.frexp(context.astype(np.float64))[1].astype(np.intp)  # 0, then floor(log2 n) + 1
    return counts.reshape(-1)[words] / np.maximum(context, 1), bucket


def _hold_out(
    sequences: Sequence[Codes], every: int, block: int
) -> tuple[list[Codes], list[Codes]]:
    """Deal blocks of the training sequences: every `every`-th is held out, the rest is kept."""
    kept: list[Codes] = []
    held: list[Codes] = []
    number = 0
    for codes in sequences:
        pieces = max(len(codes) // block, 1)
        for piece in np.array_split(codes, pieces):
            number += 1
            (held if number % every == 0 else kept).append(piece)
    return kept, held


def _fit_weights(
    kept: Sequence[Codes],
    held: Sequence[Codes],
    order: int,
    both_strands: bool,  # noqa: FBT001
) -> Bits:
    """Weights (order + 1, buckets) that make the held-out blocks most likely."""
    words = np.concatenate([found for codes in held for _, found in _windows(codes, order)])
    below = np.full(len(words), 0.25)
    weights = np.zeros((order + 1, _BUCKETS))
    for k in range(order + 1):
        counts = _count(kept, k, both_strands)
        ratio, bucket = _relative_frequency(counts, words & (4 ** (k + 1) - 1))
        weights[k] = _expectation_maximisation(ratio, below, bucket)
        below = weights[k, bucket] * ratio + (1 - weights[k, bucket]) * below
    return weights


def _expectation_maximisation(ratio: Bits, below: Bits, bucket: NDArray[np.intp]) -> Bits:
    """Weight of `ratio` against `below` in each bucket of contexts."""
    weight = np.full(_BUCKETS, 0.5)
    size = np.bincount(bucket, minlength=_BUCKETS)
    for _ in range(_EM_STEPS):
        above = weight[bucket] * ratio
        share = above / (above + (1 - weight[bucket]) * below)
        weight = np.bincount(bucket, share, minlength=_BUCKETS) / np.maximum(size, 1)
    # A count that no held-out context had says nothing: trust it as the next lower one, less than 1
    # so that a base never seen in a context keeps a probability.
    for index in np.flatnonzero(size == 0):
        weight[index] = weight[index - 1] if index else 0.0
    weight[0] = 0.0
    bounded: Bits = np.minimum(weight, 1 - 1e-6)
    return bounded
