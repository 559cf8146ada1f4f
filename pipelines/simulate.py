"""Simulate genomes with known structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


@click.command(short_help="Simulate a genome with known genes, motifs and variants.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--length", default=1_000_000, show_default=True, help="Bases in all.")
@click.option("--contigs", type=int, help="Of equal length.  [default: 1; 2 of long-range]")
@click.option(
    "--kind",
    type=click.Choice(["bacterial", "eukaryotic", "species", "long-range"]),
    default="bacterial",
    show_default=True,
    help="What to simulate.",
)
@click.option("--tree", help="Newick, or a file of it; of species.  [default: a random tree]")
@click.option("--species", type=int, help="Leaves of a random tree.  [default: 4]")
@click.option("--distance", type=int, help="Bases from signal to key.  [default: 500000]")
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--force", is_flag=True, help="Replace what is at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    out: Path, kind: str, length: int, seed: int, *, force: bool, as_json: bool, **settings: Any
) -> None:
    """Write a genome and the truth about it to the folder --out, with run.json.

    \b
    bacterial   genome.fa, genes.gff3, labels.bed (coding, intergenic), variants.vcf
    eukaryotic  the same with introns; labels.bed of splice sites; repeats.fa, isochores.bed
    species     ancestor.*, NAME.fa, NAME.conserved.bed, tree.nwk, alignment.maf
    long-range  genome.fa, labels.bed, truth.tsv: keys whose answer stands --distance before

    Windows and variants of the second half of each contig are meant for testing; of long-range the
    last contig is.
    """  # noqa: D301  click marks with it what it must not wrap
    import json

    from dnassm.data.simulation.kinds import simulate_to

    truth = simulate_to(out, kind, length=length, seed=seed, force=force, **settings)
    summary = {"kind": kind, **truth, "out": str(out)}
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {name}" for name, count in value.items())
        click.echo(f"{key.replace('_', ' '):15} {value}")
