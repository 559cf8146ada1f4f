"""Embed sequences, intervals or windows of a genome."""

from pathlib import Path
from typing import Any, Literal

import click


@click.command(short_help="Embed sequences, intervals or windows with a pretrained model.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--fasta", type=click.Path(path_type=Path), help="FASTA file, plain or gzip.")
@click.option(
    "--genome", type=click.Path(path_type=Path), help="Store of `tokenize`, or a FASTA file."
)
@click.option("--bed", type=click.Path(path_type=Path), help="Intervals of the genome to embed.")
@click.option("--windows", metavar="SIZE:STEP", help="Windows of SIZE bp every STEP bp.")
@click.option(
    "--split", type=click.Choice(["train", "valid", "test"]), help="Windows of this part only."
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "last", "max", "none"]),
    default="mean",
    show_default=True,
    help="One vector per sequence, or one per base (none; .npy and one length only).",
)
@click.option(
    "--layer",
    type=int,
    help="0 = token embedding, I = after block I; default: after the last norm.",
)
@click.option(
    "--strand",
    type=click.Choice(["plus", "both"]),
    default="plus",
    show_default=True,
    help="plus: as given (a BED row on its own strand); both: mean with the reverse complement.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Sequences at a time.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help=".npy (with a .bed twin), .parquet or .h5ad.",
)
@click.option("--force", is_flag=True, help="Replace --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    run: Path,
    out: Path,
    pool: str,
    layer: int | None,
    strand: Literal["plus", "both"],
    batch_size: int,
    *,
    force: bool,
    as_json: bool,
    **source: Any,
) -> None:
    """Embed with the model of RUN; memory does not grow with the length of a sequence.

    \b
    dnassm embed RUN --fasta genes.fa --out genes.h5ad
    dnassm embed RUN --genome STORE --windows 1000:500 --split test --out test.parquet
    dnassm embed RUN --genome STORE --bed peaks.bed --pool max --strand both --out peaks.npy
    """  # noqa: D301  click marks with it what it must not wrap
    import json

    from dnassm.embedding import EmbedOptions, Source, embed_file

    options = EmbedOptions(pool=pool, layer=layer, strand=strand, batch_size=batch_size)
    made = embed_file(run, Source(**source), out, options, force=force)
    facts = {"out": str(out), "rows": len(made), "shape": made.values.shape, **made.provenance}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        click.echo(
            f"{out}: {len(made)} rows, {' x '.join(map(str, made.values.shape))} float32, "
            f"pool {pool}, layer {made.provenance['layer']}, strand {strand}"
        )
