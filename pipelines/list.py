"""List what is registered: mixers, tokenizers, samplers, tasks and presets."""

from __future__ import annotations

import click


@click.command(short_help="List what is registered under which name, with its source.")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(kind: str | None, *, as_json: bool) -> None:
    """List every registered name with its source, or only those of KIND.

    KIND is one of mixers, tokenizers, samplers, tasks, presets.
    """
    import dataclasses
    import json

    from dnassm.catalogue import KINDS, catalogue
    from dnassm.console import table

    entries = [entry for one in ([kind] if kind else KINDS) for entry in catalogue(one)]
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
    else:
        rows = [(e.kind, e.name, e.source or e.about) for e in entries]
        click.echo(table(rows, ["kind", "name", "source"]))
