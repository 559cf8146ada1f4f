import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.alphabet import PAD, N, decode, reverse_complement
from dnassm.data.centre import GenomeReader, centred_codes, centred_start
from dnassm.data.interval import Interval
from dnassm.data.store import build_store
from dnassm.errors import ConfigError, GenomeError


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("centre")
    rng = np.random.default_rng(1)
    long = "".join(rng.choice(list("ACGTacgtNRYSWKMBDHV"), 200_000))
    (folder / "g.fa").write_text(f">c\nACGTTGCAac\n>long\n{long}\n")
    return build_store([folder / "g.fa"], folder / "g")


@pytest.mark.parametrize(
    ("interval", "length", "start"),
    [
        (Interval("c", 100, 101), 1, 100),
        (Interval("c", 100, 101), 2, 99),
        (Interval("c", 100, 101), 3, 99),
        (Interval("c", 100, 101), 10, 95),
        (Interval("c", 100, 101, "-"), 10, 96),
        (Interval("c", 100, 110), 10, 100),
        (Interval("c", 100, 110, "-"), 10, 100),
        (Interval("c", 100, 111, "-"), 11, 100),
        (Interval("c", 100, 110), 4, 103),
        (Interval("c", 1, 2), 10, -4),
    ],
)
def test_the_middle_base_of_the_interval_is_the_middle_base_of_the_window(interval, length, start):
    assert centred_start(interval, length) == start


@given(st.integers(0, 200), st.integers(0, 60), st.integers(1, 99))
def test_the_window_of_the_other_strand_is_the_mirror_image(start, size, length):
    genome = 1000
    plus = centred_start(Interval("c", start, start + size), length)
    mirrored = Interval("c", genome - start - size, genome - start, "-")
    assert centred_start(mirrored, length) == genome - plus - length


@given(st.integers(0, 300), st.integers(1, 99), st.sampled_from("+-"))
def test_an_interval_of_the_windows_length_is_its_own_window(start, length, strand):
    assert centred_start(Interval("c", start, start + length, strand), length) == start


def test_a_window_over_both_ends_is_filled_and_read_on_its_strand(store):
    assert decode(centred_codes(store, Interval("c", 4, 5), 14)) == "NNNACGTTGCAacN"
    assert decode(centred_codes(store, Interval("c", 0, 1), 4, fill=PAD)) == "..AC"
    minus = centred_codes(store, Interval("c", 4, 5, "-"), 5)
    assert decode(minus) == decode(reverse_complement(store.fetch(Interval("c", 2, 7))))
    with pytest.raises(ConfigError, match="at least 1 base, got 0"):
        centred_codes(store, Interval("c", 4, 5), 0)
    with pytest.raises(GenomeError, match="'d'"):
        centred_codes(store, Interval("d", 4, 5), 3)


reads = st.lists(
    st.tuples(st.sampled_from(["c", "long"]), st.integers(-9_000, 210_000), st.integers(0, 9_000)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(reads, st.sampled_from([N, PAD]))
def test_reads_in_any_order_give_what_the_store_has_and_fill_outside(store, several, fill):
    reader = GenomeReader(store, fill=fill)
    whole = {name: store.fetch(Interval(name, 0, size)) for name, size in store.lengths.items()}
    concrete = str.maketrans("RYSWKMBDHV", "ACCAGACAAA")
    for contig, start, size in several:
        at = np.arange(start, start + size)
        inside = (at >= 0) & (at < whole[contig].size)
        expected = np.where(inside, whole[contig][np.where(inside, at, 0)], fill)
        assert np.array_equal(reader.codes(contig, start, start + size), expected)
        letters = decode(np.where(inside, expected, PAD).astype(np.uint8))
        found = reader.letters(contig, start, start + size)
        assert found == letters.upper().translate(concrete)


def test_reads_in_the_order_of_the_genome_fetch_few_stretches(store, monkeypatch):
    calls = []
    fetch = type(store).fetch
    monkeypatch.setattr(type(store), "fetch", lambda *a, **k: calls.append(a) or fetch(*a, **k))
    reader = GenomeReader(store)
    for start in range(0, 190_000, 100):
        reader.codes("long", start, start + 1000)
    assert len(calls) < 15
