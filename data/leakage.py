"""Leakage between the parts of a split: what is tested on that was trained on as well.

Three measures for each held-out part against each part that could give it away: copies letter by
letter, copies of the other strand, and the share of the k-mers of a held-out sequence that occur
anywhere in the other part, on either strand. A share of 1 is a copy in pieces; half is a close
relative or a repeat; a few per cent are chance and common repeats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dnassm.console import table
from dnassm.data.alphabet import BASE, Codes, T, decode
from dnassm.data.interval import Interval
from dnassm.data.labelled import read_labelled
from dnassm.data.leakage_copies import Duplicates, count_duplicates
from dnassm.data.leakage_sketch import DEFAULT_K, Sketcher, containment, scaled_for
from dnassm.data.leakage_windows import find_windows
from dnassm.data.store import GenomeStore
from dnassm.errors import ConfigError, GenomeError, MissingExtraError

LEVELS = (0.5, 0.8, 1.0)
"""Shares of k-mers at which sequences are counted."""
_BINS = 10
_EXAMPLES = 10
_READ_BASES = 1 << 16

_COLUMNS = ("part", "against", "compared", "copies", "other strand", "mean", "max")

Shares = tuple[float | None, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Overlap:
    """One held-out part against another part.

    Attributes:
        part: what is held out.
        against: what it is compared with.
        copies: sequences of `part` that are in `against` as well.
        shares: for each sequence its share of k-mers in `against`, None where it is shorter than k
            or known nowhere; None as a whole when k-mers were not counted.
        names: of each sequence: its number in the part from 1, or CONTIG:START-END.
    """

    part: str
    against: str
    copies: Duplicates
    shares: Shares | None
    names: tuple[str, ...]

    def measured(self) -> npt.NDArray[np.float64]:
        """Shares of the sequences that have one."""
        return np.array([share for share in self.shares or () if share is not None])

    def to_json(self) -> dict[str, Any]:
        """Return counts, a summary of the shares, and the sequences with the largest ones."""
        return {
            "part": self.part,
            "against": self.against,
            "compared": len(self.names),
            **self.copies.to_json(),
            "containment": None if self.shares is None else _summary(self.measured()),
            "closest": _closest(self),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Leakage:
    """Every held-out part against every part that it should know nothing of.

    Attributes:
        unit: what was compared: "sequences", or "windows of 1024 bp".
        k: bases of a k-mer.
        scaled: one of this many k-mers was looked at.
        within: part -> copies inside of it; empty for windows of a genome.
        overlaps: test and valid against train, test against valid; or folds against the rest.
        missing: why k-mers were not counted, None when they were.
    """

    unit: str
    k: int
    scaled: int
    within: Mapping[str, Duplicates]
    overlaps: tuple[Overlap, ...]
    missing: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the content of leakage.json."""
        return {
            "unit": self.unit,
            "k": self.k,
            "scaled": self.scaled,
            "within": {part: copies.to_json() for part, copies in self.within.items()},
            "between": [overlap.to_json() for overlap in self.overlaps],
            "missing": self.missing,
        }

    def render(self) -> str:
        """Write a table: copies, and how many sequences share how many of their k-mers."""
        levels = [f"k-mers >= {level:.0%}" for level in LEVELS]
        lines = [
            f"{part}: {c.exact:,} copies of an earlier sequence, {c.reverse_complement:,} of its "
            "other strand"
            for part, c in self.within.items()
        ]
        if self.overlaps:
            rows = [_row(overlap) for overlap in self.overlaps]
            lines += [*([""] if lines else []), table(rows, [*_COLUMNS, *levels])]
        note = self.missing or (
            f"{self.unit}; k-mers of {self.k} bases, 1 of {self.scaled} counted"
            if self.overlaps
            else f"{self.unit} of one part only, no other to compare with"
        )
        return "\n".join([*lines, "", note])


