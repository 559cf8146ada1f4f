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
    "--against",
    multiple=True,
    type=click.Path(path_type=Path),
    help="VCF, BED, GFF or bigWig: does it belong to this store? May be repeated.",
)
@click.option(
    "--leakage", is_flag=True, help="Compare the parts of a store or of labelled sequences."
)
@click.option("--window", default=1024, show_default=True, help="Bases compared; of stores.")
@click.option("--windows", default=2000, show_default=True, help="Most of each held-out part.")
@click.option("--k", default=21, show_default=True, help="Bases of a k-mer, odd.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    path: Path,
    against: tuple[Path, ...],
    window: int,
    windows: int,
    k: int,
    *,
    verify: bool,
    leakage: bool,
    as_json: bool,
) -> None:
    """Show what is in a genome store or a run folder.

    A store: contigs, composition, soft mask, digests and splits. A run: parameters, configuration,
    last metrics and provenance. Neither loads a model.

    With --against: whether the contigs of a file are those of the store; names are resolved,
    lengths and MD5 compared, as far as the file states them. The first mismatch is an error.

    With --leakage: what the held-out parts of a store, or of labelled sequences (a table with a
    column split, or a folder of train, dev and test tables), have in common with the others:
    copies, copies of the other strand, and the share of k-mers that are known there.
    """
    import json

    from dnassm.data.assembly import check_assembly
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
    checks = [check_assembly(file, GenomeStore.open(path)) for file in against]
    if as_json:
        assembly = {"against": [check.to_json() for check in checks]} if checks else {}
        click.echo(json.dumps(facts | assembly, indent=2))
    else:
        click.echo("\n".join([render(facts), *(check.summary() for check in checks)]))
    for check in checks:
        check.require()
