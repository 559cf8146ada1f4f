"""Simulate genomes whose every gene, motif, repeat and variant effect is known.

Bacterial: genes on both strands with the codon usage of E. coli, in operons behind a promoter (-35
and -10 boxes) and ribosome binding sites, ended by terminators; between them background with a
composition of its own, repeats (soft-masked) and runs of N.

Eukaryotic: genes of exons and introns with donor, branch point, pyrimidine tract and acceptor,
untranslated regions, islands of CpG or a TATA box; isochores of different GC with CpG decayed
outside of the islands; families of interspersed repeats with their age and tandem repeats
(soft-masked), also inside introns; runs of N.

The files are ordinary FASTA, GFF3, BED and VCF, so that the whole line runs on them as on a real
genome, and the truth is known. Related species and signals over a long distance are in
`dnassm.data.simulation.species` and `dnassm.data.simulation.long_range`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dnassm.artifact import staged_folder
from dnassm.data.alphabet import LETTERS, decode
from dnassm.data.annotation import Feature
from dnassm.data.interval import Interval
from dnassm.data.simulation import eukaryote_effects, eukaryote_layout
from dnassm.data.simulation.effects import Kinds, plant_effects
from dnassm.data.simulation.eukaryote import EukaryoteMaker, family_fasta
from dnassm.data.simulation.files import bed_text, fasta_text
from dnassm.data.simulation.layout import lay_out
from dnassm.data.simulation.parts import Part, PartMaker
from dnassm.data.simulation.windows import Window, cut_windows
from dnassm.data.variants import Variant, write_vcf
from dnassm.errors import ConfigError
from dnassm.provenance import write_run_json

KINDS = ("bacterial", "eukaryotic")
"""Kinds of single genomes."""
LEAST_CONTIG_BP = {"bacterial": 20_000, "eukaryotic": eukaryote_layout.LEAST_CONTIG_BP}
_BP_PER_VARIANT = 2_500
_LEAST_VARIANTS = 10
_STRANDLESS = ("gap", "CpG_island")
_INFO_OF = {"eukaryotic": eukaryote_effects.INFO}
_INFO_OF["bacterial"] = {
    "EFFECT": "motif_breaking or silent",
    "SITE": "minus_10, minus_35, rbs, start_codon or nonsense; synonymous or background",
    "OF": "gene or promoter that the base belongs to",
}


@dataclasses.dataclass(frozen=True, slots=True)
class SimulatedGenome:
    """A genome and the truth about it.

    Attributes:
        contigs: name -> sequence, soft-masked bases in lower case.
        features: by position; genes, CDS, promoters with their boxes, binding sites, terminators,
            repeats and gaps; of a eukaryotic genome transcripts, exons, splice sites and more.
        variants: in the second half of every contig, half of them motif-breaking, half silent
            (INFO keys EFFECT, SITE and OF).
        windows: labelled coding and intergenic, or donor, acceptor and neither; first half of every
            contig train, second half test.
        seed: that it was made from.
        kind: one of `KINDS`.
        more: name of a further file -> its text: consensus sequences, isochores.
    """

    contigs: Mapping[str, str]
    features: tuple[Feature, ...]
    variants: tuple[Variant, ...]
    windows: tuple[Window, ...]
    seed: int
    kind: str = "bacterial"
    more: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Counts of everything that was planted, as JSON values."""
        types = Counter(feature.type for feature in self.features)
        coding = sum(len(f.interval) for f in self.features if f.type == "CDS")
        bases = sum(map(len, self.contigs.values()))
        windows = Counter(f"{window.split} {window.label}" for window in self.windows)
        variants = Counter(f"{v.info['EFFECT']} {v.info['SITE']}" for v in self.variants)
        return {
            "bases": bases,
            "contigs": len(self.contigs),
            "coding_fraction": round(coding / bases, 4),
            "features": dict(sorted(types.items())),
            "windows": dict(sorted(windows.items())),
            "variants": dict(sorted(variants.items())),
        }


