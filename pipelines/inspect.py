"""What is in a store or a run, and what leaks between the parts of a split."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Show what is in a genome store or a run; or leakage between parts.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--verify", is_flag=True, help="Also read every base of a store and check its sha256."
)
@click.option(
    "--leakage", is_flag=True, help="Compare the parts of a store or of labelled sequences."
)
@click.option("--window", default=1024, show_default=True, help="Bases compared; of stores.")
@click.option("--windows", default=2000, show_default=True, help="Most of each held-out part.")
@click.option("--k", default=21, show_default=True, help="Bases of a k-mer, odd.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    path: Path, window: int, windows: int, k: int, *, verify: bool, leakage: bool, as_json: bool
) -> None:
    """Show what is in a genome store or a run folder.

    A store: contigs, composition, soft mask, digests and splits. A run: parameters, configuration,
    last metrics and provenance. Neither loads a model.

    With --leakage: what the held-out parts of a store, or of labelled sequences (a table with a
    column split, or a folder of train, dev and test tables), have in common with the others:
    copies, copies of the other strand, and the share of k-mers that are known there.
    """
    import json

    from dnassm.data.leakage import leakage_at
    from dnassm.data.store import GenomeStore
    from dnassm.inspection import describe, render

    if leakage:
        found = leakage_at(path, window=window, most=windows, k=k)
        facts = {"path": str(path), "leakage": found.to_json()}
        click.echo(json.dumps(facts, indent=2) if as_json else found.render())
        return
    facts = describe(path)
    if verify:
        GenomeStore.open(path).verify()
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))
