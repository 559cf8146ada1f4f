"""Contig aliases: which contig of a genome a file means by a name (chr1 = 1 = NC_000001.11).

The rule, in this order; nothing else is tried, and two answers are an error:

1. A name that the caller gives explicitly.
2. The same name, letter by letter.
3. The same chromosome: a prefix "chr" is dropped, whatever its case; M, MT, Mito, MtDNA and
   mitochondrion are one; the RefSeq accessions NC_000001 to NC_000024 and NC_012920 are the human
   chromosomes 1 to 22, X, Y and MT, whatever their version. So "chrIV" is "IV". Accessions of
   other species are names like any other: a mouse's chromosome 1 is not that of a human genome.
4. Roman numerals as numbers, only when all the names of one side, without the mitochondrion and
   plasmids ("2-micron"), are exactly I to n with n >= 3, and all of the other side 1 to n at most.
   "X" of an animal is never 10: a genome with I, II, III, IV, V, X has a gap.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

from dnassm.data.genome import Genome
from dnassm.errors import GenomeError

_MITOCHONDRION = frozenset(("m", "mt", "mito", "mtdna", "mitochondrion"))
_PLASMID = frozenset(("2-micron", "2micron", "2u"))
_ACCESSION = re.compile(r"NC_(\d{6})(?:\.\d+)?")
_ROMAN_DIGITS = tuple(
    zip((50, 40, 10, 9, 5, 4, 1), ("L", "XL", "X", "IX", "V", "IV", "I"), strict=True)
)
_HUMAN_ACCESSIONS = {i: str(i) for i in range(1, 23)} | {23: "X", 24: "Y", 12920: "MT"}


@dataclasses.dataclass(frozen=True, slots=True)
class ContigMatch:
    """What the names in a file mean in a genome."""

    names: Mapping[str, str]
    """Name in the file -> contig of the store."""
    missing: tuple[str, ...]
    """Names in the file that the store has no contig for."""


def match_contigs(
    names: Iterable[str],
    store: Genome,
    *,
    explicit: Mapping[str, str] | None = None,
    lengths: Mapping[str, int | None] | None = None,
    source: str = "the file",
) -> ContigMatch:
    """Find the contig of a store that each name in a file means, by the rule of this module.

    Args:
        names: of the file, in any order.
        store: the genome.
        explicit: name in the file -> contig of the store, above every rule.
        lengths: of the contigs, where the file states them: they must be those of the store.
            Contigs in `explicit` are not compared, since they may be a part of a chromosome.
        source: what the names come from, for error messages.

    Raises:
        GenomeError: no name has a contig, two names mean one contig, one name could mean two
            contigs, or a stated length is another than the store's.
    """
    wanted = list(dict.fromkeys(names))
    explicit = explicit or {}
    found = resolve_contigs(wanted, store, explicit=explicit, source=source)
    if wanted and not found:
        raise GenomeError(
            f"{source}: no contig of it is in {store.path}: it has {_first(wanted)}; the genome "
            f"has {_first(store.lengths)}; give the right genome, or say which name means which"
        )
    compared = {name: contig for name, contig in found.items() if name not in explicit}
    _check_lengths(compared, lengths or {}, store, source)
    return ContigMatch(found, tuple(name for name in wanted if name not in found))


def resolve_contigs(
    names: Iterable[str],
    genome: Genome,
    *,
    explicit: Mapping[str, str] | None = None,
    source: str = "the file",
) -> dict[str, str]:
    """Contig of the genome that each name means, by the rule of this module; others are left out.

    Raises:
        GenomeError: two names mean one contig, or one name could mean two contigs.
    """
    wanted = list(dict.fromkeys(names))
    explicit = explicit or {}
    for name in explicit.values():
        genome.contig(name)
    found = {name: explicit[name] for name in wanted if name in explicit}
    rest = [name for name in wanted if name not in found]
    found |= {name: name for name in rest if name in genome.lengths}
    rest = [name for name in rest if name not in found]
    if rest:
        found |= _by_key(rest, [n for n in wanted if n not in explicit], genome, source)
    _check_one_to_one(found, genome, source)
    return found


def chromosome_key(name: str) -> str:
    """Reduce a name to its chromosome by point 3 of the rule of this module.

    >>> [chromosome_key(n) for n in ("chr1", "NC_000001.11", "Chr1", "1", "chrM", "MT", "chrIV")]
    ['1', '1', '1', '1', 'MT', 'MT', 'IV']
    """
    accession = _ACCESSION.fullmatch(name)
    if accession:
        return _HUMAN_ACCESSIONS.get(int(accession[1]), name)
    bare = name[3:] if name[:3].lower() == "chr" and len(name) > 3 else name
    return "MT" if bare.lower() in _MITOCHONDRION else bare


def _by_key(rest: list[str], wanted: list[str], store: Genome, source: str) -> dict[str, str]:
    """Points 3 and 4 of the rule for the names `rest` of all that the rule decides on."""
    theirs = {name: chromosome_key(name) for name in wanted}
    ours = {name: chromosome_key(name) for name in store.lengths}
    if _is_roman(ours.values()) and _is_arabic(theirs.values(), len(_numbered(ours.values()))):
        ours = {name: _arabic(key) for name, key in ours.items()}
    elif _is_roman(theirs.values()) and _is_arabic(ours.values(), len(_numbered(theirs.values()))):
        theirs = {name: _arabic(key) for name, key in theirs.items()}
    contigs: dict[str, list[str]] = {}
    for name, key in ours.items():
        contigs.setdefault(key, []).append(name)
    found = {}
    for name in rest:
        answers = contigs.get(theirs[name], [])
        if len(answers) > 1:
            raise GenomeError(
                f"{source}: contig {name!r} could be {' or '.join(map(repr, answers))} of "
                f"{store.path}; say which"
            )
        if answers:
            found[name] = answers[0]
    return found


def _numbered(keys: Iterable[str]) -> set[str]:
    return {key for key in keys if key != "MT" and key.lower() not in _PLASMID}


def _is_roman(keys: Iterable[str]) -> bool:
    numbered = _numbered(keys)
    return len(numbered) >= 3 and numbered == {_roman(i + 1) for i in range(len(numbered))}


def _is_arabic(keys: Iterable[str], most: int) -> bool:
    numbered = _numbered(keys)
    return bool(numbered) and numbered <= {str(i + 1) for i in range(most)}


def _roman(number: int) -> str:
    text = ""
    for value, letters in _ROMAN_DIGITS:
        text += letters * (number // value)
        number %= value
    return text


def _arabic(key: str) -> str:
    return next((str(i) for i in range(1, 100) if _roman(i) == key), key)


def _check_one_to_one(found: Mapping[str, str], store: Genome, source: str) -> None:
    names: dict[str, str] = {}
    for name, contig in found.items():
        if contig in names:
            raise GenomeError(
                f"{source}: {names[contig]!r} and {name!r} both mean contig {contig!r} of "
                f"{store.path}; use one name, or say which is which"
            )
        names[contig] = name


def _check_lengths(
    found: Mapping[str, str], lengths: Mapping[str, int | None], store: Genome, source: str
) -> None:
    for name, contig in found.items():
        stated = lengths.get(name)
        if stated is not None and stated != store.lengths[contig]:
            raise GenomeError(
                f"{source}: contig {name!r} is stated to have {stated:,} bp, {contig!r} of "
                f"{store.path} has {store.lengths[contig]:,}; is this the right assembly?"
            )


def _first(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
