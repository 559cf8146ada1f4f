"""Split rules: which part of a genome trains, validates and tests.

A rule is a line of text, so that it travels in a store, a config and a command line unchanged:

- ``none``: everything trains.
- ``contig:valid=chr8,test=chr9``: whole contigs; repeat a key for several contigs.
- ``blocks:size=50000,every=10,gap=0,valid=8,test=9``: the contigs are cut into blocks of `size`
  bases, numbered from 0 through all contigs in order; of every `every` blocks, number `valid` and
  number `test` are held out. `test` is ``every - 1`` when it is not given, `valid` is no block;
  ``none`` says so outright.
- ``halves``, ``halves:gap=1000``: the first half of each contig trains, the second half tests.
- ``bed:FILE``: the regions of a BED file whose column 4 (or the column that its header names
  ``split``) says train, valid or test. ``bed:train=FILE,valid=FILE,test=FILE``: one file per part.
  What no region holds belongs to no part; with ``rest=train`` it trains. ``gap=1000`` as above. The
  text of the rule that a store keeps also has the files' sha256, and refuses other files.

`gap` bases are dropped on EACH side of a border between different parts, so 2 * gap bases lie
between a training base and the nearest held-out base; bases of no part in between count. Without a
gap the parts of every rule but ``bed`` cover the genome.

>>> rule = parse_split("blocks:size=10,every=3,gap=1")
>>> rule.apply({"chr1": 30})["test"]
(Interval(contig='chr1', start=21, end=30, strand='+'),)
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterator, Mapping

from dnassm.data.interval import Interval
from dnassm.data.split_bed import Region, digest_of, place_regions, read_regions
from dnassm.errors import ConfigError, GenomeError
from dnassm.registry import did_you_mean

PARTS = ("train", "valid", "test")

Piece = tuple[int, int, str]
"""[start, end) of one contig and the part it belongs to."""


class SplitRule(abc.ABC):
    """Assigns every base to one of `PARTS`, or to none where a gap is."""

    gap: int

    @property
    @abc.abstractmethod
    def text(self) -> str:
        """The rule with every default written out; `parse_split` reads it back to an equal rule."""

    @abc.abstractmethod
    def held_out(self) -> frozenset[str]:
        """Parts that the rule promises beside train."""

    @abc.abstractmethod
    def tile(self, lengths: Mapping[str, int]) -> Iterator[tuple[str, list[Piece]]]:
        """Yield every contig with its pieces in order, before any gap; a hole has no part."""

    def apply(self, lengths: Mapping[str, int]) -> dict[str, tuple[Interval, ...]]:
        """Intervals of each part, plus strand, in the order of the genome.

        Args:
            lengths: contig name -> bases, in the order of the genome.

        Raises:
            GenomeError: the rule names a contig that does not exist.
            ConfigError: a part that the rule promises holds no base.
        """
        found: dict[str, list[Interval]] = {part: [] for part in PARTS}
        for contig, pieces in self.tile(lengths):
            for start, end, part in _cut_gaps(_merge(pieces), self.gap):
                found[part].append(Interval(contig, start, end))
        for part in ("train", *sorted(self.held_out())):
            if not found[part]:
                total = sum(lengths.values())
                raise ConfigError(
                    f"split {self.text!r} leaves no base to {part} in a genome of {len(lengths)} "
                    f"contigs, {total:,} bases; choose smaller blocks, say "
                    f"blocks:size={max(1, total // 40)},every=10, a smaller gap or another rule; "
                    "with bed:FILE, rest=train gives it what no region names"
                )
        return {part: tuple(intervals) for part, intervals in found.items()}


@dataclasses.dataclass(frozen=True)
class NoSplit(SplitRule):
    """Everything trains."""

    gap: int = dataclasses.field(default=0, init=False)

    @property
    def text(self) -> str:
        """See SplitRule."""
        return "none"

    def held_out(self) -> frozenset[str]:
        """See SplitRule."""
        return frozenset()

    def tile(self, lengths: Mapping[str, int]) -> Iterator[tuple[str, list[Piece]]]:
        """See SplitRule."""
        for contig, length in lengths.items():
            yield contig, [(0, length, "train")]


@dataclasses.dataclass(frozen=True)
class ContigSplit(SplitRule):
    """Whole contigs are held out."""

    valid: tuple[str, ...]
    test: tuple[str, ...]
    gap: int = dataclasses.field(default=0, init=False)

    @property
    def text(self) -> str:
        """See SplitRule."""
        named = [f"valid={name}" for name in self.valid] + [f"test={name}" for name in self.test]
        return "contig:" + ",".join(named)

    def held_out(self) -> frozenset[str]:
        """See SplitRule."""
        return frozenset(part for part in ("valid", "test") if getattr(self, part))

    def tile(self, lengths: Mapping[str, int]) -> Iterator[tuple[str, list[Piece]]]:
        """See SplitRule."""
        for name in (*self.valid, *self.test):
            if name not in lengths:
                raise GenomeError(
                    f"split {self.text!r}: no contig {name!r} in the genome; it has "
                    f"{', '.join(list(lengths)[:5])}{', ...' if len(lengths) > 5 else ''}."
                    f"{did_you_mean(name, lengths)}"
                )
        part_of = dict.fromkeys(self.valid, "valid") | dict.fromkeys(self.test, "test")
        for contig, length in lengths.items():
            yield contig, [(0, length, part_of.get(contig, "train"))]


@dataclasses.dataclass(frozen=True)
class BlockSplit(SplitRule):
    """Of every `every` blocks of `size` bases, one or two are held out."""

    size: int
    every: int
    gap: int
    valid: int | None
    test: int | None

    @property
    def text(self) -> str:
        """See SplitRule."""
        valid, test = ("none" if k is None else k for k in (self.valid, self.test))
        return (
            f"blocks:size={self.size},every={self.every},gap={self.gap},valid={valid},test={test}"
        )

    def held_out(self) -> frozenset[str]:
        """See SplitRule."""
        return frozenset(part for part in ("valid", "test") if getattr(self, part) is not None)

    def tile(self, lengths: Mapping[str, int]) -> Iterator[tuple[str, list[Piece]]]:
        """See SplitRule."""
        part_of = {self.valid: "valid", self.test: "test"}
        number = 0
        for contig, length in lengths.items():
            pieces = []
            for start in range(0, length, self.size):
                part = part_of.get(number % self.every, "train")
                pieces.append((start, min(start + self.size, length), part))
                number += 1
            yield contig, pieces


@dataclasses.dataclass(frozen=True)
class HalvesSplit(SplitRule):
    """The first half of each contig trains, the second half tests."""

    gap: int

    @property
    def text(self) -> str:
        """See SplitRule."""
        return f"halves:gap={self.gap}"

    def held_out(self) -> frozenset[str]:
        """See SplitRule."""
        return frozenset({"test"})

    def tile(self, lengths: Mapping[str, int]) -> Iterator[tuple[str, list[Piece]]]:
        """See SplitRule."""
        for contig, length in lengths.items():
            half = length // 2
            yield contig, [(0, half, "train"), (half, length, "test")]


@dataclasses.dataclass(frozen=True)
class BedSplit(SplitRule):
    """Regions of BED files; read once, when the rule is parsed."""

    files: tuple[tuple[str | None, str], ...]
    """(part, path); with the part None the file itself names the parts."""
    rest: str
    gap: int
    sha256: str
    regions: tuple[Region, ...] = dataclasses.field(repr=False)

    @property
    def text(self) -> str:
        """See SplitRule."""
        named = [path if part is None else f"{part}={path}" for part, path in self.files]
        return f"bed:{','.join(named)},rest={self.rest},gap={self.gap},sha256={self.sha256}"

    def held_out(self) -> frozenset[str]:
        """See SplitRule."""
        return frozenset(region.part for region in self.regions) - {"train"}

    def tile(self, lengths: Mapping[str, int]) -> Iterator[tuple[str, list[Piece]]]:
        """See SplitRule."""
        placed = place_regions(self.regions, lengths)
        for contig, length in lengths.items():
            pieces = placed.get(contig, [])
            yield contig, _filled(pieces, length) if self.rest == "train" else pieces


def parse_split(text: str) -> SplitRule:
    """Read a split rule; the module's docstring lists them.

    Raises:
        ConfigError: an unknown rule or key, a key that is missing, or a value out of range.
        ArtifactError: a BED file is missing or cannot be read.
        FormatError: a line of a BED file is no region of a part.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in _PARSERS:
        raise ConfigError(
            f"no split rule {kind!r}; have {', '.join(_PARSERS)}.{did_you_mean(kind, _PARSERS)}"
        )
    return _PARSERS[kind](text, _Options(text, rest))


