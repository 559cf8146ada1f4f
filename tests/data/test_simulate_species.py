"""Related species: tree, genomes, conserved elements and alignment agree with each other."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.annotation import read_bed
from dnassm.data.sampler import SAMPLERS
from dnassm.data.simulation.kinds import simulate_to
from dnassm.data.simulation.species import simulate_species, write_species
from dnassm.data.simulation.tree import parse_newick, random_tree
from dnassm.data.store import build_store
from dnassm.errors import ArtifactError, ConfigError

TREE = "((man:0.02,chimp:0.02):0.05,mouse:0.3);"
PATHS = {("man", "chimp"): 0.04, ("man", "mouse"): 0.37, ("chimp", "mouse"): 0.37}


@pytest.fixture(scope="module")
def species():
    return simulate_species(length=400_000, seed=3, contigs=2, tree=TREE)


@pytest.fixture(scope="module")
def folder(species, tmp_path_factory):
    out = tmp_path_factory.mktemp("sim") / "species"
    write_species(species, out)
    return out


def sequences(path):
    records = path.read_text().split(">")[1:]
    return {r.split()[0]: "".join(r.splitlines()[1:]) for r in records}


def rows_of(path):
    """Contig -> species -> gapped row, straight from the MAF."""
    rows = {}
    for line in path.read_text().splitlines():
        if line.startswith("s "):
            _, source, start, size, strand, total, text = line.split()
            name, contig = source.split(".")
            assert (start, strand, size) == ("0", "+", total)
            assert len(text.replace("-", "")) == int(size)
            rows.setdefault(contig, {})[name] = text
    return rows


def test_the_rows_of_the_alignment_are_the_genomes(folder):
    rows = rows_of(folder / "alignment.maf")
    assert list(rows) == ["sim1", "sim2"]
    for contig, texts in rows.items():
        assert len({len(text) for text in texts.values()}) == 1
        for name, text in texts.items():
            assert text.replace("-", "") == sequences(folder / f"{name}.fa")[f"{name}#1#{contig}"]
            assert any(base.islower() for base in text)
        columns = np.array([list(text) for text in texts.values()])
        # A column without any base was inserted and deleted again; there are few.
        assert (columns == "-").all(axis=0).mean() < 0.01


def expected_identity(length, rate=1.0, kappa=4.0):
    beta = rate / (kappa + 2)
    transition = 0.25 + 0.25 * np.exp(-4 * beta * length)
    transition -= 0.5 * np.exp(-2 * (kappa + 1) * beta * length)
    return 1 - transition - 2 * (0.25 - 0.25 * np.exp(-4 * beta * length))


def test_species_differ_as_their_tree_says_and_conserved_elements_ten_times_less(folder):
    rows = rows_of(folder / "alignment.maf")
    assert (folder / "tree.nwk").read_text().strip() == "((man:0.02,chimp:0.02):0.05,mouse:0.3):0;"
    genomes = {name: sequences(folder / f"{name}.fa") for name in ("man", "chimp", "mouse")}
    places = {
        name: [r.interval for r in read_bed(folder / f"{name}.conserved.bed")] for name in genomes
    }
    for pair in combinations(genomes, 2):
        elements = [
            [genomes[name][i.contig][i.start : i.end].upper() for i in places[name]]
            for name in pair
        ]
        assert list(map(len, elements[0])) == list(map(len, elements[1]))
        one, other = (np.frombuffer("".join(each).encode(), np.uint8) for each in elements)
        conserved = expected_identity(PATHS[pair], rate=0.1)
        assert (one == other).mean() == pytest.approx(conserved, abs=0.006)
        same = []
        for contig, texts in rows.items():
            a, b = (np.frombuffer(texts[name].upper().encode(), np.uint8) for name in pair)
            neutral = np.ones(len(genomes[pair[0]][f"{pair[0]}#1#{contig}"]), dtype=bool)
            for place in places[pair[0]]:
                neutral[place.start : place.end] &= place.contig != f"{pair[0]}#1#{contig}"
            kept = (a != ord("-")) & (a != ord("N"))
            kept[a != ord("-")] &= neutral
            kept &= b != ord("-")
            same.append((a == b)[kept])
        assert np.concatenate(same).mean() == pytest.approx(
            expected_identity(PATHS[pair]), abs=0.005
        )


def test_elements_are_the_coding_exons_and_stretches_without_features(species, folder):
    names = [record.name for record in read_bed(folder / "ancestor.conserved.bed")]
    assert names == [record.name for record in read_bed(folder / "mouse.conserved.bed")]
    assert {name.split(".")[1] for name in names} == {"coding", "noncoding"}
    coding = {f.interval.start for f in species.ancestor.features if f.type == "CDS"}
    for place, kind in species.elements:
        assert (place.start in coding) == (kind == "coding")


def test_all_species_fit_into_one_store_and_are_sampled_apart(folder, tmp_path):
    fastas = [folder / f"{name}.fa" for name in ("man", "chimp", "mouse")]
    store = build_store(fastas, tmp_path / "store")
    sampler = SAMPLERS["species"](store, split="train", length=1000, rc_probability=0.0)
    drawn = Counter(sampler(0, 0, index).contig.split("#")[0] for index in range(300))
    assert set(drawn) == {"man", "chimp", "mouse"}


def test_insertions_and_deletions_are_about_as_frequent_as_they_should_be(folder):
    events = bases = 0
    for texts in rows_of(folder / "alignment.maf").values():
        man, chimp = (np.frombuffer(texts[n].encode(), np.uint8) for n in ("man", "chimp"))
        kept = (man != ord("-")) | (chimp != ord("-"))
        for gap in (man[kept] == ord("-"), chimp[kept] == ord("-")):
            events += int((np.diff(gap.astype(np.int8)) == 1).sum())
        bases += int(kept.sum())
    assert events / bases == pytest.approx(2 * 0.03 * 0.04, rel=0.25)


def test_the_same_seed_gives_the_same_species():
    one, two, other = (simulate_species(length=100_000, seed=s, species=3) for s in (1, 1, 2))
    assert one == two
    assert one.genomes != other.genomes
    assert [leaf.name for leaf in one.tree.leaves()] != []


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.floats(0.01, 2), st.integers(0, 10**6))
def test_a_random_tree_has_its_species_at_its_height(species, height, seed):
    root = random_tree(species, height, np.random.default_rng(seed))
    assert sorted(leaf.name for leaf in root.leaves()) == sorted(
        f"sp{i + 1}" for i in range(species)
    )
    assert parse_newick(root.newick() + ";").newick().count(",") == species - 1
    heights = []

    def walk(node, above):
        heights.extend([] if node.children else [above + node.length])
        for child in node.children:
            walk(child, above + node.length)

    walk(root, 0.0)
    np.testing.assert_allclose(heights, height)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ("((a:1,b:1);", "expected Newick"),
        ("(a:0.1,b:0.1);(c:0.1,d:0.1);", "Text after semicolon"),
        ("(a:0.1,b:0.1)(c:0.1);", "expected brackets and commas"),
        ("(a:0.1,a:0.1);", "different names, got a, a"),
        ("a:0.1;", "at least 2 species"),
        ("(a,b:0.1);", "a length of at least 0 above 'a'"),
        ("(a:-1,b:0.1);", "a length of at least 0 above 'a', got -1"),
        ("(:0.1,b:0.1);", "a name at every leaf"),
        ("('../a':0.1,b:0.1);", "expected names of letters"),
    ],
)
def test_a_tree_that_is_none_is_refused(tree, words):
    with pytest.raises(ConfigError, match=words):
        parse_newick(tree)


def test_a_tree_may_be_a_file_and_a_setting_of_another_kind_is_refused(tmp_path):
    (tmp_path / "tree.nwk").write_text("(a:0.1,b:0.1);\n")
    tree = str(tmp_path / "tree.nwk")
    made = simulate_to(tmp_path / "out", "species", length=100_000, seed=0, tree=tree, species=None)
    assert list(made["species"]) == ["a", "b"]
    with pytest.raises(ArtifactError, match=r"nothing\.nwk: expected Newick"):
        simulate_to(tmp_path / "x", "species", length=100_000, seed=0, tree="nothing.nwk")
    with pytest.raises(ConfigError, match="kind 'bacterial' has no setting 'tree'"):
        simulate_to(tmp_path / "x", "bacterial", length=20_000, seed=0, tree=tree)
