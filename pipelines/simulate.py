"""Simulate a genome with known structure."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Simulate a genome with known genes, promoters and variants.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--length", default=1_000_000, show_default=True, help="Bases in all.")
@click.option("--contigs", default=1, show_default=True, help="Contigs of equal length.")
@click.option(
    "--kind",
    type=click.Choice(["bacterial"]),
    default="bacterial",
    show_default=True,
    help="What to simulate.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same files.")
@click.option("--force", is_flag=True, help="Replace what is at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    out: Path, length: int, contigs: int, kind: str, seed: int, *, force: bool, as_json: bool
) -> None:
    """Write genome.fa, genes.gff3, labels.bed, variants.vcf and run.json to the folder --out.

    The genome is drawn from published statistics of E. coli; every gene, promoter, repeat and the
    effect of every variant is known. Windows and variants of the second half of each contig are
    meant for testing.
    """
    import json

    from dnassm.data.simulate import simulate_genome, write_simulation

    genome = simulate_genome(length=length, seed=seed, contigs=contigs)
    write_simulation(genome, out, force=force)
    summary = {"kind": kind, **genome.summary(), "out": str(out)}
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    for key, value in summary.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {name}" for name, count in value.items())
        click.echo(f"{key.replace('_', ' '):15} {value}")
