"""Variant scores: the sums they are made of, and what they must not depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dnassm.baselines.markov import fit_markov
from dnassm.config import ModelConfig, RunConfig
from dnassm.data.alphabet import decode, encode_ascii, reverse_complement
from dnassm.data.haplotypes import PhasedVariants
from dnassm.data.interval import Interval
from dnassm.data.store import GenomeStore, build_store
from dnassm.data.tokenizers.single import SingleBaseTokenizer
from dnassm.data.variants import Variant
from dnassm.errors import ConfigError, GenomeError
from dnassm.model import DNAModel
from dnassm.runs import Run
from dnassm.variant_effects import (
    log_likelihood_bits,
    score_haplotypes,
    score_variants,
    score_with_markov,
)

LENGTH = 400


def _store(folder: Path, sequence: str) -> GenomeStore:
    folder.mkdir()
    (folder / "g.fa").write_text(f">c\n{sequence}\n")
    return build_store([folder / "g.fa"], folder / "store")


@pytest.fixture(scope="module")
def sequence() -> str:
    return "".join(np.random.default_rng(0).choice(list("ACGT"), LENGTH))


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory, sequence: str) -> GenomeStore:
    return _store(tmp_path_factory.mktemp("plus") / "g", sequence)


@pytest.fixture(scope="module")
def run() -> Run:
    torch.manual_seed(0)
    model = DNAModel(ModelConfig(d_model=16, pattern="m")).eval()
    return Run(Path("run"), model, SingleBaseTokenizer(), RunConfig(), "digest")


def _variants(sequence: str) -> list[Variant]:
    """Substitutions at the ends and inside, an insertion and a deletion."""
    other = {"A": "C", "C": "G", "G": "T", "T": "A"}
    places = [0, 1, 150, 200, LENGTH - 1]
    snvs = [Variant("c", place, sequence[place], other[sequence[place]]) for place in places]
    insertion = Variant("c", 100, sequence[100], sequence[100] + "GATTACA")
    deletion = Variant("c", 300, sequence[300:306], sequence[300])
    return [*snvs, insertion, deletion]


def test_a_likelihood_is_the_sum_over_the_bases_after_the_first(run: Run) -> None:
    row = torch.tensor([0, 3, 2, 1, 1, 0])
    with torch.inference_mode():
        logits, _ = run.model(row[None])
        by_hand = sum(
            float(torch.log2(torch.softmax(logits[0, t], -1)[row[t + 1]])) for t in range(5)
        )
    assert log_likelihood_bits(run.model, [row])[0] == pytest.approx(by_hand, rel=1e-5)


def test_rows_of_other_lengths_do_not_change_a_likelihood(run: Run) -> None:
    rows = [torch.randint(0, 4, (length,)) for length in (3, 90, 41)]
    alone = [log_likelihood_bits(run.model, [row])[0] for row in rows]
    np.testing.assert_allclose(log_likelihood_bits(run.model, rows), alone, rtol=1e-5)


def test_a_score_is_the_loss_of_likelihood_over_both_strands(
    run: Run, genome: GenomeStore, sequence: str
) -> None:
    variant = _variants(sequence)[2]
    reference = genome.fetch(Interval("c", 150 - 64, 150 + 64))
    alternative = reference.copy()
    alternative[64] = encode_ascii(variant.alt.encode())[0]
    expected = 0.0
    for turn in (lambda codes: codes, reverse_complement):
        tokens = [
            torch.from_numpy(run.tokenizer.encode_codes(turn(codes)))
            for codes in (reference, alternative)
        ]
        bits = log_likelihood_bits(run.model, tokens)
        expected += (bits[0] - bits[1]) / 2
    assert score_variants(run, genome, [variant], context=128)[0] == pytest.approx(expected)


def test_scores_do_not_depend_on_the_batch(run: Run, genome: GenomeStore, sequence: str) -> None:
    variants = _variants(sequence)
    one = score_variants(run, genome, variants, batch_size=1)
    np.testing.assert_allclose(score_variants(run, genome, variants), one, atol=1e-4)


def test_the_reverse_complement_of_a_genome_gives_the_same_scores(
    run: Run, genome: GenomeStore, sequence: str, tmp_path: Path
) -> None:
    turned = decode(reverse_complement(encode_ascii(sequence.encode())))
    minus = _store(tmp_path / "g", turned)
    inside = Variant("c", 200, sequence[200], "A" if sequence[200] != "A" else "C")
    complement = str.maketrans("ACGT", "TGCA")
    same = Variant(
        "c", LENGTH - 201, inside.ref.translate(complement), inside.alt.translate(complement)
    )
    # The variant is one base left of the middle of an even window, so the whole genome is taken.
    plus = score_variants(run, genome, [inside], context=2 * LENGTH)
    np.testing.assert_allclose(
        score_variants(run, minus, [same], context=2 * LENGTH), plus, atol=1e-4
    )


def test_a_markov_model_is_scored_the_same_way(genome: GenomeStore, sequence: str) -> None:
    model = fit_markov([genome.fetch(Interval("c", 0, LENGTH))], 2)
    scores = score_with_markov(model, genome, _variants(sequence), context=128)
    reference = genome.fetch(Interval("c", 150 - 64, 150 + 64))
    alternative = reference.copy()
    alternative[64] = encode_ascii(_variants(sequence)[2].alt.encode())[0]
    change = [
        np.nansum(model.bits(turn(alternative))) - np.nansum(model.bits(turn(reference)))
        for turn in (lambda codes: codes, reverse_complement)
    ]
    assert scores[2] == pytest.approx(np.mean(change))


def test_a_model_that_sees_both_sides_is_refused(genome: GenomeStore, sequence: str) -> None:
    model = DNAModel(ModelConfig(d_model=8, pattern="m", bidirectional=True))
    blind = Run(Path("run"), model, SingleBaseTokenizer(), RunConfig(), "digest")
    with pytest.raises(ConfigError, match="causal"):
        score_variants(blind, genome, _variants(sequence))


def test_a_reference_allele_that_the_genome_does_not_have_is_refused(
    run: Run, genome: GenomeStore, sequence: str
) -> None:
    wrong = Variant("c", 10, "A" if sequence[10] != "A" else "C", "G")
    with pytest.raises(GenomeError, match="REF"):
        score_variants(run, genome, [wrong])


def test_unknown_bases_count_nothing(run: Run) -> None:
    n = run.tokenizer.ignore_ids[0]
    row = torch.tensor([0, 3, n, n, 1, 0])
    with torch.inference_mode():
        logits, _ = run.model(row[None])
    by_hand = sum(float(torch.log2(torch.softmax(logits[0, t], -1)[row[t + 1]])) for t in (0, 3, 4))
    bits = log_likelihood_bits(run.model, [row], ignore_ids=run.tokenizer.ignore_ids)
    assert bits[0] == pytest.approx(by_hand, rel=1e-5)


def test_an_allele_that_is_too_long_has_no_score(
    run: Run, genome: GenomeStore, sequence: str
) -> None:
    long = Variant("c", 200, sequence[200], sequence[200] + "A" * 40)
    others = _variants(sequence)
    done: list[int] = []
    scores = score_variants(
        run, genome, [others[0], long, others[1]], context=64, batch_size=1, report=done.append
    )
    assert np.isnan(scores).tolist() == [False, True, False]
    assert done == [1, 2, 3]
    markov = fit_markov([genome.fetch(Interval("c", 0, LENGTH))], 2)
    assert np.isnan(score_with_markov(markov, genome, [long], context=64)).all()


def test_a_haplotype_is_scored_as_the_sequence_that_it_is(
    run: Run, genome: GenomeStore, sequence: str
) -> None:
    other = {"A": "C", "C": "G", "G": "T", "T": "A"}
    snvs = [Variant("c", at, sequence[at], other[sequence[at]]) for at in (150, 160, 3, 300)]
    deletion = Variant("c", 158, sequence[158:162], sequence[158])  # the one at 160 overlaps it
    carriers = np.array([3, 1, 2, 2, 1], np.uint8)
    phased = PhasedVariants("s", [*snvs, deletion], carriers, (".",) * 5, {}, {})
    done: list[int] = []
    found = score_haplotypes(run, genome, phased, context=64, batch_size=2, report=done.append)
    assert done == [2, 4, 5]
    assert found.together.tolist() == [[2, 1], [0, 0], [0, 1], [0, 1], [2, 0]]
    assert (np.isfinite(found.llr) == (found.together > 0)).all()
    alone = score_variants(run, genome, snvs, context=64)
    np.testing.assert_allclose(found.llr[[0, 2, 3], 1], alone[[0, 2, 3]], atol=1e-4)
    first = sequence[:150] + snvs[0].alt + sequence[151:159] + sequence[162:]
    bits = []
    for text in (sequence[118:182], first[118:182]):
        codes = encode_ascii(text.encode())
        strands = [run.tokenizer.encode_codes(c) for c in (codes, reverse_complement(codes))]
        bits.append(log_likelihood_bits(run.model, [torch.from_numpy(row) for row in strands]))
    assert found.llr[0, 0] == pytest.approx(np.mean(bits[0] - bits[1]), abs=1e-4)


def test_a_window_of_several_phase_sets_has_no_score(
    run: Run, genome: GenomeStore, sequence: str
) -> None:
    other = {"A": "C", "C": "G", "G": "T", "T": "A"}
    variants = [Variant("c", at, sequence[at], other[sequence[at]]) for at in (150, 160, 300)]
    carriers = np.array([1, 1, 2], np.uint8)
    phased = PhasedVariants("s", variants, carriers, ("7", "8", "8"), {}, {})
    found = score_haplotypes(run, genome, phased, context=64)
    assert np.isfinite(found.llr).tolist() == [[False, False], [False, False], [False, True]]
    assert found.together.sum() == 1
