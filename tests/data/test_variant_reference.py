import csv
import gzip

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnassm.data.aliases import ContigMatch, match_contigs
from dnassm.data.alphabet import decode
from dnassm.data.centre import GenomeReader
from dnassm.data.store import build_store
from dnassm.data.variant_reference import (
    RefMatch,
    check_variants,
    left_align,
    left_align_all,
    place_variants,
)
from dnassm.data.variant_windows import VariantWindower
from dnassm.data.variants import Variant, read_variants
from dnassm.errors import ConfigError, GenomeError


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")

    def build(**contigs):
        fasta = "".join(f">{name}\n{bases}\n" for name, bases in contigs.items())
        (folder / "g.fa").write_text(fasta)
        return build_store([folder / "g.fa"], folder / "g", force=True)

    return build


@pytest.mark.parametrize(
    ("variant", "status"),
    [
        (Variant("c", 0, "A", "G"), RefMatch.MATCH),
        (Variant("c", 4, "ACG", "A"), RefMatch.MATCH),  # soft-masked
        (Variant("c", 0, "G", "A"), RefMatch.SWAPPED),
        (Variant("c", 0, "AT", "ACG"), RefMatch.SWAPPED),
        (Variant("c", 0, "G", "T"), RefMatch.MISMATCH),
        (Variant("c", 8, "N", "T"), RefMatch.MATCH),
        (Variant("c", 8, "A", "T"), RefMatch.MISMATCH),
        (Variant("c", 9, "A", "G"), RefMatch.MATCH),  # R counts as A
        (Variant("c", 9, "G", "C"), RefMatch.MISMATCH),
        (Variant("c", 9, "AA", "C"), RefMatch.OUTSIDE),
        (Variant("c", 9, "C", "AA"), RefMatch.MISMATCH),
        (Variant("c", -1, "AA", "C"), RefMatch.OUTSIDE),
        (Variant("d", 0, "A", "C"), RefMatch.NO_CONTIG),
    ],
)
def test_ref_is_called_what_it_is(genome, variant, status):
    store = genome(c="ACGTacgtNR")
    check = check_variants([variant], store, max_wrong=None)
    assert check.status.tolist() == [status]
    assert check.counts() == {status: 1}
    assert check.matching().tolist() == ([0] if status == RefMatch.MATCH else [])


def test_too_many_wrong_variants_stop_the_run(genome):
    store = genome(c="ACGTacgtNR")
    right, wrong, away = (
        Variant("c", 0, "A", "G"),
        Variant("c", 1, "A", "G"),
        Variant("x", 0, "A", "G"),
    )
    assert check_variants([right] * 99 + [wrong] + [away] * 50, store).counts() == {
        RefMatch.MATCH: 99,
        RefMatch.MISMATCH: 1,
        RefMatch.NO_CONTIG: 50,
    }
    with pytest.raises(GenomeError, match=r"REF of 2 of 100 variants .* 1\.00%.* first is c:2 A>G"):
        check_variants([right] * 98 + [wrong] * 2 + [away] * 150, store)
    with pytest.raises(GenomeError, match="no contig of any of the 2 variants; the first is x:1"):
        check_variants([away, away], store)
    with pytest.raises(ConfigError, match="max_wrong"):
        check_variants([right], store, max_wrong=2)
    assert check_variants([], store).counts() == {}
    assert check_variants([right, wrong], store, max_wrong=1).matching().tolist() == [0]


def test_variants_get_the_names_and_the_coordinates_of_the_store():
    variants = [Variant("17", 105, "A", "C", "id", {"K": "v"}), Variant("Y", 3, "A", "C")]
    match = ContigMatch({"17": "part"}, ("Y",))
    placed = place_variants(variants, match, offsets={"part": 100})
    assert placed == [Variant("part", 5, "A", "C", "id", {"K": "v"}), variants[1]]
    assert place_variants(variants, match, offsets={"part": 200})[0].position == -95
    with pytest.raises(ConfigError, match="offset of 'part'"):
        place_variants(variants, match, offsets={"part": -1})


def test_every_ref_of_brca1_sge_is_what_the_region_of_chr17_has(real_data, tmp_path):
    """The FASTA begins at chr17:42,425,000, counted from 1; 3,893 of 3,893 must match."""
    store = build_store(
        [real_data / "human_brca1_region/hg38_chr17_42425000_43600000.plus.fa.gz"], tmp_path / "g"
    )
    vcf = tmp_path / "sge.vcf"
    with gzip.open(real_data / "brca1_sge/brca1_sge_hg38.tsv.gz", "rt") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    lines = [
        f"{row['chrom']}\t{row['pos_hg38']}\t.\t{row['ref']}\t{row['alt']}\t.\t.\t." for row in rows
    ]
    head = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    vcf.write_text(head + "\n".join(lines))
    variants = read_variants(vcf).variants
    match = match_contigs(["chr17"], store, explicit={"chr17": "chr17_42425000_43600000"})
    offsets = {"chr17_42425000_43600000": 42_424_999}
    placed = place_variants(variants, match, offsets=offsets)
    assert [v.position for v in placed] == [int(row["index0_in_plus_fasta"]) for row in rows]
    assert check_variants(placed, store).counts() == {RefMatch.MATCH: 3893}
    windows = VariantWindower(store, 1000, ends="drop")(placed)
    assert windows.refused == {}
    assert decode(windows.reference[:, 500]).upper() == "".join(row["ref"] for row in rows)
    assert decode(windows.alternative[:, 500]).upper() == "".join(row["alt"] for row in rows)
    with pytest.raises(GenomeError, match="offset"):
        check_variants(place_variants(variants, match, offsets={"chr17": 42_424_998}), store)
    off_by_one = place_variants(variants, match, offsets={k: v - 1 for k, v in offsets.items()})
    with pytest.raises(GenomeError, match=r"more than 1\.00%"):
        check_variants(off_by_one, store)


