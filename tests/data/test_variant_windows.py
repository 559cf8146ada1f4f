import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.alphabet import SOFT_MASK, decode
from dnassm.data.store import build_store
from dnassm.data.variant_windows import OVER_THE_END, TOO_LONG, VariantWindower
from dnassm.data.variants import Variant
from dnassm.errors import ConfigError, GenomeError

GENOME = "ACGTTGCATCGGATTACAGC"


@pytest.fixture(scope="module")
def genome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windows")

    def build(bases):
        (folder / "g.fa").write_text(f">c\n{bases}\n>d\nTTTT\n")
        return build_store([folder / "g.fa"], folder / "g", force=True)

    return build


@pytest.mark.parametrize(
    ("variant", "length", "reference", "alternative"),
    [
        (Variant("c", 8, "T", "G"), 6, "GCATCG", "GCAGCG"),
        (Variant("c", 8, "T", "G"), 7, "GCATCGG", "GCAGCGG"),
        (Variant("c", 8, "TCG", "T"), 6, "GCATCG", "GCATGA"),
        (Variant("c", 8, "T", "TAA"), 6, "GCATCG", "GCATAA"),
        (Variant("c", 8, "TC", "AG"), 6, "GCATCG", "GCAAGG"),
        (Variant("c", 0, "A", "G"), 6, "NNNACG", "NNNGCG"),
        (Variant("c", 0, "ACG", "A"), 6, "NNNACG", "NNNATT"),
        (Variant("c", 19, "C", "CTT"), 6, "CAGCNN", "CAGCTT"),
        (Variant("c", 17, "AGC", "A"), 6, "TACAGC", "TACANN"),
        (Variant("c", 18, "GC", "G"), 6, "ACAGCN", "ACAGNN"),
        (Variant("d", 1, "T", "A"), 12, "NNNNNTTTTNNN", "NNNNNTATTNNN"),
    ],
)
def test_the_pair_begins_at_the_same_base_with_ref_in_the_middle(
    genome, variant, length, reference, alternative
):
    made = VariantWindower(genome(GENOME), length)([variant])
    assert made.kept.tolist() == [0]
    assert made.refused == {}
    # an expectation with too many letters would be cut off by its own length
    expected = (reference, alternative[:length])
    assert (decode(made.reference[0]), decode(made.alternative[0])) == expected


@st.composite
def cases(draw):
    bases = draw(st.text("ACGT", min_size=1, max_size=40))
    start = draw(st.integers(0, len(bases) - 1))
    end = draw(st.integers(start + 1, min(len(bases), start + 8)))
    variant = Variant("c", start, bases[start:end], draw(st.text("ACGT", min_size=1, max_size=8)))
    return bases, variant, draw(st.integers(2, 50)), draw(st.sampled_from(["n", "pad", "drop"]))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_both_windows_are_cut_from_the_whole_contig_with_either_allele(genome, case):
    bases, variant, length, ends = case
    made = VariantWindower(genome(bases), length, ends=ends)([variant])
    start = variant.position - length // 2
    fill = "." if ends == "pad" else "N"
    changed = bases[: variant.position] + variant.alt + bases[variant.position + len(variant.ref) :]
    expected = [
        "".join(text[i] if 0 <= i < len(text) else fill for i in range(start, start + length))
        for text in (bases, changed)
    ]
    if max(len(variant.ref), len(variant.alt)) > length - length // 2:
        assert made.refused == {TOO_LONG: 1}
    elif ends == "drop" and fill in "".join(expected):
        assert made.refused == {OVER_THE_END: 1}
    else:
        assert made.refused == {}
        assert [decode(made.reference[0]), decode(made.alternative[0])] == expected
        return
    assert made.reference.shape == made.alternative.shape == (0, length)
    assert made.kept.size == 0


def test_what_has_no_window_is_counted_and_the_rest_keeps_its_index(genome):
    variants = [
        Variant("c", 1, "C", "A"),
        Variant("c", 8, "T", "TAAAAAAA"),
        Variant("c", 9, "C", "A"),
        Variant("c", 18, "G", "T"),
        Variant("c", 10, "G", "T"),
    ]
    made = VariantWindower(genome(GENOME), 8, ends="drop")(variants)
    assert made.kept.tolist() == [2, 4]
    assert made.refused == {OVER_THE_END: 2, TOO_LONG: 1}
    assert [decode(row) for row in made.reference] == ["TGCATCGG"[1:] + "A", "CATCGGAT"]


def test_the_alternative_has_the_soft_mask_of_the_base_that_it_replaces(genome):
    made = VariantWindower(genome("ACGTacgtACGT"), 6)([Variant("c", 5, "C", "TT")])
    assert decode(made.alternative[0]) == "GTattg"
    assert not np.any(
        VariantWindower(genome("ACGT"), 2)([Variant("c", 1, "C", "G")]).alternative & SOFT_MASK
    )


def test_a_wrong_ref_or_contig_or_setting_is_refused(genome):
    store = genome(GENOME)
    windower = VariantWindower(store, 6)
    for variant, said in [
        (Variant("c", 1, "A", "T"), "c:2 A>T: REF is A, the genome has C"),
        (Variant("c", 19, "CC", "T"), r"REF is CC, the genome has C\."),
        (Variant("c", -1, "A", "T"), r"the genome has \."),
        (Variant("x", 1, "A", "T"), "no contig 'x'"),
    ]:
        with pytest.raises(GenomeError, match=said):
            windower([variant])
    with pytest.raises(ConfigError, match="at least 2 bases, got 1"):
        VariantWindower(store, 1)
    with pytest.raises(ConfigError, match="expected 'n', 'pad' or 'drop', got 'wrap'"):
        VariantWindower(store, 6, ends="wrap")


def test_no_variants_give_no_windows(genome):
    made = VariantWindower(genome(GENOME), 6)([])
    assert made.reference.shape == (0, 6)
