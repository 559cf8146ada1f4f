"""Variant effect scores: how much less likely a model finds the alternative than the reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dnassm.baselines.markov import MarkovModel, MixtureModel
from dnassm.data.alphabet import Codes, encode_ascii, reverse_complement
from dnassm.data.interval import Interval
from dnassm.data.store import GenomeStore
from dnassm.data.variants import Variant, check_reference
from dnassm.errors import ConfigError
from dnassm.model import DNAModel
from dnassm.runs import Run

SCORE_NAME = "log-likelihood ratio, reference over alternative (bits)"

Bits = NDArray[np.float64]


@dataclasses.dataclass(frozen=True, slots=True)
class _Pair:
    """The window around a variant with either allele, on the plus strand."""

    reference: Codes
    alternative: Codes


def score_variants(
    run: Run,
    genome: GenomeStore,
    variants: Sequence[Variant],
    *,
    context: int = 256,
    batch_size: int = 64,
    report: Callable[[int], None] | None = None,
) -> Bits:
    """Score variants by log2 p(reference window) - log2 p(alternative window).

    The mean over both strands: read forwards, a causal model judges the bases after the variant in
    the light of it; read as the reverse complement, those before it.

    Args:
        run: a run with a causal model.
        genome: the genome that the variants are called on.
        variants: with REF equal to the genome's bases.
        context: bases of the window, the variant in its middle; fewer at the ends of a contig.
        batch_size: variants per forward pass.
        report: told the number of variants done.

    Returns:
        (n,) bits, higher for the more disruptive variant.

    Raises:
        ConfigError: the model sees both sides, so that it has no likelihood of a sequence.
        GenomeError: a variant does not fit the genome.
    """
    if not run.model.causal:
        raise ConfigError(
            "score_variants: expected a causal model (objective.name=next), "
            "got one that sees both sides"
        )
    check_reference(variants, genome)
    pairs = [_pair(genome, variant, context) for variant in variants]
    scores = np.empty(len(pairs))
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        scores[first : first + len(batch)] = _score_batch(run, batch)
        if report is not None:
            report(first + len(batch))
    return scores


def score_with_markov(
    model: MarkovModel | MixtureModel,
    genome: GenomeStore,
    variants: Sequence[Variant],
    *,
    context: int = 256,
) -> Bits:
    """Score variants as `score_variants` does, with a Markov model: the plainest peer."""
    check_reference(variants, genome)
    scores = []
    for variant in variants:
        pair = _pair(genome, variant, context)
        strands = ((pair.reference, pair.alternative), _reversed(pair))
        change = [np.nansum(model.bits(alt)) - np.nansum(model.bits(ref)) for ref, alt in strands]
        scores.append(float(np.mean(change)))
    return np.array(scores)


def _pair(genome: GenomeStore, variant: Variant, context: int) -> _Pair:
    """The `context` bases around a variant, 0-based half-open, cut at the ends of the contig."""
    start = max(0, variant.position - context // 2)
    end = min(genome.contig(variant.contig).length, start + context)
    reference = genome.fetch(Interval(variant.contig, start, end))
    place = variant.position - start
    alternative = np.concatenate(
        [
            reference[:place],
            encode_ascii(variant.alt.encode("ascii")),
            reference[place + len(variant.ref) :],
        ]
    )
    return _Pair(reference, alternative)


def _reversed(pair: _Pair) -> tuple[Codes, Codes]:
    return reverse_complement(pair.reference), reverse_complement(pair.alternative)


def _score_batch(run: Run, pairs: Sequence[_Pair]) -> Bits:
    total = np.zeros(len(pairs))
    for strand in ((lambda p: (p.reference, p.alternative)), _reversed):
        windows = [strand(pair) for pair in pairs]
        bits = [
            log_likelihood_bits(run.model, [_tokens(run, window[side]) for window in windows])
            for side in (0, 1)
        ]
        total += bits[0] - bits[1]
    return total / 2


def _tokens(run: Run, window: Codes) -> Tensor:
    return torch.from_numpy(run.tokenizer.encode_codes(window))


@torch.inference_mode()
def log_likelihood_bits(model: DNAModel, rows: Sequence[Tensor]) -> Bits:
    """Sum of log2 p(base | the bases before it) over each row, its first base left out.

    Rows may differ in length: they are padded at the right end, which a causal model cannot see.
    """
    device = next(model.parameters()).device
    padded = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    logits, _ = model(padded)
    nats = F.cross_entropy(logits[:, :-1].transpose(1, 2).float(), padded[:, 1:], reduction="none")
    inside = torch.arange(1, padded.shape[1], device=device) < lengths[:, None]
    total = (nats * inside).double().sum(1)
    return np.asarray(-total.cpu().numpy() / math.log(2), dtype=np.float64)