class _Options:
    """The ``key=value`` list of a rule, each value taken once."""

    def __init__(self, text: str, rest: str) -> None:
        self.text = text
        self.plain: list[str] = []  # only of a rule that is named after files
        self.values: dict[str, list[str]] = {}
        for item in filter(None, rest.split(",")):
            key, equals, value = item.partition("=")
            if text.strip().startswith("bed:") and (not equals or "/" in key):
                self.plain.append(item.strip())
                continue
            if not equals or not value:
                raise ConfigError(f"split {text!r}: expected key=value, got {item!r}")
            self.values.setdefault(key.strip(), []).append(value.strip())

    def take_all(self, key: str) -> tuple[str, ...]:
        return tuple(self.values.pop(key, ()))

    def take_int(self, key: str, *, at_least: int, default: int | None = None) -> int:
        given = self.values.pop(key, [])
        if not given and default is not None:
            return default
        if len(given) != 1:
            raise ConfigError(f"split {self.text!r}: expected {key}=NUMBER once, got {len(given)}")
        return self._number(key, given[0], at_least)

    def take_index(self, key: str, *, below: int, default: int | None) -> int | None:
        if key not in self.values:
            return default
        if self.values[key] == ["none"]:
            del self.values[key]
            return None
        index = self.take_int(key, at_least=0)
        if index >= below:
            raise ConfigError(f"split {self.text!r}: {key}={index} must be below every={below}")
        return index

    def done(self, known: tuple[str, ...]) -> None:
        for key in self.values:
            raise ConfigError(
                f"split {self.text!r}: no option {key!r}; have {', '.join(known) or 'none'}."
                f"{did_you_mean(key, known)}"
            )

    def _number(self, key: str, value: str, at_least: int) -> int:
        digits = value.replace("_", "")
        if not digits.isascii() or not digits.isdigit() or int(digits) < at_least:
            raise ConfigError(
                f"split {self.text!r}: {key} must be a whole number >= {at_least}, got {value!r}"
            )
        return int(digits)


