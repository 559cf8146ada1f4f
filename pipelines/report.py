"""Show a run, its data and its results on one HTML page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="One self-contained HTML page from artifacts.")
@click.argument(
    "paths", metavar="PATH...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The page to write.")
@click.option("--title", default="dnassm report", show_default=True, help="Heading of the page.")
@click.option("--force", is_flag=True, help="Replace the page if it exists.")
def command(paths: tuple[Path, ...], out: Path, title: str, *, force: bool) -> None:
    """Write one self-contained HTML page about the artifacts at PATH...

    Each PATH is a genome store, a pretraining run, embeddings (.npy with .bed, or .parquet), a
    classification run, variant scores, or a folder that holds some of them.
    """
    from dnassm.report import build_report

    click.echo(build_report(paths, out, title=title, force=force))