NORM = """2 101 A ATT; 2 115 C T; 20 3 G CT; 20 5 TG CT; 20 81 A C; 20 84 G T; 20 95 T A;
20 95 TCACCG AAAAAA; 20 273 C CAAAAAAAAAA; 20 273 C CAA; 3 17 CA C; 5 21 A AAG"""


def test_indels_are_spelt_as_bcftools_norm_spells_them(real_data, tmp_path):
    """The records of its own test that have one alternative; it takes several together."""
    store = build_store([real_data / "odd_fasta/bcftools/norm.fa"], tmp_path / "g")
    lines = (real_data / "odd_vcf/bcftools/norm.vcf").read_text().splitlines()
    columns = [line.split("\t") for line in lines]
    kept = [
        line
        for line, fields in zip(lines, columns, strict=True)
        if line.startswith("#") or (fields[4] != "I" and "," not in fields[4])
    ]
    (tmp_path / "norm.vcf").write_text("\n".join(kept))
    variants = read_variants(tmp_path / "norm.vcf").variants
    check = check_variants(variants, store, max_wrong=None)
    assert [variants[i].position + 1 for i in np.flatnonzero(check.status)] == [60]
    aligned = left_align_all([variants[i] for i in check.matching()], store)
    found = {f"{v.contig} {v.position + 1} {v.ref} {v.alt}" for v in aligned}
    expected = set(NORM.replace("\n", " ").split("; "))
    assert expected <= found
    # the rest: a deletion of 187 bases
    assert [text[:12] for text in found - expected] == ["2 1 GGGCGTCT"]


def shortest_leftmost(genome, variant):
    """Every spelling of the same change, tried one by one: the shortest, of these the leftmost."""
    ref, alt, at = variant.ref, variant.alt, variant.position
    result = genome[:at] + alt + genome[at + len(ref) :]
    longer = len(result) - len(genome)
    spellings = []
    for start in range(len(genome)):
        for size in range(1, len(genome) - start + 1):
            new = result[start : start + size + longer]
            if size + longer < 1 or genome[:start] + new + genome[start + size :] != result:
                continue
            spellings.append((size, start, genome[start : start + size], new))
    _, start, ref, alt = min(spellings)
    return start, ref, alt


@st.composite
def changes(draw, letters):
    genome = draw(st.text(letters, min_size=1, max_size=12))
    start = draw(st.integers(0, len(genome) - 1))
    end = draw(st.integers(start + 1, len(genome)))
    return genome, Variant(
        "c", start, genome[start:end], draw(st.text("AC", min_size=1, max_size=5))
    )


@settings(max_examples=300, deadline=None)
@given(changes("AC"))
@example(("AAAC", Variant("c", 2, "AC", "C")))
@example(("CACACACA", Variant("c", 5, "ACA", "A")))
@example(("AC", Variant("c", 0, "A", "CA")))
def test_the_spelling_is_the_shortest_and_leftmost_of_all(genome, change):
    bases, variant = change
    store = genome(c=bases)
    found = left_align(variant, GenomeReader(store))
    if variant.ref == variant.alt:
        assert found == variant
        return
    assert (found.position, found.ref, found.alt) == shortest_leftmost(bases, variant)
    assert left_align(found, GenomeReader(store)) == found
    assert left_align_all([variant], store) == [
        variant if len(variant.ref) == len(variant.alt) == 1 else found
    ]


@settings(max_examples=300, deadline=None)
@given(changes("ACN"))
def test_a_spelling_is_the_same_change_no_longer_and_final(genome, change):
    bases, variant = change
    reader = GenomeReader(genome(c=bases))
    found = left_align(variant, reader)

    def changed(v):
        return bases[: v.position] + v.alt + bases[v.position + len(v.ref) :]

    assert changed(found) == changed(variant)
    assert bases[found.position : found.position + len(found.ref)] == found.ref
    assert len(found.ref) <= len(variant.ref)
    assert len(found.alt) <= len(variant.alt)
    assert found.alt
    assert left_align(found, reader) == found


@pytest.mark.parametrize(
    ("line", "variant", "expected"),
    [
        # sequences of bcftools' tests of `norm`
        ("TTTATTATTATTATTATTAAATTGAATT", Variant("c", 8, "TATTAT", "TAT"), (0, "TTTA", "T")),
        ("GTCTCAAAAAAAAAAAAAAAAAAAAGAAAAG", Variant("c", 20, "AAAA", "A"), (4, "CAAA", "C")),
        ("NNNNNNNNNN", Variant("c", 7, "NN", "N"), (7, "NN", "N")),
        ("CCAAAAAA", Variant("c", 7, "A", "AAA"), (1, "C", "CAA")),
        ("acacacGT", Variant("c", 3, "CAC", "C"), (0, "ACA", "A")),
    ],
)
def test_known_indels_move_to_the_left(genome, line, variant, expected):
    found = left_align(variant, GenomeReader(genome(c=line)))
    assert (found.position, found.ref, found.alt) == expected


def test_an_indel_moves_over_many_blocks_and_keeps_id_and_info(genome):
    store = genome(c="G" + "CA" * 60_000 + "T")
    variant = Variant("c", 119_998, "ACA", "A", "rs", {"K": "v"})
    assert left_align(variant, GenomeReader(store)) == Variant("c", 0, "GCA", "G", "rs", {"K": "v"})


def test_the_deletion_of_a_whole_contig_stays(genome):
    variant = Variant("c", 0, "ACG", "A")
    assert left_align(variant, GenomeReader(genome(c="ACG"))) == variant
    assert np.array_equal(left_align_all([variant], genome(c="ACG")), [variant])
