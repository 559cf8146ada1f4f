"""Score the variants of a VCF or BCF."""

from pathlib import Path

import click


@click.command(short_help="Score the variants of a VCF with a pretrained model.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--vcf",
    type=click.Path(path_type=Path),
    required=True,
    help="VCF, plain, gzip or bgzip, or BCF.",
)
@click.option(
    "--genome",
    type=click.Path(path_type=Path),
    required=True,
    help="Store of `tokenize`, or a FASTA file.",
)
@click.option(
    "--offset",
    "offsets",
    metavar="CONTIG=CHROM:START",
    multiple=True,
    help="The genome's CONTIG begins at base START, from 1, of the file's CHROM.",
)
@click.option(
    "--sample",
    metavar="NAME",
    help="Score this sample's phased haplotypes: its variants together, as each copy has them.",
)
@click.option(
    "--max-wrong-ref",
    type=click.FloatRange(0, 1),
    default=0.01,
    show_default=True,
    help="Stop when REF of a larger share is not what the genome has.",
)
@click.option(
    "--context",
    type=click.IntRange(2),
    default=256,
    show_default=True,
    help="Bases of the window around a variant.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Variants at a time.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help=".tsv or .tsv.gz.")
@click.option("--force", is_flag=True, help="Replace --out.")
def command(
    run: Path,
    vcf: Path,
    genome: Path,
    offsets: tuple[str, ...],
    sample: str | None,
    max_wrong_ref: float,
    out: Path,
    *,
    force: bool,
    **how: int,
) -> None:
    """Score every variant by how much less likely the model of RUN finds ALT than REF, in bits.

    A line of the table for every variant, in the order of the file, with what REF is against the
    genome; only those that match have a score. A model that was pretrained with the objective
    `next` is needed.

    With --sample a line for every variant that NAME carries, and a score for each of its two
    haplotypes: the window with all variants of that haplotype in it against the reference.

    \b
    dnassm variants RUN --vcf calls.vcf.gz --genome STORE --out scores.tsv
    dnassm variants RUN --vcf chr17.bcf --genome STORE --offset part=chr17:42425000 --out s.tsv
    dnassm variants RUN --vcf phased.vcf.gz --genome STORE --sample NA12878 --out haplotypes.tsv
    """  # noqa: D301  click marks with it what it must not wrap
    from dnassm.variant_effects import VcfInput, score_file

    source = VcfInput(vcf, sample, offsets, max_wrong_ref)
    click.echo(score_file(run, source, genome, out, force=force, **how))
