"""The text of the files that every kind of simulation writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_LINE = 60
_BED_COLUMNS = ("chrom", "start", "end", "name", "score", "strand", "label", "split")


def fasta_text(contigs: Mapping[str, str], description: str) -> str:
    """FASTA of contigs, 60 bases to the line."""
    lines = []
    for name, sequence in contigs.items():
        lines.append(f">{name} {description}")
        lines += [sequence[at : at + _LINE] for at in range(0, len(sequence), _LINE)]
    return "\n".join(lines) + "\n"


def bed_text(rows: Iterable[Sequence[object]]) -> str:
    """BED with a header line; rows of contig, start, end, name, score, strand, label, split."""
    return table_text((_BED_COLUMNS, *rows))


def table_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells with tabs between them."""
    return "\n".join("\t".join(map(str, row)) for row in rows) + "\n"
