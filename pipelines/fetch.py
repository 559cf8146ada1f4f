"""Genomes and benchmark sets by name."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Fetch genomes and benchmark sets by name, checked.")
@click.argument("name", nargs=-1)
@click.option("--list", "show", is_flag=True, help="Show what there is, and stop.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder; each name gets one of its own in it. Default: DNASSM_CACHE, or the cache folder.",
)
@click.option(
    "--mirror",
    envvar="DNASSM_MIRROR",
    help="Address below which hosts and paths are repeated, as wget --mirror lays them out.",
)
@click.option("--only", default="*", show_default=True, help="Only files like this: 'prom_*/*'.")
@click.option(
    "--max-gb",
    type=click.FloatRange(0, min_open=True),
    default=20.0,
    show_default=True,
    help="Refuse longer files.",
)
@click.option(
    "--trust-first", is_flag=True, help="Do without a publisher's list of checksums that fails."
)
@click.option("--force", is_flag=True, help="Fetch anew, whatever is there or was recorded.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    name: tuple[str, ...],
    out: Path | None,
    mirror: str | None,
    only: str,
    max_gb: float,
    *,
    show: bool,
    trust_first: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Fetch what each NAME stands for, and print the paths of its files.

    A download that was cut or stopped goes on where it was when the same command is run again.
    Files are held to the checksums of their publisher; where there are none, what came first is
    recorded in fetch.lock.json and everything later is held to that.

    \b
    dnassm fetch --list
    dnassm fetch ecoli-k12 --out downloads
    dnassm fetch gue --only 'prom_*/*'
    """  # noqa: D301  click marks with it what it must not wrap
    import dataclasses
    import json

    from dnassm.console import table
    from dnassm.data.fetch.catalogue import entries
    from dnassm.data.fetch.download import Transfer
    from dnassm.data.fetch.job import default_folder, fetch_all

    if show and as_json:
        click.echo(json.dumps([dataclasses.asdict(entry) for entry in entries()], indent=2))
    elif show:
        rows = [
            (e.name, e.kind, len(e.files), "no" if e.untried else "yes", e.about) for e in entries()
        ]
        click.echo(table(rows, ["name", "kind", "files", "tried", "what"]))
    elif not name:
        raise click.UsageError("name what to fetch, or see `dnassm fetch --list`")
    else:
        transfer = Transfer(mirror=mirror, max_bytes=round(max_gb * 1e9))
        found = fetch_all(
            name,
            out or default_folder(),
            transfer,
            only=only,
            trust_first=trust_first,
            force=force,
        )
        if as_json:
            click.echo(json.dumps([dataclasses.asdict(file) for file in found], indent=2))
        else:
            click.echo("\n".join(file.path for file in found))
