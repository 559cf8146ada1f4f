"""The two haplotypes of a sample: windows with all of its phased variants in them.

A window is cut out of the whole haplotype of a contig. The rule of `dnassm.data.centre` says which
base of the genome is its base ``length // 2``; the rest follows on the haplotype to both sides, so
that an indel moves what lies behind it, seen from there. Where that base is deleted, the next one
in reading direction takes its place.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dnassm.data.alphabet import ASCII_TO_CODE, PAD, SOFT_MASK, Codes, N, reverse_complement
from dnassm.data.centre import GenomeReader, centred_start
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.variant_windows import OVER_THE_END, Ends, check_ends, check_ref
from dnassm.data.variants import Variant, alt_refusal, ref_refusal
from dnassm.data.vcf import VcfReader, VcfRecord
from dnassm.errors import ConfigError, FormatError
from dnassm.registry import did_you_mean

UNPHASED = "heterozygous and not phased"
NO_GENOTYPE = "without a genotype"
PLOIDY = "with more than two alleles"
OVERLAPPING = "overlapping an earlier one on the same haplotype"
SEVERAL_SETS = "window with heterozygous variants of several phase sets"

_GENOTYPE = re.compile(r"[|/]?(\d{1,9}|\.)([|/](\d{1,9}|\.))*", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class PhasedVariants:
    """What one sample carries, and on which of its two haplotypes."""

    sample: str
    variants: list[Variant]
    """In the order of the file."""
    carriers: npt.NDArray[np.uint8]
    """(n,) 1: on the first haplotype, 2: on the second, 3: on both."""
    phase_sets: tuple[str, ...]
    """(n,) FORMAT/PS; heterozygous variants with one value are phased with one another."""
    refused: Mapping[str, int]
    """Why records, or alleles that the sample carries, are in no haplotype -> how many: UNPHASED,
    NO_GENOTYPE, PLOIDY, or a kind of `dnassm.data.vcf.REFUSED_KINDS`."""
    contigs: Mapping[str, int | None]
    """Name -> length, as far as the header says."""

    def summary(self) -> str:
        """Say in one line how many variants the sample carries, and what was refused."""
        text = f"{self.sample}: {len(self.variants):,} variants on its haplotypes"
        kinds = [f"{count:,} {kind}" for kind, count in self.refused.items()]
        return f"{text}; refused: {', '.join(kinds)}" if kinds else text

    def take(self, indices: Iterable[int]) -> PhasedVariants:
        """Some of the variants, for example those whose REF is what the genome has."""
        kept = list(indices)
        return dataclasses.replace(
            self,
            variants=[self.variants[i] for i in kept],
            carriers=self.carriers[kept],
            phase_sets=tuple(self.phase_sets[i] for i in kept),
        )


@dataclasses.dataclass(frozen=True, slots=True)
class HaplotypeWindows:
    """Windows of both haplotypes around the intervals that are kept."""

    codes: Codes
    """(n, 2, L) store codes; inserted bases have the soft mask of the first base of REF."""
    applied: npt.NDArray[np.int64]
    """(n, 2) how many variants each window holds."""
    kept: npt.NDArray[np.int64]
    """(n,) which of the intervals each row belongs to."""
    refused: dict[str, int]
    """Why intervals have no windows: OVER_THE_END, SEVERAL_SETS -> how many."""


def read_phased(path: Path | str, *, sample: str | None = None) -> PhasedVariants:
    """Read what a sample of a VCF or BCF carries on its two haplotypes.

    ``0|1`` is on the second, ``1/1`` on both, phased or not; so is a haploid ``1``, as on the X of
    a male. A heterozygous genotype that is not phased belongs to neither and is counted. A ``*`` of
    a haplotype says that another record deletes it there: nothing is to be done, and it is counted.

    Args:
        path: the file.
        sample: may be left out where the file has one only.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        ConfigError: there is no such sample, or several to choose from.
        FormatError: no VCF, or a line that is no record; names file and line.
    """
    reader = VcfReader(path)
    name = _the_sample(reader, sample)
    column = 1 + reader.samples.index(name)
    variants: list[Variant] = []
    carriers: list[int] = []
    phase_sets: list[str] = []
    refused: Counter[str] = Counter()
    for record in reader:
        genotype = _genotype(record, column, reader.path)
        if isinstance(genotype, str):
            refused[genotype] += 1
            continue
        for allele, copies in genotype.copies.items():
            wrong_ref = ref_refusal(record)
            if kind := wrong_ref or alt_refusal(allele, reader.path, record.line):
                refused[kind] += 1
                continue
            variants.append(Variant(record.contig, record.position, record.ref, allele, record.id))
            carriers.append(copies)
            phase_sets.append(genotype.phase_set)
    return PhasedVariants(
        name,
        variants,
        np.array(carriers, np.uint8),
        tuple(phase_sets),
        dict(refused),
        reader.contigs,
    )


class HaplotypeWindower:
    """Makes windows of both haplotypes of a sample.

    Of two variants that change the same bases of a haplotype, or insert at the same place, the
    first in the order of the genome is applied, as bcftools consensus does; the other is named in
    `overlapping`.

    Args:
        store: the genome.
        phased: in coordinates of the store and with REF as the genome has it, see
            `dnassm.data.variant_reference`.
        length: L, bases of a window.
        ends: what becomes of windows over the end of a haplotype.

    Raises:
        ConfigError: length is below 2, or `ends` is no such name.
        GenomeError: no such contig, or REF is not what the genome has.
    """

    def __init__(
        self, store: Genome, phased: PhasedVariants, length: int, *, ends: Ends = "n"
    ) -> None:
        check_ends(length, ends)
        self.length = length
        self.ends = ends
        self.overlapping: tuple[tuple[Variant, Variant], ...]
        """(variant that is left out, earlier one that it overlaps) of either haplotype."""
        self._reader = GenomeReader(store, fill=PAD if ends == "pad" else N)
        self._haplotypes, self.overlapping = _both(phased, self._reader)

    def __call__(self, intervals: Sequence[Interval]) -> HaplotypeWindows:
        """Make the windows of both haplotypes around some intervals, read on their strands.

        Raises:
            GenomeError: no such contig.
        """
        kept: list[int] = []
        applied: list[tuple[int, int]] = []
        refused: Counter[str] = Counter()
        codes = np.empty((len(intervals), 2, self.length), dtype=np.uint8)
        for index, interval in enumerate(intervals):
            size = self._reader.store.contig(interval.contig).length
            first, second = (self._haplotype(which, interval, size) for which in (0, 1))
            if why := self._refusal(first, second):
                refused[why] += 1
                continue
            for row, part in zip(codes[len(kept)], (first, second), strict=True):
                np.concatenate([self._codes(interval.contig, p) for p in part.pieces], out=row)
                if interval.strand == "-":
                    row[:] = reverse_complement(row)
            applied.append((len(first.edits), len(second.edits)))
            kept.append(index)
        counts = np.array(applied, np.int64).reshape(-1, 2)
        return HaplotypeWindows(codes[: len(kept)], counts, np.array(kept, np.int64), dict(refused))

    def _haplotype(self, which: int, interval: Interval, size: int) -> _Cut:
        haplotype = self._haplotypes[which].get(interval.contig, _Haplotype([]))
        middle = self.length // 2
        if interval.strand == "-":
            middle = self.length - 1 - middle
        base = centred_start(interval, self.length) + middle
        start = haplotype.place_of(base, forward=interval.strand == "+") - middle
        return haplotype.cut(start, start + self.length, size)

    def _refusal(self, first: _Cut, second: _Cut) -> str | None:
        if self.ends == "drop" and (first.over_the_end or second.over_the_end):
            return OVER_THE_END
        sets = {edit.phase_set for edit in (*first.edits, *second.edits) if edit.heterozygous}
        return SEVERAL_SETS if len(sets) > 1 else None

    def _codes(self, contig: str, piece: tuple[int, int] | Codes) -> Codes:
        return self._reader.codes(contig, *piece) if isinstance(piece, tuple) else piece


class _Genotype(NamedTuple):
    copies: Mapping[str, int]
    """Alternative allele -> 1, 2 or 3, as `PhasedVariants.carriers`."""
    phase_set: str


class _Edit(NamedTuple):
    """Bases ``[start, end)`` of a contig that a haplotype replaces."""

    start: int
    end: int
    codes: Codes
    heterozygous: bool
    phase_set: str
    variant: Variant


class _Cut(NamedTuple):
    """What a window of a haplotype is made of."""

    pieces: list[tuple[int, int] | Codes]
    """Stretches of the genome, and bases that it has not."""
    edits: list[_Edit]
    over_the_end: bool


class _Haplotype:
    """A contig with its edits, in their order and without overlaps."""

    def __init__(self, edits: list[_Edit]) -> None:
        self._edits = edits
        self._starts = [edit.start for edit in edits]
        self._begins: list[int] = []  # of each edit, counted on the haplotype
        self._afters: list[int] = []
        shift = 0
        for edit in edits:
            self._begins.append(edit.start + shift)
            self._afters.append(edit.start + shift + edit.codes.size)
            shift += edit.codes.size - (edit.end - edit.start)
        self._shift = shift

    def place_of(self, base: int, *, forward: bool) -> int:
        """Where on the haplotype a base of the genome lies; if it is deleted, the next one."""
        before = bisect.bisect_right(self._starts, base)
        if before == 0:
            return base
        edit = self._edits[before - 1]
        if base >= edit.end:
            return self._afters[before - 1] + base - edit.end
        if forward:
            return self._begins[before - 1] + min(base - edit.start, edit.codes.size)
        return self._afters[before - 1] - 1 - min(edit.end - 1 - base, edit.codes.size)

    def cut(self, start: int, end: int, size: int) -> _Cut:
        """The stretch ``[start, end)`` of the haplotype of a contig of `size` bases."""
        pieces: list[tuple[int, int] | Codes] = []
        over = start < 0 or end > size + self._shift
        first = at = bisect.bisect_right(self._afters, start)
        while start < end:
            base = self._edits[at - 1].end - self._afters[at - 1] if at else 0  # minus its place
            stop = min(end, self._begins[at]) if at < len(self._edits) else end
            if start < stop:
                pieces.append((start + base, stop + base))
                start = stop
            else:
                begin = self._begins[at]
                pieces.append(self._edits[at].codes[start - begin : end - begin])
                start = self._afters[at]
                at += 1
        return _Cut(pieces, self._edits[first:at], over)


def _the_sample(reader: VcfReader, sample: str | None) -> str:
    names = reader.samples
    if sample is None and len(names) == 1:
        return names[0]
    if sample is None or sample not in names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "no sample"
        asked = "one sample to be named" if sample is None else f"a sample {sample!r}"
        now = "name one of its samples (--sample)"
        if not names:
            now = "take a file with genotypes, or score its variants one by one, without --sample"
        raise ConfigError(
            f"{reader.path}: expected {asked}, the file has {shown}; {now}."
            f"{did_you_mean(sample or '', names)}"
        )
    return sample


def _genotype(record: VcfRecord, column: int, path: Path) -> _Genotype | str:
    """The alternatives that the sample carries, or why the record says nothing of them."""
    where = f"{path}:{record.line}"
    columns = record.samples.split("\t")
    keys = columns[0].split(":")
    values = columns[column].split(":") if column < len(columns) else [""]
    fields = dict(zip(keys, values, strict=False))  # what is missing at the end may be left out
    text = fields.get("GT", ".")
    if not _GENOTYPE.fullmatch(text):
        raise FormatError(f"{where}: GT must be like 0|1, got {text[:40]!r}")
    alleles = re.findall(r"\d+|\.", text)
    if "." in alleles:
        return NO_GENOTYPE
    if len(alleles) > 2:
        return PLOIDY
    numbers = [int(allele) for allele in (alleles * 2)[:2]]
    if max(numbers) > len(record.alts):
        raise FormatError(
            f"{where}: GT {text[:40]} names allele {max(numbers)}, the record has "
            f"{len(record.alts)} ALT"
        )
    if numbers[0] != numbers[1] and "/" in text:
        return UNPHASED
    copies: Counter[str] = Counter()
    for copy, number in zip((1, 2), numbers, strict=True):
        if number:
            copies[record.alts[number - 1]] += copy
    return _Genotype(copies, fields.get("PS", "."))


def _both(
    phased: PhasedVariants, reader: GenomeReader
) -> tuple[tuple[dict[str, _Haplotype], ...], tuple[tuple[Variant, Variant], ...]]:
    """Both haplotypes by contig, and the variants that are left out of them."""
    edits: tuple[dict[str, list[_Edit]], ...] = ({}, {})
    for variant, copies, phase_set in zip(
        phased.variants, phased.carriers.tolist(), phased.phase_sets, strict=True
    ):
        check_ref(variant, reader)
        edit = _edit(variant, reader, phase_set, heterozygous=copies != 3)
        for which, own in enumerate(edits):
            if copies >> which & 1:
                own.setdefault(variant.contig, []).append(edit)
    left_out: dict[int, tuple[Variant, Variant]] = {}
    haplotypes = tuple(
        {contig: _Haplotype(list(_apart(found, left_out))) for contig, found in own.items()}
        for own in edits
    )
    return haplotypes, tuple(left_out.values())


def _edit(variant: Variant, reader: GenomeReader, phase_set: str, *, heterozygous: bool) -> _Edit:
    position, ref, alt = _change(variant)
    mask = reader.codes(variant.contig, variant.position, variant.position + 1)[0] & SOFT_MASK
    codes = ASCII_TO_CODE[np.frombuffer(alt.encode("ascii"), dtype=np.uint8)] | mask
    return _Edit(position, position + len(ref), codes, heterozygous, phase_set, variant)


def _change(variant: Variant) -> tuple[int, str, str]:
    """Position, REF and ALT without their common beginning, then without their common end."""
    ref, alt = variant.ref, variant.alt
    same = _common(ref, alt)
    ref, alt = ref[same:], alt[same:]
    behind = _common(ref[::-1], alt[::-1])
    return variant.position + same, ref[: len(ref) - behind], alt[: len(alt) - behind]


def _common(one: str, other: str) -> int:
    """How many letters both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _apart(edits: list[_Edit], left_out: dict[int, tuple[Variant, Variant]]) -> Iterator[_Edit]:
    """Edits in their order, without those that overlap one before, which go to `left_out`."""
    last: _Edit | None = None
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        if last and (edit.start < last.end or edit[:2] == last[:2]):
            left_out.setdefault(id(edit.variant), (edit.variant, last.variant))
            continue
        last = edit
        yield edit
