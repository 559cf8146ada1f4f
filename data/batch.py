"""What a loader hands to training: tokens, where packed sequences begin, what a token weighs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from dnassm.data.alphabet import SOFT_MASK, Codes
from dnassm.data.tokenizer import Tokenizer, Tokens
from dnassm.errors import ConfigError

Weights = npt.NDArray[np.float32]


class Batch(NamedTuple):
    """Rows of tokens; packed sequences lie end to end on one row."""

    tokens: Tensor
    """(B, L) int64; (1, B L) if packed."""
    cu_seqlens: Tensor | None = None
    """(S+1,) int32, None if not packed: sequence s is the positions ``[cu_seqlens[s],
    cu_seqlens[s+1])``, 0-based half-open; 0 and B L are the first and the last edge. The padding at
    the end of a row is a sequence of its own."""
    weights: Tensor | None = None
    """Float32 of the shape of `tokens`: what each weighs in a loss that it is the target of; all
    the same when None."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with `change` done to every tensor."""
        tokens, edges, weights = self
        return Batch(
            change(tokens),
            None if edges is None else change(edges),
            None if weights is None else change(weights),
        )


def check_weight(soft_masked_weight: float) -> None:
    """Refuse a weight of soft-masked bases outside of [0, 1].

    Raises:
        ConfigError: names the number.
    """
    if not 0 <= soft_masked_weight <= 1:
        raise ConfigError(
            f"soft_masked_weight: expected a number in [0, 1], got {soft_masked_weight}"
        )


def weights_of(
    tokenizer: Tokenizer, codes: Codes, tokens: Tokens, soft_masked_weight: float
) -> Weights:
    """Weight (T,) of each token: the mean over its bases, a soft-masked one's being the lower.

    Args:
        tokenizer: what made the tokens.
        codes: (L,) one sequence.
        tokens: (T,) its tokens, or the first of them and padding.
        soft_masked_weight: weight of a soft-masked base; that of every other is 1.
    """
    masked = np.zeros(codes.size + 1, dtype=np.int64)
    np.cumsum((codes & SOFT_MASK) != 0, out=masked[1:])
    start, stop = tokenizer.spans(tokens, codes.size).T
    share = (masked[stop] - masked[start]) / np.maximum(stop - start, 1)
    weights: Weights = (1 - (1 - soft_masked_weight) * share).astype(np.float32)
    return weights
