"""Related species: an ancestor that evolves along a tree, with its true alignment.

The ancestor is a eukaryotic genome. Its coding exons and some stretches between genes are
conserved: they change ten times slower and have no indels. Everything else is neutral.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dnassm.artifact import staged_folder
from dnassm.data.alphabet import CODE_TO_ASCII, decode, encode_ascii
from dnassm.data.interval import Interval
from dnassm.data.intervals import complement, merge
from dnassm.data.simulate import SimulatedGenome, gff_text, simulate_genome
from dnassm.data.simulation.evolution import Alignment, Lineage, evolve
from dnassm.data.simulation.files import fasta_text, table_text
from dnassm.data.simulation.tree import Node, parse_newick, random_tree
from dnassm.provenance import write_run_json

HEIGHT = 0.15
"""Substitutions per neutral site from the root to a leaf of a random tree."""
_BP_PER_ELEMENT = 4000
_ELEMENT_BP = (60, 250)
_NEAR_GENE_BP = 50


@dataclasses.dataclass(frozen=True, slots=True)
class SimulatedSpecies:
    """Species and the truth about them.

    Attributes:
        ancestor: genome at the root.
        tree: with the species at its leaves.
        genomes: species -> contig -> sequence, soft mask kept.
        elements: conserved elements of the ancestor: their places and "coding" or "noncoding".
        conserved: species -> place of each element, in the order of `elements`.
        alignments: contig -> species -> row with '-', all rows of one length; without the ancestor.
        seed: that all was made from.
    """

    ancestor: SimulatedGenome
    tree: Node
    genomes: Mapping[str, Mapping[str, str]]
    elements: tuple[tuple[Interval, str], ...]
    conserved: Mapping[str, tuple[Interval, ...]]
    alignments: Mapping[str, Mapping[str, str]]
    seed: int

    def summary(self) -> dict[str, Any]:
        """Sizes, and the identity of each species with the first one, as JSON values."""
        first = next(iter(self.genomes))
        return {
            "species": {n: sum(map(len, contigs.values())) for n, contigs in self.genomes.items()},
            "contigs": len(self.ancestor.contigs),
            "conserved": {
                kind: sum(kind == each for _, each in self.elements)
                for kind in ("coding", "noncoding")
            },
            f"identity_with_{first}": {
                name: round(self._identity(first, name), 4) for name in self.genomes
            },
            "tree": f"{self.tree.newick()};",
        }

    def _identity(self, one: str, other: str) -> float:
        same = both = 0
        for rows in self.alignments.values():
            a, b = (np.frombuffer(rows[n].upper().encode(), np.uint8) for n in (one, other))
            aligned = (a != ord("-")) & (b != ord("-"))
            same, both = same + int((a == b)[aligned].sum()), both + int(aligned.sum())
        return same / both


def simulate_species(
    *, length: int, seed: int, contigs: int = 1, tree: str | None = None, species: int = 4
) -> SimulatedSpecies:
    """Simulate species; the same arguments give the same species.

    Args:
        length: bases of the ancestor, all contigs together.
        seed: 0 or more.
        contigs: number of contigs, of at least 100,000 bases each.
        tree: Newick with names at the leaves and lengths in substitutions per neutral site; None
            draws a tree.
        species: leaves of a tree that is drawn.

    Raises:
        ConfigError: an argument out of range, or a tree that is none.
    """
    root = None if tree is None else parse_newick(tree)
    ancestor = simulate_genome(length=length, seed=seed, contigs=contigs, kind="eukaryotic")
    rng = np.random.default_rng([seed, 1])  # another stream than that of the ancestor
    root = root or random_tree(species, HEIGHT, rng)
    elements = _elements(ancestor, rng)
    names = [leaf.name for leaf in root.leaves()]
    genomes: dict[str, dict[str, str]] = {name: {} for name in names}
    found: dict[str, dict[int, Interval]] = {name: {} for name in names}
    alignments = {}
    for contig in ancestor.contigs:
        lineages, alignment = _evolve_contig(ancestor, contig, elements, root, rng)
        for name, lineage in lineages.items():
            genomes[name][contig] = decode(lineage.codes)
            found[name] |= _places(contig, lineage)
        alignments[contig] = {name: alignment.row(lineages[name], CODE_TO_ASCII) for name in names}
    conserved = {
        name: tuple(places[number] for number in range(len(elements)))
        for name, places in found.items()
    }
    return SimulatedSpecies(ancestor, root, genomes, elements, conserved, alignments, seed)


def write_species(found: SimulatedSpecies, out: Path, *, force: bool = False) -> None:
    """Write the folder `out`.

    ancestor.fa, ancestor.gff3, ancestor.conserved.bed, tree.nwk, alignment.maf, run.json, and of
    each species NAME.fa and NAME.conserved.bed, whose contigs are called NAME#1#CONTIG: all
    species fit into one store, and the sampler `species` knows them apart.

    Raises:
        ArtifactError: `out` is taken, or cannot be written; nothing half-written is left.
    """
    files = {
        "ancestor.fa": fasta_text(found.ancestor.contigs, f"ancestor, seed {found.seed}"),
        "ancestor.gff3": gff_text(found.ancestor),
        "ancestor.conserved.bed": _bed([place for place, _ in found.elements], found, ""),
        "tree.nwk": f"{found.tree.newick()};\n",
        "alignment.maf": _maf(found),
    }
    for name, contigs in found.genomes.items():
        prefix = f"{name}#1#"
        named = {f"{prefix}{contig}": sequence for contig, sequence in contigs.items()}
        files[f"{name}.fa"] = fasta_text(named, f"species {name}, seed {found.seed}")
        files[f"{name}.conserved.bed"] = _bed(found.conserved[name], found, prefix)
    lengths = [len(sequence) for sequence in found.ancestor.contigs.values()]
    with staged_folder(out, force=force) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="ascii")
        write_run_json(
            folder,
            command="simulate",
            config={
                "kind": "species",
                "length": sum(lengths),
                "contigs": len(lengths),
                "truth": found.summary(),
            },
            seed=found.seed,
            inputs={},
        )


def _elements(
    ancestor: SimulatedGenome, rng: np.random.Generator
) -> tuple[tuple[Interval, str], ...]:
    """Coding exons, and stretches far from every feature; by place."""
    lengths = {name: len(sequence) for name, sequence in ancestor.contigs.items()}
    coding = merge(f.interval for f in ancestor.features if f.type == "CDS")
    marked = [
        Interval(
            f.interval.contig,
            max(f.interval.start - _NEAR_GENE_BP, 0),
            min(f.interval.end + _NEAR_GENE_BP, lengths[f.interval.contig]),
        )
        for f in ancestor.features
    ]
    free = [i for i in complement(marked, lengths) if len(i) > _ELEMENT_BP[0]]
    count = min(len(free), sum(lengths.values()) // _BP_PER_ELEMENT)
    elements = [(place, "coding") for place in coding]
    for row in rng.choice(len(free), count, replace=False).tolist():
        size = min(int(rng.integers(*_ELEMENT_BP)), len(free[row]))
        start = free[row].start + int(rng.integers(len(free[row]) - size + 1))
        elements.append((Interval(free[row].contig, start, start + size), "noncoding"))
    order = {name: number for number, name in enumerate(lengths)}
    return tuple(sorted(elements, key=lambda e: (order[e[0].contig], e[0].start)))


def _evolve_contig(
    ancestor: SimulatedGenome,
    contig: str,
    elements: tuple[tuple[Interval, str], ...],
    root: Node,
    rng: np.random.Generator,
) -> tuple[dict[str, Lineage], Alignment]:
    codes = encode_ascii(ancestor.contigs[contig].encode())
    element = np.full(len(codes), -1, dtype=np.int64)
    for number, (place, _) in enumerate(elements):
        if place.contig == contig:
            element[place.start : place.end] = number
    alignment = Alignment(len(codes))
    waiting = [(root, Lineage(codes, alignment.order, element))]
    leaves = {}
    while waiting:
        node, lineage = waiting.pop()
        lineage = evolve(lineage, node.length, alignment, rng)
        waiting += [(child, lineage) for child in reversed(node.children)]
        if not node.children:
            leaves[node.name] = lineage
    return leaves, alignment


def _places(contig: str, lineage: Lineage) -> dict[int, Interval]:
    """Number of each element of a contig -> its place; its bases always stand side by side."""
    inside = np.flatnonzero(lineage.element >= 0)
    numbers, first, sizes = np.unique(
        lineage.element[inside], return_index=True, return_counts=True
    )
    return {
        number: Interval(contig, start, start + size)
        for number, start, size in zip(
            numbers.tolist(), inside[first].tolist(), sizes.tolist(), strict=True
        )
    }


def _bed(places: Sequence[Interval], found: SimulatedSpecies, prefix: str) -> str:
    return table_text(
        (f"{prefix}{place.contig}", place.start, place.end, f"element{number:05d}.{kind}")
        for number, (place, (_, kind)) in enumerate(zip(places, found.elements, strict=True), 1)
    )


def _maf(found: SimulatedSpecies) -> str:
    """One block per contig, in the multiple alignment format of UCSC."""
    lines = ["##maf version=1"]
    for contig, rows in found.alignments.items():
        lines += ["", "a score=0"]
        for name, text in rows.items():
            size = len(found.genomes[name][contig])
            lines.append(f"s {name}.{contig} 0 {size} + {size} {text}")
    return "\n".join(lines) + "\n\n"