def leakage_at(path: Path, *, window: int = 1024, most: int = 2000, k: int = DEFAULT_K) -> Leakage:
    """Measure the leakage of a genome store, or of a table or folder of labelled sequences.

    Args:
        path: a store; otherwise what `read_labelled` reads.
        window: see `leakage_of_store`.
        most: see `leakage_of_store`.
        k: bases of a k-mer, odd.

    Raises:
        DnassmError: see `read_labelled`, `leakage_of_store` and `leakage_of_sequences`.
    """
    if (path / "store.json").is_file():
        return leakage_of_store(GenomeStore.open(path), window=window, most=most, k=k)
    data = read_labelled(path)
    if data.split is None:
        return leakage_of_sequences({"all": data.sequences}, k=k)
    parts = {part: data.part(part).sequences for part in dict.fromkeys(data.split)}
    return leakage_of_sequences(parts, k=k)


def leakage_of_sequences(parts: Mapping[str, Sequence[str]], *, k: int = DEFAULT_K) -> Leakage:
    """Compare the parts of labelled sequences.

    Args:
        parts: name -> sequences; "test" is held against "train" and "valid", "valid" against
            "train", any other part against "train".
        k: bases of a k-mer, odd.

    Raises:
        ConfigError: k is even or out of range.
        FormatError: a letter is not an IUPAC nucleotide.
    """
    pairs = [
        (part, against)
        for against in ("train", "valid")
        for part in parts
        if against in parts and part not in ("train", against)
    ]
    numbered = {
        part: tuple(f"{part}:{i}" for i in range(1, len(sequences) + 1))
        for part, sequences in parts.items()
    }
    held = [(part, against, parts[part], parts[against], numbered[part]) for part, against in pairs]
    return _of_sequences(held, parts, k)


def leakage_of_folds(
    sequences: Sequence[str], folds: Sequence[npt.NDArray[np.int64]], *, k: int = DEFAULT_K
) -> Leakage:
    """Compare each fold of a cross-validation with all others together.

    Args:
        sequences: n sequences.
        folds: indices of each fold.
        k: bases of a k-mer, odd.

    Raises:
        ConfigError: k is even or out of range.
        FormatError: a letter is not an IUPAC nucleotide.
    """
    held = []
    for number, fold in enumerate(folds, 1):
        inside = set(fold.tolist())
        rest = [s for i, s in enumerate(sequences) if i not in inside]
        ours = [sequences[i] for i in fold.tolist()]
        names = tuple(f"row:{i + 1}" for i in fold.tolist())
        held.append((f"fold {number}", "other folds", ours, rest, names))
    return _of_sequences(held, {"all": sequences}, k)


def leakage_of_store(
    store: GenomeStore, *, window: int = 1024, most: int = 2000, k: int = DEFAULT_K
) -> Leakage:
    """Compare windows of the held-out parts of a genome with every base of the other parts.

    Windows lie side by side in the intervals of a part; `most` of them, evenly spaced, are
    compared. A window is a copy when all its bases occur in a row anywhere in an interval of the
    other part. Windows with over half unknown bases are left out. The other part is read once, in
    pieces; memory depends on `most` alone.

    Args:
        store: the genome, with its split.
        window: bases.
        most: windows of each held-out part.
        k: bases of a k-mer, odd.

    Raises:
        ConfigError: a number is out of range.
        GenomeError: the store holds nothing out, or no window of a part fits.
    """
    if window < k or most < 1:
        raise ConfigError(
            f"leakage: expected window >= k = {k} and most >= 1, got {window}, {most}"
        )
    pairs = [
        (part, against)
        for part, against in (("valid", "train"), ("test", "train"), ("test", "valid"))
        if store.splits[part] and store.splits[against]
    ]
    if not pairs:
        raise GenomeError(
            f"{store.path}: the split {store.split_rule!r} holds nothing out, so nothing can leak; "
            "tokenize with --split"
        )
    scaled = scaled_for(window, k)
    sketcher, missing = _sketcher(k, scaled)
    windows = {part: _some_windows(store, part, window, most) for part in dict(pairs)}
    overlaps = tuple(
        _windows_overlap(store, part, against, windows[part], sketcher) for part, against in pairs
    )
    return Leakage(f"windows of {window} bp", k, scaled, {}, overlaps, missing)


