"""The species sampler: species, then contig, then window, each by its weight."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnassm.data.places import Choice, common, without
from dnassm.data.runs import Runs
from dnassm.data.samplers.species import SpeciesSampler, read_species
from dnassm.data.store import GenomeStore, build_store
from dnassm.errors import ConfigError, FormatError, GenomeError

LENGTH = 50
SIZES = {
    "fly#1#chr1": 8000,
    "fly#1#chr2": 1000,
    "fly#2#scrap": LENGTH - 1,
    "yeast#1#I": 500,
    "yeast#1#II": 500,
    "plasmid": 300,
    "phage": 100,
}
DRAWS = 8000


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    rng = np.random.default_rng(8)
    folder = tmp_path_factory.mktemp("genomes")
    lines = [f">{name}\n{''.join(rng.choice(list('ACGT'), n))}\n" for name, n in SIZES.items()]
    (folder / "genomes.fa").write_text("".join(lines))
    return build_store([folder / "genomes.fa"], folder / "store")


def sampler(store: GenomeStore, **options) -> SpeciesSampler:
    return SpeciesSampler(store, length=LENGTH, **options)


def shares(drawn: SpeciesSampler, of=lambda contig: contig) -> dict[str, float]:
    windows = [drawn(1, *divmod(i, len(drawn))) for i in range(DRAWS)]
    counts = collections.Counter(of(window.contig) for window in windows)
    return {name: count / DRAWS for name, count in counts.items()}


def about(share: float) -> object:
    """Five standard deviations of a share of the draws."""
    return pytest.approx(share, abs=5 * np.sqrt(share * (1 - share) / DRAWS))


def species_of(contig: str) -> str:
    return contig.split("#")[0] if "#" in contig else "unnamed"


def test_species_and_their_contigs_are_drawn_equally_whatever_their_size(store):
    drawn = sampler(store)
    assert drawn.species == ("fly", "yeast", "unnamed")
    assert shares(drawn) == {name: about(1 / 6) for name in SIZES if name != "fly#2#scrap"}


def test_weights_by_bases_count_the_starts_of_a_species_and_of_a_contig(store):
    starts = {name: size - LENGTH + 1 for name, size in SIZES.items() if size >= LENGTH}
    of_species = collections.Counter()
    for name, count in starts.items():
        of_species[species_of(name)] += count
    by_species = shares(sampler(store, species_weights="bases"), species_of)
    assert by_species == {n: about(c / of_species.total()) for n, c in of_species.items()}
    by_contig = shares(sampler(store, contig_weights="bases"))
    assert by_contig == {n: about(c / of_species[species_of(n)] / 3) for n, c in starts.items()}
    both = sampler(store, species_weights="bases", contig_weights="bases")
    assert shares(both) == {n: about(c / sum(starts.values())) for n, c in starts.items()}


def test_every_start_of_a_contig_is_as_likely_as_another(store):
    drawn = sampler(store, species_weights={"fly": 0, "yeast": 1, "unnamed": 0})
    windows = [drawn(0, *divmod(i, len(drawn))) for i in range(45_100)]
    for contig in ("yeast#1#I", "yeast#1#II"):
        starts = collections.Counter(w.start for w in windows if w.contig == contig)
        assert set(starts) == set(range(451))
        assert 15 < min(starts.values()) <= max(starts.values()) < 90


def test_a_species_of_weight_zero_is_never_drawn(store):
    drawn = sampler(store, species_weights={"fly": 0, "yeast": 3, "unnamed": 1})
    assert shares(drawn, species_of) == {"yeast": about(0.75), "unnamed": about(0.25)}


def test_the_species_of_a_contig_may_stand_in_a_mapping_or_a_table(store, tmp_path):
    table = dict.fromkeys(SIZES, "animal") | {"phage": "virus", "plasmid": "virus"}
    path = tmp_path / "species.tsv"
    path.write_text("# contig\tspecies\n" + "".join(f"{c}\t{s}\n" for c, s in table.items()))
    weights = {"animal": 1, "virus": 4}
    drawn = [
        sampler(store, species=given, species_weights=weights) for given in (table, path, str(path))
    ]
    assert shares(drawn[0], table.__getitem__) == {"animal": about(0.2), "virus": about(0.8)}
    calls = [(seed, 0, i) for seed in range(3) for i in range(50)]
    assert len({tuple(one(*call) for call in calls) for one in drawn}) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"species": {"phage": "virus"}}, ConfigError, "none for 'fly#1#chr1'"),
        ({"species_weights": {"flyy": 1}}, ConfigError, "no species 'flyy'.*Did you mean 'fly'"),
        ({"species_weights": {"fly": 1}}, ConfigError, "none for 'yeast'; write 0"),
        ({"species_weights": "all"}, ConfigError, "species_weights: expected 'equal' or 'bases'"),
        ({"contig_weights": "all"}, ConfigError, "contig_weights: expected 'equal' or 'bases'"),
        (
            {"species_weights": {"fly": -1, "yeast": 1, "unnamed": 1}},
            ConfigError,
            "species_weights: expected weights of at least 0",
        ),
        (
            {"species_weights": {"fly": 0, "yeast": 0, "unnamed": 0}},
            ConfigError,
            "species_weights: expected a weight above 0",
        ),
        ({"split": "test"}, GenomeError, "split 'test' is empty"),
    ],
)
def test_a_wrong_argument_is_named(options, error, message, store):
    with pytest.raises(error, match=message) as caught:
        sampler(store, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tx\nb\n", r"species.tsv:2: expected two columns, contig and species, got 'b'"),
        ("a x y\n", r"species.tsv:1: expected two columns"),
        ("a\tx\na\tx\n#\na\ty\n", r"species.tsv:4: contig 'a' is of 'x' in an earlier line"),
    ],
)
def test_a_broken_table_is_refused_by_line(text, message, tmp_path: Path):
    path = tmp_path / "species.tsv"
    path.write_text(text)
    with pytest.raises(FormatError, match=message):
        read_species(path)


@given(weights=st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any))
def test_a_choice_gives_each_weight_its_share_of_the_numbers(weights):
    choice = Choice([float(weight) for weight in weights], of="weights")
    total = sum(weights)
    edge = 0
    for index, weight in enumerate(weights):
        first, edge = edge, edge + weight
        if weight:  # one inside of either border, where the division was rounded
            assert choice.draw((first << 64) // total + 1) == index
            assert choice.draw((edge << 64) // total - 1) == index
    assert weights[choice.draw(0)] > 0
    assert weights[choice.draw((1 << 64) - 1)] > 0


stretches = st.lists(st.tuples(st.integers(-5, 40), st.integers(0, 12)), max_size=6)


@given(one=stretches, other=stretches)
def test_common_and_without_are_those_of_sets_of_positions(one, other):
    def positions(runs: Runs) -> set[int]:
        pairs = zip(runs.starts.tolist(), runs.ends.tolist(), strict=True)
        return {p for start, end in pairs for p in range(start, end)}

    left, right = (
        Runs.merge([s for s, _ in some], [s + n for s, n in some]) for some in (one, other)
    )
    assert positions(common(left, right)) == positions(left) & positions(right)
    assert positions(without(left, right)) == positions(left) - positions(right)