def simulate_genome(
    *, length: int, seed: int, contigs: int = 1, kind: str = "bacterial"
) -> SimulatedGenome:
    """Simulate a genome; the same arguments give the same genome.

    Args:
        length: bases of all contigs together; each contig has its even share.
        seed: 0 or more.
        contigs: number of contigs, of at least 20,000 bases each; 100,000 of a eukaryotic genome.
        kind: one of `KINDS`.

    Raises:
        ConfigError: an argument out of range.
    """
    _check(length, seed, contigs, kind)
    rng = np.random.default_rng(seed)
    sizes = [length // contigs + (index < length % contigs) for index in range(contigs)]
    names = [f"sim{index + 1}" for index in range(contigs)]
    if kind == "eukaryotic":
        return _simulate_eukaryote(dict(zip(names, sizes, strict=True)), rng, seed)
    maker = PartMaker(rng)
    parts = {name: lay_out(maker, size) for name, size in zip(names, sizes, strict=True)}
    return SimulatedGenome(
        contigs={name: decode(part.codes) for name, part in parts.items()},
        features=tuple(f for name, part in parts.items() for f in _features(name, part)),
        variants=tuple(_variants(parts, rng)),
        windows=tuple(w for name, part in parts.items() for w in cut_windows(name, part, rng)),
        seed=seed,
    )


def _simulate_eukaryote(
    sizes: Mapping[str, int], rng: np.random.Generator, seed: int
) -> SimulatedGenome:
    maker = EukaryoteMaker(rng)
    parts = {name: eukaryote_layout.lay_out(maker, size) for name, size in sizes.items()}
    windows = {
        name: eukaryote_layout.splice_windows(name, part, rng) for name, part in parts.items()
    }
    isochores = [
        f"{name}\t{mark.start}\t{mark.end}\t{dict(mark.attributes)['family']}"
        f"\t{1000 * float(dict(mark.attributes)['gc']):.0f}"
        for name, part in parts.items()
        for mark in part.marks
        if mark.type == "isochore"
    ]
    return SimulatedGenome(
        contigs={name: decode(part.codes) for name, part in parts.items()},
        features=tuple(f for name, part in parts.items() for f in _features(name, part)),
        variants=tuple(_variants(parts, rng, kinds=eukaryote_effects.KINDS)),
        windows=tuple(window for each in windows.values() for window in each),
        seed=seed,
        kind="eukaryotic",
        more={
            "repeats.fa": family_fasta(maker),
            "isochores.bed": "\n".join(isochores) + "\n",
        },
    )


def write_simulation(genome: SimulatedGenome, out: Path, *, force: bool = False) -> None:
    """Write genome.fa, genes.gff3, labels.bed, variants.vcf and run.json to the folder `out`.

    Of a eukaryotic genome also repeats.fa (consensus of each family) and isochores.bed.

    Raises:
        ArtifactError: `out` is taken, or cannot be written; nothing half-written is left.
    """
    lengths = {name: len(sequence) for name, sequence in genome.contigs.items()}
    config = {"kind": genome.kind, "length": sum(lengths.values()), "contigs": len(lengths)}
    note = f"simulated {genome.kind} genome, seed {genome.seed}"
    with staged_folder(out, force=force) as folder:
        (folder / "genome.fa").write_text(fasta_text(genome.contigs, note), encoding="ascii")
        (folder / "genes.gff3").write_text(gff_text(genome), encoding="ascii")
        (folder / "labels.bed").write_text(_bed(genome), encoding="ascii")
        write_vcf(
            folder / "variants.vcf", genome.variants, contigs=lengths, info=_INFO_OF[genome.kind]
        )
        for name, text in genome.more.items():
            (folder / name).write_text(text, encoding="ascii")
        write_run_json(
            folder,
            command="simulate",
            config={**config, "truth": genome.summary()},
            seed=genome.seed,
            inputs={},
        )


def _check(length: int, seed: int, contigs: int, kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"simulate: no kind {kind!r} of genome; have {', '.join(KINDS)}")
    if seed < 0:
        raise ConfigError(f"simulate: seed must be 0 or more, got {seed}")
    if contigs < 1:
        raise ConfigError(f"simulate: expected at least 1 contig, got {contigs}")
    least = LEAST_CONTIG_BP[kind]
    if length < least * contigs:
        raise ConfigError(
            f"simulate: length must be at least {least:,} bases for each contig "
            f"({least * contigs:,} for {contigs}), got {length:,}"
        )


def _features(contig: str, part: Part) -> list[Feature]:
    features = [
        Feature(
            Interval(contig, mark.start, mark.end, mark.strand), mark.type, dict(mark.attributes)
        )
        for mark in part.marks
        if eukaryote_layout.is_shown(mark)
    ]
    # A parent stands before its children: the longer first where two start together.
    return sorted(features, key=lambda f: (f.interval.start, -f.interval.end))


def _variants(
    parts: Mapping[str, Part], rng: np.random.Generator, *, kinds: Kinds | None = None
) -> list[Variant]:
    variants: list[Variant] = []
    for contig, part in parts.items():
        share = max(len(part) // _BP_PER_VARIANT, _LEAST_VARIANTS)
        half = len(part) // 2
        for found in plant_effects(part, half, len(part), per_effect=share, rng=rng, kinds=kinds):
            info = {"EFFECT": found.effect, "SITE": found.site}
            if found.of:
                info["OF"] = found.of
            name = f"var{len(variants) + 1:05d}"
            alleles = LETTERS[found.ref], LETTERS[found.alt]
            variants.append(Variant(contig, found.position, *alleles, name, info))
    return variants


def gff_text(genome: SimulatedGenome) -> str:
    """GFF3 of every feature of a genome."""
    lines = ["##gff-version 3"]
    lines += [f"##sequence-region {name} 1 {len(s)}" for name, s in genome.contigs.items()]
    for feature in genome.features:
        where = feature.interval
        attributes = dict(feature.attributes)
        phase = attributes.pop("phase", "0") if feature.type == "CDS" else "."
        fields = ";".join(f"{key}={value}" for key, value in attributes.items()) or "."
        strand = "." if feature.type in _STRANDLESS else where.strand
        place = (where.contig, "dnassm", feature.type, where.start + 1, where.end)
        lines.append("\t".join(map(str, (*place, ".", strand, phase, fields))))
    return "\n".join(lines) + "\n"


def _bed(genome: SimulatedGenome) -> str:
    rows = []
    for number, window in enumerate(genome.windows, start=1):
        where = window.interval
        strand = "." if genome.kind == "bacterial" else where.strand
        row = (where.contig, where.start, where.end, f"window{number:05d}", 0, strand)
        rows.append((*row, window.label, window.split))
    return bed_text(rows)