def _of_sequences(
    held: Sequence[tuple[str, str, Sequence[str], Sequence[str], tuple[str, ...]]],
    parts: Mapping[str, Sequence[str]],
    k: int,
) -> Leakage:
    lengths = [len(sequence) for sequences in parts.values() for sequence in sequences]
    scaled = scaled_for(int(np.median(lengths)) if lengths else 0, k)
    sketcher, missing = _sketcher(k, scaled)
    overlaps = []
    for part, against, ours, theirs, names in held:
        shares = None
        if sketcher is not None:
            shares = tuple(containment([sketcher(s) for s in ours], map(sketcher, theirs)))
        overlaps.append(Overlap(part, against, count_duplicates(ours, theirs), shares, names))
    within = {part: count_duplicates(sequences) for part, sequences in parts.items()}
    return Leakage("sequences", k, scaled, within, tuple(overlaps), missing)


def _sketcher(k: int, scaled: int) -> tuple[Sketcher | None, str | None]:
    try:
        return Sketcher(k, scaled), None
    except MissingExtraError as error:
        return None, str(error)


def _windows_overlap(
    store: GenomeStore,
    part: str,
    against: str,
    windows: Sequence[tuple[Interval, Codes]],
    sketcher: Sketcher | None,
) -> Overlap:
    codes = [bases for _, bases in windows]
    finder = find_windows(codes, _pieces(store, against, len(codes[0])))
    shares = None
    if sketcher is not None:
        read = _pieces(store, against, sketcher.k)
        pieces = (sketcher(decode(bases)) for bases in read)
        shares = tuple(containment([sketcher(decode(bases)) for bases in codes], pieces))
    turned = int((finder.reverse_complement & ~finder.exact).sum())
    names = tuple(f"{i.contig}:{i.start}-{i.end}" for i, _ in windows)
    return Overlap(part, against, Duplicates(int(finder.exact.sum()), turned), shares, names)


def _some_windows(
    store: GenomeStore, part: str, window: int, most: int
) -> list[tuple[Interval, Codes]]:
    fitting = [len(interval) // window for interval in store.splits[part]]
    total = sum(fitting)
    chosen = np.unique(np.linspace(0, total - 1, min(most, total)).round().astype(np.int64))
    before = np.concatenate([[0], np.cumsum(fitting)])
    found = []
    for number in chosen.tolist():
        row = int(np.searchsorted(before, number, side="right")) - 1
        interval = store.splits[part][row]
        start = interval.start + (number - int(before[row])) * window
        place = Interval(interval.contig, start, start + window)
        codes = store.fetch(place)
        if 2 * int(((codes & BASE) > T).sum()) <= window:
            found.append((place, codes))
    if not found:
        raise GenomeError(
            f"{store.path}: the part {part!r} has no window of {window} bp with enough known "
            "bases; take a smaller window"
        )
    return found


def _pieces(store: GenomeStore, part: str, overlap: int) -> Iterator[Codes]:
    """Codes of a part in pieces; neighbours share `overlap` - 1 bases, so that nothing is cut."""
    for interval in store.splits[part]:
        for start in range(interval.start, interval.end, _READ_BASES):
            end = min(start + _READ_BASES + overlap - 1, interval.end)
            yield store.fetch(Interval(interval.contig, start, end))


def _summary(shares: npt.NDArray[np.float64]) -> dict[str, Any]:
    if not shares.size:
        return {"measured": 0}
    histogram, _ = np.histogram(shares, bins=_BINS, range=(0.0, 1.0))
    return {
        "measured": int(shares.size),
        "mean": round(float(shares.mean()), 4),
        "median": round(float(np.median(shares)), 4),
        "max": round(float(shares.max()), 4),
        "at_least": {str(level): int((shares >= level).sum()) for level in LEVELS},
        "histogram": histogram.tolist(),
    }


def _closest(overlap: Overlap) -> list[dict[str, Any]]:
    pairs = [
        (share, name)
        for share, name in zip(overlap.shares or (), overlap.names, strict=False)
        if share
    ]
    pairs.sort(key=lambda pair: -pair[0])
    return [{"name": name, "containment": round(share, 4)} for share, name in pairs[:_EXAMPLES]]


def _row(overlap: Overlap) -> list[Any]:
    shares = overlap.measured()
    known = bool(shares.size)
    return [
        overlap.part,
        overlap.against,
        len(overlap.names),
        overlap.copies.exact,
        overlap.copies.reverse_complement,
        round(float(shares.mean()), 4) if known else None,
        round(float(shares.max()), 4) if known else None,
        *(int((shares >= level).sum()) if known else None for level in LEVELS),
    ]
