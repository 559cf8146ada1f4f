"""What is in a store or a run."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Show what is in a genome store or a run folder.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--verify", is_flag=True, help="Also read every base of a store and check its sha256."
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(path: Path, *, verify: bool, as_json: bool) -> None:
    """Show what is in a genome store or a run folder.

    A store: contigs, composition, soft mask, digests and splits. A run: parameters, configuration,
    last metrics and provenance. Neither loads a model.
    """
    import json

    from dnassm.data.store import GenomeStore
    from dnassm.inspection import describe, render

    facts = describe(path)
    if verify:
        GenomeStore.open(path).verify()
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))
