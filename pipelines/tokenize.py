"""FASTA files to a genome store."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command(short_help="Read FASTA files into a genome store.")
@click.argument("fasta", nargs=-1, required=True, type=_PATH)
@click.option("--out", required=True, type=_PATH, help="Folder of the store to write.")
@click.option("--split", help="Rule, as below.  [default: none]")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes that read files, one file each at a time.",
)
@click.option("--append", is_flag=True, help="Add to the store at --out, under its split rule.")
@click.option("--force", is_flag=True, help="Replace the store that is at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    fasta: tuple[Path, ...],
    out: Path,
    split: str | None,
    jobs: int,
    *,
    append: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write the contigs of FASTA files (plain, gzip or bgzip) into one genome store.

    \b
    Rules for --split:
      none                                       everything trains
      contig:valid=chr8,test=chr9                whole contigs are held out
      blocks:size=50000,every=10,gap=1000        of every 10 blocks the last one tests
      blocks:size=50000,every=10,valid=8,test=9  number 8 validates, number 9 tests
      halves:gap=1000                            the second half of each contig tests
    bed:FILE,rest=train                        column 4 names the part of each region
    A gap is dropped on each side of a border between parts.

    With --jobs 2 or more, a run that was stopped goes on where it was: the files that it finished
    wait beside the store, in .NAME.shards, until the store stands.
    """  # noqa: D301  click marks with it what it must not wrap
    import json

    from dnassm.console import Progress
    from dnassm.data.split import parse_split
    from dnassm.data.store import append_to_store, build_store, input_bytes
    from dnassm.data.store_shards import finished_bytes
    from dnassm.inspection import describe_store, render

    if append and (split is not None or force):
        raise click.UsageError("--append keeps the store and its rule: without --split and --force")
    rule = parse_split(split or "none").text  # a wrong rule is said before any work begins
    total = input_bytes(fasta)
    done = finished_bytes(fasta, out) if jobs > 1 else 0
    with Progress(total, "B", "tokenize", start=done) as bar:
        if append:
            store = append_to_store(fasta, out, jobs=jobs, progress=bar.update)
        else:
            store = build_store(fasta, out, split=rule, jobs=jobs, force=force, progress=bar.update)
    facts = describe_store(store)
    click.echo(json.dumps(facts, indent=2) if as_json else render(facts))