def _parse_none(text: str, options: _Options) -> SplitRule:
    options.done(())
    return NoSplit()


def _parse_contig(text: str, options: _Options) -> SplitRule:
    rule = ContigSplit(options.take_all("valid"), options.take_all("test"))
    options.done(("valid", "test"))
    if not rule.held_out():
        raise ConfigError(f"split {text!r}: expected valid=CONTIG or test=CONTIG")
    named = [*rule.valid, *rule.test]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise ConfigError(f"split {text!r}: contig {twice[0]!r} is named twice; name it once")
    return rule


def _parse_blocks(text: str, options: _Options) -> SplitRule:
    every = options.take_int("every", at_least=2)
    rule = BlockSplit(
        size=options.take_int("size", at_least=1),
        every=every,
        gap=options.take_int("gap", at_least=0, default=0),
        valid=options.take_index("valid", below=every, default=None),
        test=options.take_index("test", below=every, default=every - 1),
    )
    options.done(("size", "every", "gap", "valid", "test"))
    if rule.valid is not None and rule.valid == rule.test:
        raise ConfigError(
            f"split {text!r}: valid and test are both block {rule.test} of every {every}; "
            "give them different numbers, or test=none"
        )
    if rule.valid is None and rule.test is None:
        raise ConfigError(f"split {text!r} holds nothing out; write 'none' instead")
    return rule


