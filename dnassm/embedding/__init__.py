"""Embeddings of sequences, intervals and windows with a pretrained model, at any length.

A sequence is fed to the model in chunks that carry the state, so the memory for it does not grow
with its length, and the result is that of one whole forward pass. Neither padding nor the other
sequences of a batch change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dnassm import __version__
from dnassm.embedding.embedder import (
    Embedder,
    EmbedOptions,
    Report,
    Strands,
    batches,
    default_device,
    pad_tokens,
)
from dnassm.embedding.inputs import (
    Inputs,
    Source,
    from_intervals,
    from_sequences,
    parse_windows,
    sha256_of,
    tile,
)
from dnassm.embedding.table import FORMATS, Embeddings, Row, check_output
from dnassm.errors import ConfigError
from dnassm.runs import Run, load_run

if TYPE_CHECKING:
    from dnassm.data.annotation import BedRecord
    from dnassm.data.interval import Interval
    from dnassm.data.store import GenomeStore

__all__ = [
    "FORMATS",
    "EmbedOptions",
    "Embedder",
    "Embeddings",
    "Inputs",
    "Row",
    "Source",
    "batches",
    "default_device",
    "embed",
    "embed_file",
    "from_sequences",
    "pad_tokens",
    "parse_windows",
    "sha256_of",
    "tile",
]


def embed(
    run: Run | Path | str,
    sequences: Sequence[str] | Mapping[str, str] | None = None,
    *,
    genome: GenomeStore | None = None,
    intervals: Sequence[Interval | BedRecord] | None = None,
    pool: str = "mean",
    layer: int | None = None,
    strand: Strands = "plus",
    batch_size: int = 32,
) -> Embeddings:
    """Embed sequences, or intervals of a genome: one vector each, (n, D).

    Windows are intervals as well: ``embed(run, genome=g, intervals=tile(g, 1000, 500))``.

    Args:
        run: a run of `dnassm pretrain` or `dnassm finetune`, or its folder.
        sequences: letters, or name -> letters.
        genome: the store that `intervals` lie in.
        intervals: 0-based, half-open; each is read on its own strand.
        pool: "mean", "last" or "max", several joined by "+", or "none" for one vector per base.
        layer: 0 = token embedding, i = output of block i, None = after the last norm.
        strand: "both" takes the mean with the embedding of the reverse complement.
        batch_size: sequences per forward pass; no other number of them changes the result.

    Raises:
        ConfigError: an option is out of range, or not exactly one input is given.
        FormatError: a sequence holds a letter that is no IUPAC nucleotide.
        GenomeError: an interval lies outside of the genome.
        ShapeError: pool "none" with sequences of several lengths.
    """
    options = EmbedOptions(pool=pool, layer=layer, strand=strand, batch_size=batch_size)
    if sequences is not None and genome is None and intervals is None:
        inputs = from_sequences(sequences)
    elif sequences is None and genome is not None and intervals is not None:
        inputs = from_intervals(genome, intervals)
    else:
        raise ConfigError("embed: expected sequences, or genome and intervals, and not both")
    return embed_inputs(run if isinstance(run, Run) else load_run(Path(run)), inputs, options)


def embed_file(
    run: Path,
    source: Source,
    out: Path,
    options: EmbedOptions,
    *,
    force: bool = False,
) -> Embeddings:
    """Embed what `source` names and write it to `out`, with progress on stderr.

    Raises:
        DnassmError: as `embed` and `Embeddings.save`; nothing is written then.
    """
    from dnassm.console import Progress

    inputs = source.open()
    given = tuple(Path(path) for path in inputs.files)
    check_output(out, force=force, per_base=options.pool == "none", inputs=given)
    loaded = load_run(run)
    strands = 2 if options.strand == "both" else 1
    with Progress(sum(inputs.lengths) * strands, "bases", "embed") as progress:
        embeddings = embed_inputs(loaded, inputs, options, report=progress.update)
    embeddings.save(out, force=True)
    return embeddings


def embed_inputs(
    run: Run, inputs: Inputs, options: EmbedOptions, *, report: Report | None = None
) -> Embeddings:
    """Embed `inputs`; `report` is told the number of bases done so far."""
    embedder = Embedder(run.model.to(default_device()), run.tokenizer, options)
    work = embedder.per_base if options.pool == "none" else embedder.pooled
    values = work(inputs.lengths, inputs.fetch, report=report)
    return Embeddings(values, inputs.rows, _provenance(run, inputs, options))


def _provenance(run: Run, inputs: Inputs, options: EmbedOptions) -> dict[str, str | int]:
    return {
        "made_by": "dnassm embed",
        "version": __version__,
        "run": run.digest,
        "genome": inputs.genome,
        "input": " ".join(inputs.files.values()),
        "pool": options.pool,
        "layer": "last" if options.layer is None else options.layer,
        "strand": options.strand,
        "coordinates": "0-based, half-open",
    }
