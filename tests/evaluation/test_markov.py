import gzip
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.baselines.markov import bits_per_base, fit_markov, fit_mixture
from dnassm.data.alphabet import decode, encode_ascii, reverse_complement
from dnassm.data.split import parse_split
from dnassm.errors import ConfigError


def codes(text):
    return encode_ascii(text.encode())


def random_codes(length, seed=0):
    return np.random.default_rng(seed).integers(4, size=length).astype(np.uint8)


def brute_bits(train, test, order, alpha, both_strands):
    """The definition, one window at a time, on strings."""
    strands = [
        s for t in train for s in ([t, decode(reverse_complement(codes(t)))][: 1 + both_strands])
    ]
    words = [s[i : i + order + 1].upper() for s in strands for i in range(len(s) - order)]
    result = []
    for end, base in enumerate(test.upper()):
        word = test[end - order : end + 1].upper()
        if end < order or set(word) - set("ACGT"):
            result.append(np.nan)
            continue
        context = sum(words.count(word[:-1] + b) for b in "ACGT")
        result.append(-np.log2((words.count(word[:-1] + base) + alpha) / (context + 4 * alpha)))
    return result


dna = st.text("ACGTacgtN", max_size=25)


@settings(max_examples=60, deadline=None)
@given(st.lists(dna, max_size=3), dna, st.integers(0, 4), st.booleans())
def test_bits_are_the_definition_counted_one_window_at_a_time(train, test, order, both_strands):
    model = fit_markov([codes(t) for t in train], order, alpha=0.5, both_strands=both_strands)
    expected = brute_bits(train, test, order, 0.5, both_strands)
    np.testing.assert_allclose(model.bits(codes(test)), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [0, 3, 11])
def test_with_both_strands_counted_a_sequence_and_its_reverse_complement_give_one_model(order):
    x = random_codes(3000)
    one, other = fit_markov([x], order), fit_markov([reverse_complement(x)], order)
    assert np.array_equal(one.counts, other.counts)


def test_long_sequences_are_counted_the_same_in_chunks(monkeypatch):
    x = random_codes(1000)
    x[[100, 500]] = 4
    whole, mixture = fit_markov([x], 3), fit_mixture([x], 3, block=50)
    monkeypatch.setattr("dnassm.baselines.markov._CHUNK", 7)
    parts, mixture_parts = fit_markov([x], 3), fit_mixture([x], 3, block=50)
    assert np.array_equal(whole.counts, parts.counts)
    np.testing.assert_array_equal(whole.bits(x), parts.bits(x))
    np.testing.assert_allclose(mixture.bits(x), mixture_parts.bits(x))


def test_the_probabilities_of_the_four_bases_add_to_one_in_every_context():
    x = random_codes(2000)
    for model in (fit_markov([x], 2), fit_mixture([x], 2, block=100)):
        for context in product("ACGT", repeat=2):
            words = ["".join(context) + base for base in "ACGT"]
            assert sum(2 ** -model.bits(codes(w))[-1] for w in words) == pytest.approx(1)


def test_a_mixture_never_gives_a_base_zero_probability():
    train = codes("AC" * 400)
    model = fit_mixture([train], 4, block=20)
    bits = model.bits(codes("ACACGTTTGACA"))
    assert np.isfinite(bits[4:]).all()
    assert bits[4] > 5  # G was never seen, nor was its complement after any such context


def test_a_mixture_finds_the_order_that_generated_the_sequence():
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(4, 0.5), size=16)
    x = [0, 1]
    for u in rng.random(60_000):
        x.append(int(min(np.searchsorted(np.cumsum(table[4 * x[-2] + x[-1]]), u), 3)))
    x = np.array(x, dtype=np.uint8)
    train, test = x[:40_000], x[40_000:]
    alone = bits_per_base(fit_markov([train], 2, both_strands=False), [test]).value
    too_high = bits_per_base(fit_markov([train], 8, both_strands=False), [test]).value
    mixture = bits_per_base(fit_mixture([train], 8, both_strands=False, block=1000), [test]).value
    assert too_high > alone + 0.1
    assert mixture == pytest.approx(alone, abs=0.02)


def test_what_is_scored_and_what_is_skipped_is_counted():
    model = fit_markov([random_codes(500)], 2)
    result = bits_per_base(model, [codes("ACGTACNTACG"), codes("AC"), codes("")])
    assert (result.scored, result.skipped) == (4 + 2, 5 + 2)


def test_e_coli_with_every_tenth_block_held_out_gives_the_known_bits_per_base(real_data):
    fasta = real_data / "ecoli_mg1655" / "GCF_000005845.2_ASM584v2_genomic.fna.gz"
    with gzip.open(fasta) as lines:
        genome = encode_ascii(b"".join(x.strip() for x in lines if not x.startswith(b">")))
    parts = parse_split("blocks:size=50000,every=10").apply({"chromosome": len(genome)})
    train, test = ([genome[i.start : i.end] for i in parts[p]] for p in ("train", "test"))
    assert bits_per_base(fit_markov(train, 7), test).value == pytest.approx(1.9351, abs=5e-5)
    # A back-off with one pseudo-count for all contexts gives 1.9342; weights by count do better.
    assert bits_per_base(fit_mixture(train, 7), test).value == pytest.approx(1.9331, abs=2e-4)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: fit_markov([x], 13), "0 to 12, got 13"),
        (lambda x: fit_markov([x], 2, alpha=0), "above 0, got 0"),
        (lambda x: fit_mixture([x], -1), "got -1"),
        (lambda x: fit_mixture([x], 2, held_out_every=1), "held_out_every"),
        (lambda x: fit_mixture([x], 2, block=10_000), "fewer than 10 blocks"),
        (lambda x: bits_per_base(fit_markov([x], 5), [x[:5]]), "none of 5 test bases"),
    ],
)
def test_arguments_that_make_no_model_are_refused(call, said):
    with pytest.raises(ConfigError, match=said):
        call(random_codes(1000))
