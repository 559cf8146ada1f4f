"""Run the whole line on a simulated genome, or on one's own."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command(short_help="The whole line in minutes: genome, model, classifier, report.")
@click.option("--out", type=_PATH, default="quickstart", show_default=True, help="Folder to write.")
@click.option("--genome", type=_PATH, help="FASTA of your own; needs --annotation.")
@click.option("--annotation", type=_PATH, help="GFF3 with genes and CDS of --genome.")
@click.option("--minutes", default=2.5, show_default=True, help="About how long it may take.")
@click.option("--seed", default=0, show_default=True, help="Of simulation and training.")
@click.option("--force", is_flag=True, help="Replace an earlier quickstart at --out.")
def command(
    out: Path,
    genome: Path | None,
    annotation: Path | None,
    minutes: float,
    seed: int,
    force: bool,  # noqa: FBT001  click passes every option by name
) -> None:
    """Simulate a genome, pretrain on it, embed, classify, score variants and write report.html.

    \b
      dnassm quickstart
      dnassm quickstart --genome genome.fa.gz --annotation genes.gff3 --minutes 10 --out mine
    """  # noqa: D301  click marks with it what it must not wrap
    from dnassm.quickstart import QuickstartOptions, quickstart

    options = QuickstartOptions(
        out=out, genome=genome, annotation=annotation, minutes=minutes, seed=seed, force=force
    )
    click.echo(quickstart(options))
