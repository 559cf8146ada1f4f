"""Copies of sequences: the same letters, or those of the other strand."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from dnassm.data.alphabet import decode, encode_ascii, reverse_complement


@dataclasses.dataclass(frozen=True, slots=True)
class Duplicates:
    """How many sequences are copies: letter by letter, or of the other strand.

    A sequence that is both counts as an exact copy.
    """

    exact: int
    reverse_complement: int

    def to_json(self) -> dict[str, int]:
        """Return the counts by name."""
        return dataclasses.asdict(self)


def strand_keys(sequences: Iterable[str]) -> list[tuple[str, str]]:
    """For each sequence its letters in upper case, and the key it shares with its other strand.

    >>> strand_keys(["aacg", "CGTT"])
    [('AACG', 'AACG'), ('CGTT', 'AACG')]
    """
    keys = []
    for sequence in sequences:
        upper = sequence.upper().replace("U", "T")
        other = decode(reverse_complement(encode_ascii(upper.encode("ascii", "replace"))))
        keys.append((upper, min(upper, other)))
    return keys


def count_duplicates(sequences: Sequence[str], among: Sequence[str] | None = None) -> Duplicates:
    """Count sequences that occur `among` others, or without others earlier in the same list."""
    exact_seen: set[str] = set()
    both_seen: set[str] = set()
    for upper, key in strand_keys(among or ()):
        exact_seen.add(upper)
        both_seen.add(key)
    exact = reverse = 0
    for upper, key in strand_keys(sequences):
        exact += upper in exact_seen
        reverse += upper not in exact_seen and key in both_seen
        if among is None:
            exact_seen.add(upper)
            both_seen.add(key)
    return Duplicates(exact, reverse)
