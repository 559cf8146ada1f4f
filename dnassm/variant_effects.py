"""Variant effect scores: how much less likely a model finds the alternative than the reference."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dnassm.artifact import check_target, staged_file
from dnassm.baselines.markov import MarkovModel, MixtureModel
from dnassm.console import Progress
from dnassm.data.alphabet import PAD, Codes, reverse_complement
from dnassm.data.centre import GenomeReader
from dnassm.data.genome import Genome, open_genome
from dnassm.data.haplotypes import HaplotypeWindower, PhasedVariants, read_phased
from dnassm.data.interval import Interval
from dnassm.data.variant_input import (
    MAX_WRONG,
    LoadedVariants,
    Offset,
    load_phased,
    load_variants,
    parse_offset,
)
from dnassm.data.variant_reference import ReferenceCheck, RefMatch
from dnassm.data.variant_windows import VariantWindower
from dnassm.data.variants import Variant
from dnassm.errors import ConfigError
from dnassm.model import DNAModel
from dnassm.runs import Run, load_run

SCORE_NAME = "log-likelihood ratio, reference over alternative (bits)"
TABLE_COLUMNS = ("contig", "position", "id", "ref", "alt", "ref_check", "llr")
SAMPLE_COLUMNS = (*TABLE_COLUMNS[:-1], "genotype", "together_1", "llr_1", "together_2", "llr_2")

Bits = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class VcfInput:
    """A VCF or BCF, and how it is to be read against a genome."""

    path: Path
    sample: str | None = None
    """Whose haplotypes; None for each variant by itself."""
    offsets: Sequence[str] = ()
    """Texts of `dnassm.data.variant_input.parse_offset`."""
    max_wrong: float | None = MAX_WRONG
    """Largest share of variants whose REF is not what the genome has."""

    def places(self) -> list[Offset]:
        """The offsets, read; raises ConfigError."""
        return [parse_offset(text) for text in self.offsets]


@dataclasses.dataclass(frozen=True, slots=True)
class HaplotypeScores:
    """Of each variant of a sample and each of its two haplotypes."""

    llr: Bits
    """(n, 2) bits; NaN where the haplotype lacks the variant or has no window."""
    together: NDArray[np.int64]
    """(n, 2) variants in the window, this one included; 0 where there is no score."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    """The window around a variant with either allele, on the plus strand."""

    reference: Codes
    alternative: Codes


def score_variants(
    run: Run,
    genome: Genome,
    variants: Sequence[Variant],
    *,
    context: int = 256,
    batch_size: int = 64,
    report: Callable[[int], None] | None = None,
) -> Bits:
    """Score variants by log2 p(reference window) - log2 p(alternative window).

    The windows are those of `dnassm.data.variant_windows`, of one length whatever the alleles, and
    cut off at the ends of a contig; unknown bases in them count nothing. The mean over both
    strands: read forwards, a causal model judges the bases after the variant in the light of it;
    read as the reverse complement, those before it.

    Args:
        run: a run with a causal model.
        genome: the genome that the variants are called on.
        variants: with REF equal to the genome's bases.
        context: bases of the window, the first base of REF in its middle.
        batch_size: variants per forward pass.
        report: told the number of variants done.

    Returns:
        (n,) bits, higher for the more disruptive variant; NaN where an allele is longer than the
        right half of the window.

    Raises:
        ConfigError: the model sees both sides, so that it has no likelihood of a sequence.
        GenomeError: a variant does not fit the genome.
    """
    _check_causal(run)
    scores = np.full(len(variants), np.nan)
    for done, indices, pairs in _batches(genome, variants, context, batch_size):
        if pairs:
            scores[indices] = _score_batch(run, pairs)
        if report is not None:
            report(done)
    return scores


def score_haplotypes(
    run: Run,
    genome: Genome,
    phased: PhasedVariants,
    *,
    context: int = 256,
    batch_size: int = 64,
    report: Callable[[int], None] | None = None,
) -> HaplotypeScores:
    """Score log2 p(reference window) - log2 p(haplotype window) around each variant of a sample.

    The haplotype has all of its variants applied together, so that those which lie in one window
    are judged as one change. Where a variant is alone in its window the score is that of
    `score_variants`. The strands and the ends of contigs are treated as there.

    Args:
        run: a run with a causal model.
        genome: the genome that the variants are called on.
        phased: with REF equal to the genome's bases, see `load_phased`.
        context: bases of the window, the first base of REF in its middle.
        batch_size: variants per forward pass.
        report: told the number of variants done.

    Returns:
        Bits, higher for the more disruptive haplotype; NaN for a variant that overlaps an earlier
        one, and where the window holds heterozygous variants of several phase sets.

    Raises:
        ConfigError: the model sees both sides, so that it has no likelihood of a sequence.
        GenomeError: a variant does not fit the genome.
    """
    _check_causal(run)
    windower = HaplotypeWindower(genome, phased, context, ends="pad")
    reader = GenomeReader(genome, fill=PAD)
    carried = _carried(phased, windower)
    llr = np.full(carried.shape, np.nan)
    together = np.zeros(carried.shape, dtype=np.int64)
    for first in range(0, len(carried), batch_size):
        batch = phased.variants[first : first + batch_size]
        made = windower([Interval(v.contig, v.position, v.position + 1) for v in batch])
        slots: list[tuple[int, int]] = []
        pairs: list[_Pair] = []
        for row, index in enumerate(made.kept.tolist()):
            start = batch[index].position - context // 2
            reference = reader.codes(batch[index].contig, start, start + context)
            for which in np.flatnonzero(carried[first + index]).tolist():
                slots.append((first + index, which))
                pairs.append(_unpadded(reference, made.codes[row, which]))
                together[slots[-1]] = made.applied[row, which]
        if pairs:
            llr[tuple(np.transpose(slots))] = _score_batch(run, pairs)
        if report is not None:
            report(first + len(batch))
    return HaplotypeScores(llr, together)


def _carried(phased: PhasedVariants, windower: HaplotypeWindower) -> NDArray[np.bool_]:
    """Which haplotypes (n, 2) have each variant; none has one that overlaps an earlier one."""
    left_out = {id(variant) for variant, _ in windower.overlapping}
    applied = np.array([id(variant) not in left_out for variant in phased.variants], dtype=bool)
    carriers = [(phased.carriers & copy).astype(bool) & applied for copy in (1, 2)]
    return np.stack(carriers, axis=1)


def score_file(
    run: Path, vcf: VcfInput, genome: Path, out: Path, *, force: bool = False, **how: int
) -> str:
    """Score the variants of a VCF or BCF into a table; the command `variants`.

    Args:
        run: folder of a run.
        vcf: the variants, each by itself or together as a sample has them.
        genome: folder of a genome store.
        out: .tsv or .tsv.gz, see `write_scores` and `write_haplotype_scores`.
        force: replace `out`.
        how: `context` and `batch_size` of `score_variants`.

    Returns:
        What was read and scored, in one line.

    Raises:
        DnassmError: the files do not fit one another, or `out` cannot be written.
    """
    check_table_name(out)
    check_target(out, force=force)
    store = open_genome(genome)
    if vcf.sample is not None:
        return _score_sample(run, vcf, store, out, force=force, **how)
    loaded = load_variants(vcf.path, store, offsets=vcf.places(), max_wrong=vcf.max_wrong)
    with Progress(len(loaded.variants), "variants", "score variants") as bar:
        scores = score_variants(load_run(run), store, loaded.variants, report=bar.update, **how)
    write_scores(out, loaded, scores, force=force)
    scored = int(np.isfinite(scores).sum())
    return f"{out}: {scored:,} of {len(loaded.check.status):,} variants scored; {loaded.summary()}"


def _score_sample(
    run: Path, vcf: VcfInput, store: Genome, out: Path, *, force: bool, **how: int
) -> str:
    # Read twice: once for the names and places of the file, which `load_phased` turns into those of
    # the genome.
    file = read_phased(vcf.path, sample=vcf.sample)
    phased, check = load_phased(
        vcf.path, store, sample=vcf.sample, offsets=vcf.places(), max_wrong=vcf.max_wrong
    )
    with Progress(len(phased.variants), "variants", "score haplotypes") as bar:
        scores = score_haplotypes(load_run(run), store, phased, report=bar.update, **how)
    write_haplotype_scores(out, file, check, scores, force=force)
    scored = int(np.isfinite(scores.llr).any(axis=1).sum())
    return f"{out}: {scored:,} of {len(check.status):,} variants scored; {file.summary()}"


def score_with_markov(
    model: MarkovModel | MixtureModel,
    genome: Genome,
    variants: Sequence[Variant],
    *,
    context: int = 256,
) -> Bits:
    """Score variants as `score_variants` does, with a Markov model: the plainest peer."""
    scores = np.full(len(variants), np.nan)
    for _, indices, pairs in _batches(genome, variants, context, batch_size=64):
        for index, pair in zip(indices, pairs, strict=True):
            strands = ((pair.reference, pair.alternative), _reversed(pair))
            scores[index] = np.mean(
                [np.nansum(model.bits(alt)) - np.nansum(model.bits(ref)) for ref, alt in strands]
            )
    return scores


def write_scores(path: Path, loaded: LoadedVariants, scores: Bits, *, force: bool = False) -> None:
    """Write a table with a line for every variant of a file, as the file has it.

    Columns: contig, position (from 1), id, ref, alt, ref_check (match, swapped, mismatch, outside,
    no_contig), llr in bits; nothing where there is no score.

    Args:
        path: .tsv, or .tsv.gz.
        loaded: the variants.
        scores: (n,) of `loaded.variants`.
        force: replace what is there.

    Raises:
        ArtifactError: it exists, or cannot be written.
        ConfigError: another ending.
    """
    llr = np.full(len(loaded.file.variants), np.nan)
    llr[loaded.indices] = scores
    rows = (
        (*_place(variant, status), _said(score))
        for variant, status, score in zip(
            loaded.file.variants, loaded.check.status.tolist(), llr.tolist(), strict=True
        )
    )
    _write_table(path, TABLE_COLUMNS, rows, force=force)


def write_haplotype_scores(
    path: Path,
    file: PhasedVariants,
    check: ReferenceCheck,
    scores: HaplotypeScores,
    *,
    force: bool = False,
) -> None:
    """Write a table with a line for every variant that a sample carries, as the file has it.

    Columns: contig, position (from 1), id, ref, alt, ref_check, genotype (``0|1`` where the second
    haplotype has it), and of both haplotypes how many variants the window holds together and
    their llr in bits; nothing where there is no score.

    Args:
        path: .tsv, or .tsv.gz.
        file: the variants in places of the file.
        check: how REF of each compares with the genome.
        scores: of those that match.
        force: replace what is there.

    Raises:
        ArtifactError: it exists, or cannot be written.
        ConfigError: another ending.
    """
    llr = np.full((len(file.variants), 2), np.nan)
    together = np.zeros(llr.shape, dtype=np.int64)
    llr[check.matching()], together[check.matching()] = scores.llr, scores.together
    rows = (
        (
            *_place(variant, status),
            f"{carrier & 1}|{carrier >> 1}",
            *(text for n, score in zip(*pair, strict=True) for text in (n or "", _said(score))),
        )
        for variant, status, carrier, *pair in zip(
            file.variants,
            check.status.tolist(),
            file.carriers.tolist(),
            together.tolist(),
            llr.tolist(),
            strict=True,
        )
    )
    _write_table(path, SAMPLE_COLUMNS, rows, force=force)


def _place(variant: Variant, status: int) -> tuple[object, ...]:
    said = RefMatch(status).name.lower()
    return variant.contig, variant.position + 1, variant.id, variant.ref, variant.alt, said


def _said(score: float) -> str:
    return "" if math.isnan(score) else f"{score:.6g}"


def _write_table(
    path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, force: bool
) -> None:
    check_table_name(path)
    check_target(path, force=force)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    content = text.getvalue().encode("utf-8")
    with staged_file(path) as staging:
        staging.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def check_table_name(path: Path) -> None:
    """Raise ConfigError unless `write_scores` knows the ending of a name."""
    if not path.name.endswith((".tsv", ".tsv.gz")):
        raise ConfigError(f"--out: expected a name that ends in .tsv or .tsv.gz, got {path}")


def _check_causal(run: Run) -> None:
    if not run.model.causal:
        raise ConfigError(
            "score_variants: expected a causal model (objective.name=next), "
            "got one that sees both sides"
        )


def _batches(
    genome: Genome, variants: Sequence[Variant], context: int, batch_size: int
) -> Iterator[tuple[int, NDArray[np.int64], list[_Pair]]]:
    """How many variants are done then, the indices of those with windows, and the windows."""
    windower = VariantWindower(genome, context, ends="pad")
    for first in range(0, len(variants), batch_size):
        batch = variants[first : first + batch_size]
        made = windower(batch)
        rows = zip(made.reference, made.alternative, strict=True)
        pairs = [_unpadded(*pair) for pair in rows]
        yield first + len(batch), first + made.kept, pairs


def _unpadded(reference: Codes, alternative: Codes) -> _Pair:
    return _Pair(reference[reference != PAD], alternative[alternative != PAD])


def _reversed(pair: _Pair) -> tuple[Codes, Codes]:
    return reverse_complement(pair.reference), reverse_complement(pair.alternative)


def _score_batch(run: Run, pairs: Sequence[_Pair]) -> Bits:
    total = np.zeros(len(pairs))
    for strand in ((lambda p: (p.reference, p.alternative)), _reversed):
        windows = [strand(pair) for pair in pairs]
        bits = [
            log_likelihood_bits(
                run.model,
                [_tokens(run, window[side]) for window in windows],
                ignore_ids=run.tokenizer.ignore_ids,
            )
            for side in (0, 1)
        ]
        total += bits[0] - bits[1]
    return total / 2


def _tokens(run: Run, window: Codes) -> Tensor:
    return torch.from_numpy(run.tokenizer.encode_codes(window))


@torch.inference_mode()
def log_likelihood_bits(
    model: DNAModel, rows: Sequence[Tensor], *, ignore_ids: Sequence[int] = ()
) -> Bits:
    """Sum of log2 p(base | the bases before it) over each row, its first base left out.

    Tokens of `ignore_ids` are seen by what comes after them, and count nothing themselves. Rows may
    differ in length: they are padded at the right end, which a causal model cannot see.
    """
    device = next(model.parameters()).device
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    logits, _ = model(padded)
    nats = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), padded[:, 1:], reduction="none")
    inside = torch.arange(1, padded.shape[1], device=device) < lengths[:, None]
    inside &= ~torch.isin(padded[:, 1:], torch.tensor(ignore_ids, device=device, dtype=torch.long))
    total = (nats * inside).double().sum(1)
    return np.asarray(-total.cpu().numpy() / math.log(2), dtype=np.float64)