def _parse_halves(text: str, options: _Options) -> SplitRule:
    rule = HalvesSplit(gap=options.take_int("gap", at_least=0, default=0))
    options.done(("gap",))
    return rule


def _parse_bed(text: str, options: _Options) -> SplitRule:
    files: list[tuple[str | None, str]] = [(None, path) for path in options.plain]
    for part in PARTS:
        files += [(part, path) for path in options.take_all(part)]
    rest = options.take_all("rest") or ("none",)
    gap = options.take_int("gap", at_least=0, default=0)
    stated = options.take_all("sha256")
    options.done((*PARTS, "rest", "gap", "sha256"))
    if not files or len({part is None for part, _ in files}) > 1 or len(options.plain) > 1:
        raise ConfigError(
            f"split {text!r}: expected bed:FILE with the parts in column 4, or "
            "bed:train=FILE,valid=FILE,test=FILE; a path must hold no comma"
        )
    if len(rest) != 1 or rest[0] not in ("none", "train"):
        raise ConfigError(f"split {text!r}: rest must be none or train, got {', '.join(rest)}")
    digest = digest_of(files)
    if stated and stated != (digest,):
        raise ConfigError(
            f"split {text!r}: the BED files have changed (sha256 {digest[:12]}...); bring the "
            "old ones back, or tokenize the genome again with the new ones"
        )
    rule = BedSplit(tuple(files), rest[0], gap, digest, read_regions(files))
    if not rule.held_out():
        raise ConfigError(f"split {text!r} holds nothing out; write 'none' instead")
    return rule


_PARSERS: dict[str, Callable[[str, _Options], SplitRule]] = {
    "none": _parse_none,
    "contig": _parse_contig,
    "blocks": _parse_blocks,
    "halves": _parse_halves,
    "bed": _parse_bed,
}


def _merge(pieces: list[Piece]) -> list[Piece]:
    """Join pieces of one part that touch and drop empty ones."""
    merged: list[Piece] = []
    for start, end, part in pieces:
        if start == end:
            continue
        if merged and merged[-1][1:] == (start, part):
            merged[-1] = (merged[-1][0], end, part)
        else:
            merged.append((start, end, part))
    return merged


def _filled(pieces: list[Piece], length: int) -> list[Piece]:
    """Pieces of a contig with its holes as train."""
    filled: list[Piece] = []
    reached = 0
    for start, end, part in [*pieces, (length, length, "train")]:
        filled += [(reached, start, "train"), (start, end, part)]
        reached = end
    return filled


def _cut_gaps(pieces: list[Piece], gap: int) -> Iterator[Piece]:
    """Drop `gap` bases on each side of every border; a piece that is all gap vanishes.

    Against the nearest piece of another part, not the neighbour, which may be shorter than the gap.
    A hole between two pieces is a gap as well.
    """
    if gap == 0 or len(pieces) < 2:
        yield from pieces
        return
    before = _nearest_others([(part, end) for _, end, part in pieces])
    after = _nearest_others([(part, start) for start, _, part in reversed(pieces)])[::-1]
    for (start, end, part), left, right in zip(pieces, before, after, strict=True):
        first = start if left is None else start + max(0, gap - (start - left) // 2)
        last = end if right is None else end - max(0, gap - (right - end) // 2)
        if first < last:
            yield first, last, part


def _nearest_others(borders: list[tuple[str, int]]) -> list[int | None]:
    """Of each piece, given as its part and a border, the border of the last of another part."""
    found: list[int | None] = []
    same, other = None, None  # the last piece, and the last one of another part than that
    for piece in borders:
        if same is not None and same[0] != piece[0]:
            other = same
        same = piece
        found.append(None if other is None else other[1])
    return found
