import pytest

from dnassm.data.aliases import chromosome_key, match_contigs
from dnassm.data.store import build_store
from dnassm.errors import GenomeError

YEAST = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XII", "XIII"]
YEAST += ["XIV", "XV", "XVI"]
WORM = ["I", "II", "III", "IV", "V", "X", "MtDNA"]
HUMAN = [str(i) for i in range(1, 23)] + ["X", "Y", "MT"]


@pytest.fixture
def genome(tmp_path):
    def build(names):
        path = tmp_path / "g.fa"
        path.write_text("".join(f">{name}\n{'A' * (i + 1)}\n" for i, name in enumerate(names)))
        return build_store([path], tmp_path / "g", force=True)

    return build


@pytest.mark.parametrize(
    ("store", "file", "expected"),
    [
        (HUMAN, ["chr1", "chrX", "chrM"], ["1", "X", "MT"]),
        (HUMAN, ["NC_000001.11", "NC_000023.11", "NC_012920.1"], ["1", "X", "MT"]),
        (["NC_000001.10", "NC_000024.9"], ["1", "chrY"], ["NC_000001.10", "NC_000024.9"]),
        # a mouse's chromosome 1 and X, and a yeast's IV, in a human genome and another yeast's
        (HUMAN, ["NC_000067.7", "NC_000086.8", "1"], [None, None, "1"]),
        ([*YEAST, "Mito"], ["chrIV", "chrM"], ["IV", "Mito"]),
        ([*YEAST, "Mito"], ["NC_001136.10", "chrMito"], [None, "Mito"]),
        ([*YEAST, "Mito"], ["chr4", "16", "MT", "2-micron"], ["IV", "XVI", "Mito", None]),
        ([str(i + 1) for i in range(16)], YEAST, [str(i + 1) for i in range(16)]),
        # one Roman numeral alone proves nothing; X of an animal is no 10
        ([str(i + 1) for i in range(16)], ["IV", "2"], [None, "2"]),
        (WORM, ["chr1", "chrX", "chrMtDNA"], [None, "X", "MtDNA"]),
        (HUMAN, ["chrX", "chr10"], ["X", "10"]),
        ([*YEAST], ["17", "chrI"], [None, "I"]),
        (["chr1", "1"], ["1", "chr1"], ["1", "chr1"]),
        (["scaffold_1", "1"], ["scaffold_1", "1"], ["scaffold_1", "1"]),
        (["1", "2"], ["scaffold_1", "chr2", "CHR1"], [None, "2", "1"]),
    ],
)
def test_a_name_means_the_contig_that_the_rule_says(genome, store, file, expected):
    match = match_contigs(file, genome(store))
    assert [match.names.get(name) for name in file] == expected
    assert list(match.missing) == [n for n, e in zip(file, expected, strict=True) if e is None]


def test_an_explicit_name_stands_above_every_rule(genome):
    store = genome(["part", "17"])
    assert match_contigs(["chr17"], store, explicit={"chr17": "part"}).names == {"chr17": "part"}
    with pytest.raises(GenomeError, match="no contig 'pert'"):
        match_contigs(["chr17"], store, explicit={"chr17": "pert"})


@pytest.mark.parametrize(
    ("store", "file", "said"),
    [
        (
            ["a", "b"],
            ["chr1", "chr2"],
            r"f\.vcf: no contig .* chr1, chr2; the genome has a, b",
        ),
        (["1"], ["chr1", "1"], "f.vcf: '1' and 'chr1' both mean contig '1'"),
        (["chrM", "MT"], ["M"], "'M' could be 'chrM' or 'MT'"),
        (["NC_000001.10", "NC_000001.11"], ["chr1"], "could be"),
    ],
)
def test_what_has_no_answer_or_two_is_refused(genome, store, file, said):
    with pytest.raises(GenomeError, match=said):
        match_contigs(file, genome(store), source="f.vcf")


def test_a_contig_of_another_length_is_another_assembly(genome):
    store = genome(["1", "2"])
    lengths = {"chr1": 1, "chr2": 9, "chr3": 5}
    assert match_contigs(["chr1"], store, lengths=lengths).names == {"chr1": "1"}
    with pytest.raises(GenomeError, match=r"'chr2' is stated to have 9 bp, '2' of .* has 2"):
        match_contigs(["chr2"], store, lengths=lengths, source="f.vcf")
    explicit = match_contigs(["chr2"], store, lengths=lengths, explicit={"chr2": "2"})
    assert explicit.names == {"chr2": "2"}


def test_no_names_match_nothing(genome):
    assert match_contigs([], genome(["1"])).names == {}


@pytest.mark.parametrize("name", ["chr", "NC_000025.1", "NC_1", "chrUn_1", "2-micron", "M_1"])
def test_names_that_are_no_alias_stay_different(name):
    assert chromosome_key(name) == name.removeprefix("chr") or name == "chr"
    assert chromosome_key(name) != "MT"
