"""What works here, and whether it is right."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="What works here, and whether the kernels are right.")
@click.option(
    "--length",
    type=click.IntRange(8),
    default=4096,
    show_default=True,
    help="Positions that the kernels are checked at.",
)
@click.option(
    "--op", "ops", multiple=True, metavar="NAME", help="Check this op alone; may be repeated."
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU where there is one.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Certificate to write, as JSON.")
@click.option("--force", is_flag=True, help="Replace --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the certificate as JSON.")
def command(
    length: int,
    ops: tuple[str, ...],
    device: str,
    out: Path | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """List the backends of every kernel, and check the one that runs against float64.

    A certificate has the errors of values and of every gradient at --length, and whether the
    results stay the same when the sequence is cut, packed, reversed, batched or run again. The
    exit code is 1 if a check fails.

    \b
    dnassm doctor
    dnassm doctor --length 1048576 --out certificate.json
    dnassm doctor --length 1048576 --op selective_scan --op causal_conv1d
    """  # noqa: D301  click marks with it what it must not wrap
    import json

    from dnassm.doctor import examine

    certificate = examine(length=length, ops=ops, device=device, out=out, force=force)
    click.echo(json.dumps(certificate.to_json(), indent=2) if as_json else certificate.render())
    certificate.require()
