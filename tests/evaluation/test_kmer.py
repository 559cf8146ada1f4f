import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.baselines.kmer import KmerClassifier, kmer_features
from dnassm.baselines.majority import MajorityClassifier
from dnassm.data.alphabet import decode, encode_ascii, reverse_complement
from dnassm.errors import ConfigError, FormatError, LabelError
from dnassm.metrics import auroc

BASELINES = [KmerClassifier, MajorityClassifier]


def other_strand(sequence):
    return decode(reverse_complement(encode_ascii(sequence.encode())))


def words(sequence, k):
    found = [sequence[i : i + k].upper() for i in range(len(sequence) - k + 1)]
    return [word for word in found if set(word) <= set("ACGT")]


def two_classes(n=120, length=80, seed=0):
    """Sequences rich in GC against sequences rich in AT."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    gc = np.array([0.4, 0.6])[labels]
    letters = np.where(rng.random((n, length)) < gc[:, None], "GC", "AT")
    sequences = ["".join(rng.choice(list(pair)) for pair in row) for row in letters]
    return sequences, [("at", "gc")[c] for c in labels]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ACGTacgtNU", max_size=20), max_size=5), st.integers(1, 4))
def test_features_are_the_square_roots_of_k_mer_frequencies(sequences, k):
    features = kmer_features(sequences, [k]).toarray()
    assert features.shape == (len(sequences), 4**k)
    for row, sequence in zip(features, sequences, strict=True):
        expected = np.zeros(4**k)
        found = words(sequence.upper().replace("U", "T"), k)
        for word in found:
            expected[int("".join(str("ACGT".index(b)) for b in word), 4)] += 1 / len(found)
        np.testing.assert_allclose(row**2, expected, atol=1e-12)


def test_canonical_features_do_not_know_the_strand():
    sequences, _ = two_classes(10)
    turned = [other_strand(s) for s in sequences]
    one, two = (kmer_features(s, [1, 2, 3], canonical=True).toarray() for s in (sequences, turned))
    assert one.shape[1] == 2 + 10 + 32
    np.testing.assert_allclose(one, two)
    assert not np.allclose(
        kmer_features(sequences, [3]).toarray(), kmer_features(turned, [3]).toarray()
    )


def test_cutting_the_work_into_chunks_changes_nothing(monkeypatch):
    sequences, _ = two_classes(23)
    whole = kmer_features(sequences, [1, 4]).toarray()
    monkeypatch.setattr("dnassm.baselines.kmer._BASES_PER_CHUNK", 200)
    np.testing.assert_array_equal(kmer_features(sequences, [1, 4]).toarray(), whole)


def test_ten_thousand_sequences_take_a_moment():
    letters = np.random.default_rng(0).choice(list("ACGT"), size=(10_000, 200))
    sequences = ["".join(row) for row in letters]
    start = time.process_time()
    kmer_features(sequences, [1, 2, 3, 4, 5, 6])
    assert time.process_time() - start < 8


@pytest.mark.parametrize("canonical", [False, True])
def test_the_classifier_learns_composition_and_names_its_classes(canonical):
    sequences, labels = two_classes()
    model = KmerClassifier(ks=(1, 2, 3), canonical=canonical).fit(sequences, labels)
    test, truth = two_classes(seed=1)
    scores = model.predict_proba(test)
    assert model.classes == ("at", "gc")
    assert auroc([int(t == "gc") for t in truth], scores[:, 1], resamples=10).value > 0.95


def test_the_penalty_comes_from_the_training_set_and_noise_is_penalised_hardest():
    rng = np.random.default_rng(0)
    sequences = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(80)]
    labels = [str(x) for x in rng.integers(2, size=80)]
    assert KmerClassifier(ks=(4,)).fit(sequences, labels).C == 0.1


def test_a_class_with_a_single_sequence_can_be_learnt():
    model = KmerClassifier(ks=(2,)).fit(["AAAA", "AAAT", "GGGG"], ["a", "a", "g"])
    assert model.C == 1.0
    assert model.predict_proba(["GGGGG"])[0, 1] > model.predict_proba(["AAAAA"])[0, 1]


@pytest.mark.parametrize("baseline", BASELINES)
def test_probabilities_are_one_row_per_sequence_and_add_to_one(baseline):
    sequences, labels = two_classes(40)
    model = baseline().fit(sequences, labels)
    scores = model.predict_proba([*sequences[:7], "", "NNNN", "A"])
    assert scores.shape == (10, 2)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert model.predict_proba([]).shape == (0, 2)


def test_the_majority_class_scores_every_sequence_by_class_frequency():
    model = MajorityClassifier().fit(["A", "C", "G", "T"], ["x", "y", "y", "y"])
    assert model.classes == ("x", "y")
    assert model.predict_proba(["AC", "GT"]).tolist() == [[0.25, 0.75]] * 2


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_training_set_that_does_not_fit_is_refused(baseline):
    with pytest.raises(LabelError, match="at least one sequence"):
        baseline().fit([], [])
    with pytest.raises(LabelError, match="2 sequences but 1 labels"):
        baseline().fit(["A", "C"], ["x"])
    with pytest.raises(LabelError, match="fit first"):
        baseline().predict_proba(["A"])


def test_what_the_classifier_cannot_use_is_refused_by_name():
    with pytest.raises(LabelError, match="at least 2 classes, got only 'x'"):
        KmerClassifier().fit(["A", "C"], ["x", "x"])
    with pytest.raises(ConfigError, match="1 to 8, got 9"):
        kmer_features(["A"], [9])
    with pytest.raises(FormatError, match=r"sequence 2: .*'E' at position 1"):
        kmer_features(["ACGT", "AEG"], [2])
