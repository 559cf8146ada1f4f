"""Windows of haplotypes against strings that are put together base by base."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnassm.data.alphabet import decode, encode_ascii
from dnassm.data.genome import Genome
from dnassm.data.haplotypes import (
    NO_GENOTYPE,
    PLOIDY,
    SEVERAL_SETS,
    UNPHASED,
    HaplotypeWindower,
    PhasedVariants,
    read_phased,
)
from dnassm.data.interval import Interval
from dnassm.data.variant_windows import OVER_THE_END, VariantWindower
from dnassm.data.variants import Variant
from dnassm.data.vcf import STAR, TELOMERE
from dnassm.errors import ConfigError, FormatError, GenomeError

HEAD = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ta\tb\n"


class Text(Genome):
    """A genome of two contigs that lies nowhere on a disk."""

    def __init__(self, bases):
        self._codes = {"c": encode_ascii(bases.encode()), "d": encode_ascii(b"TTTT")}
        contigs = [SimpleNamespace(name=n, length=c.size) for n, c in self._codes.items()]
        super().__init__(Path("text"), contigs, "none", {})

    @property
    def digest(self):
        return "text"

    def _read(self, contig, start, end):
        return self._codes[contig][start:end]


@pytest.fixture(scope="module")
def genome():
    return Text


def phased(variants, carriers=None, sets=None):
    return PhasedVariants(
        "s",
        list(variants),
        np.array([3] * len(variants) if carriers is None else carriers, np.uint8),
        tuple(sets or ["."] * len(variants)),
        {},
        {},
    )


def plain_edit(variant):
    """Start, end and new bases of what a variant changes."""
    start, ref, alt = variant.position, variant.ref, variant.alt
    while ref and alt and ref[0] == alt[0]:
        start, ref, alt = start + 1, ref[1:], alt[1:]
    while ref and alt and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    return start, start + len(ref), alt


def clash(one, other):
    """Whether both change a base, one inserts inside of the other, or both at one place."""
    common = set(range(*one[:2])) & set(range(*other[:2]))
    inside = any(
        first[0] == first[1] and second[0] < first[0] < second[1]
        for first, second in ((one, other), (other, one))
    )
    return bool(common) or inside or one[:2] == other[:2]


def plain_haplotype(bases, variants, *, forward):
    """[(letter, base of the genome whose place it has)] and the variants that were left out.

    What is inserted before base b has the place b - 0.5.
    """
    kept, left = [], []
    for variant in sorted(variants, key=lambda v: plain_edit(v)[:2]):
        edit = plain_edit(variant)
        if any(clash(edit, other) for other in kept):
            left.append(variant)
        else:
            kept.append(edit)
    found = list(zip(bases, range(len(bases)), strict=True))
    for start, end, alt in reversed(kept):
        places = [end - 0.5 if forward else start - 0.5] * len(alt)
        for step in range(min(len(alt), end - start)):
            if forward:
                places[step] = start + step
            else:
                places[-1 - step] = end - 1 - step
        at = sum(place <= start - 1 for _, place in found)
        found[at : at + end - start] = list(zip(alt, places, strict=True))
    return found, left


def plain_window(haplotype, base, length, fill, *, forward):
    """The window whose base ``length // 2`` has the place of `base`, or the next one read."""
    letters = [letter for letter, _ in haplotype]
    if forward:
        start = sum(place < base for _, place in haplotype) - length // 2
    else:
        start = sum(place <= base for _, place in haplotype) - (length - length // 2)
    window = [letters[i] if 0 <= i < len(letters) else fill for i in range(start, start + length)]
    if forward:
        return "".join(window)
    return "".join(window)[::-1].translate(str.maketrans("ACGT", "TGCA"))


@st.composite
def cases(draw):
    bases = draw(st.text("ACGT", min_size=1, max_size=30))
    variants = []
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(bases) - 1))
        end = draw(st.integers(start + 1, min(len(bases), start + 5)))
        alt = draw(st.text("ACGT", min_size=1, max_size=5))
        variants.append(Variant("c", start, bases[start:end], alt))
    carriers = draw(st.lists(st.integers(1, 3), min_size=len(variants), max_size=len(variants)))
    start = draw(st.integers(0, len(bases) - 1))
    interval = Interval("c", start, start + 1, draw(st.sampled_from("+-")))
    return bases, variants, carriers, interval, draw(st.integers(2, 40))


@settings(max_examples=600, deadline=None)
@given(cases(), st.sampled_from(["n", "pad", "drop"]))
@example(("ACGT", [Variant("c", 1, "CG", "C")], [1], Interval("c", 2, 3, "-"), 4), "n")
@example(("ACGT", [Variant("c", 0, "A", "AG")] * 2, [3, 1], Interval("c", 0, 1), 5), "n")
@example(("AC", [Variant("c", 0, "AC", "A")], [3], Interval("c", 1, 2), 4), "pad")
def test_windows_are_cut_from_the_haplotypes_as_strings(genome, case, ends):
    bases, variants, carriers, interval, length = case
    windower = HaplotypeWindower(genome(bases), phased(variants, carriers), length, ends=ends)
    made = windower([interval])
    forward, fill = interval.strand == "+", "." if ends == "pad" else "N"
    expected, left_out = [], set()
    for copy in (1, 2):
        own = [v for v, c in zip(variants, carriers, strict=True) if c & copy]
        haplotype, left = plain_haplotype(bases, own, forward=forward)
        expected.append(plain_window(haplotype, interval.start, length, fill, forward=forward))
        left_out |= {str(v) for v in left}
    assert {str(variant) for variant, _ in windower.overlapping} == left_out
    if ends == "drop" and fill in "".join(expected):
        assert (made.refused, made.codes.shape) == ({OVER_THE_END: 1}, (0, 2, length))
    else:
        assert made.kept.tolist() == [0]
        assert [decode(codes) for codes in made.codes[0]] == expected


@settings(max_examples=200, deadline=None)
@given(cases())
def test_one_variant_gives_the_window_of_its_alternative(genome, case):
    bases, variants, _, _, length = case
    store = genome(bases)
    for variant in variants[:1]:
        if variant.alt.endswith(variant.ref) and variant.alt != variant.ref:
            continue  # written with the base behind it, an insertion moves this base
        pair = VariantWindower(store, length)([variant])
        windower = HaplotypeWindower(store, phased([variant], [2]), length)
        made = windower([Interval("c", variant.position, variant.position + 1)])
        if pair.kept.size:
            assert decode(made.codes[0, 0]) == decode(pair.reference[0])
            assert decode(made.codes[0, 1]) == decode(pair.alternative[0])


def test_the_deletion_and_the_variant_before_it_do_not_overlap(genome):
    """A deletion is written with the base before it, which another record may change."""
    store = genome("ACGTACGTAC")
    both = [Variant("c", 3, "T", "G"), Variant("c", 3, "TAC", "T"), Variant("c", 3, "T", "TCC")]
    windower = HaplotypeWindower(store, phased(both, [1, 3, 2]), 8)
    made = windower([Interval("c", 3, 4), Interval("d", 1, 2)])
    assert windower.overlapping == ()
    assert decode(made.codes[0, 0]) == "NACGGGTA"
    assert decode(made.codes[0, 1]) == "NACGTCCG"
    assert made.applied.tolist() == [[2, 2], [0, 0]]
    assert decode(made.codes[1, 1]) == "NNNTTTTN"


def test_of_two_that_overlap_the_first_is_applied_and_the_other_named(genome):
    deletion, inside = Variant("c", 2, "GTAC", "G"), Variant("c", 4, "A", "T")
    windower = HaplotypeWindower(genome("ACGTACGTAC"), phased([inside, deletion], [1, 3]), 6)
    assert windower.overlapping == ((inside, deletion),)
    made = windower([Interval("c", 2, 3)])
    assert [decode(codes) for codes in made.codes[0]] == ["NACGGT", "NACGGT"]


def test_phase_sets_are_not_mixed_in_one_window(genome):
    snvs = [Variant("c", at, "A", "G") for at in (0, 4, 8)]
    three = phased(snvs, [1, 2, 3], ["1", "5", "9"])
    store = genome("ACGTACGTAC")
    made = HaplotypeWindower(store, three, 4)([Interval("c", 0, 1), Interval("c", 7, 8)])
    assert made.refused == {}
    made = HaplotypeWindower(store, three, 10)([Interval("c", 3, 4), Interval("c", 8, 9)])
    assert (made.refused, made.kept.tolist()) == ({SEVERAL_SETS: 1}, [1])


def test_inserted_bases_have_the_mask_of_the_first_base_of_ref(genome):
    windower = HaplotypeWindower(genome("acgtACGT"), phased([Variant("c", 3, "T", "TGG")]), 6)
    made = windower([Interval("c", 3, 4, "-")])
    assert decode(made.codes[0, 0]) == "Tccacg"


def vcf(tmp_path, *rows):
    path = tmp_path / "x.vcf"
    lines = ["c\t{}\t.\t{}\t{}\t.\t.\t.\t{}\n".format(*row) for row in rows]
    path.write_text(HEAD + "".join(lines))
    return path


def test_genotypes_say_which_haplotype_carries_what(tmp_path):
    path = vcf(
        tmp_path,
        (1, "A", "C", "GT\t1|1\t0|1"),
        (2, "A", "C,G", "GT:PS\t0|0\t2|1:7"),
        (3, "A", "C", "DP:GT\t9:0/1\t9:1/1"),
        (4, "A", "C", "GT\t.|1\t0/1"),
        (5, "A", "C", "GT\t0|1\t1"),
        (6, "AT", "A,*", "GT\t.\t1|2"),
        (7, "A", "C", "GT\t.\t0|0|1"),
        (8, "A", "C", "GT\t.\t./."),
        (9, "A", "C", "GT\t.\t|1|0"),
        (0, "A", "C", "GT\t.\t1|1"),
        (10, "A", "<DEL>", "GT\t.\t0|0"),
        (11, "A", "C", "DP\t.\t3"),
    )
    found = read_phased(path, sample="b")
    assert [f"{v.position + 1}{v.alt}" for v in found.variants] == [
        *("1C", "2G", "2C", "3C", "5C", "6A", "9C")
    ]
    assert found.carriers.tolist() == [2, 1, 2, 3, 3, 1, 1]
    assert found.phase_sets == (".", "7", "7", ".", ".", ".", ".")
    counts = {UNPHASED: 1, PLOIDY: 1, NO_GENOTYPE: 2, STAR: 1, TELOMERE: 1}
    assert found.refused == counts
    assert found.summary().startswith("b: 7 variants on its haplotypes; refused: 1 hetero")
    assert found.take([1, 3]).carriers.tolist() == [1, 3]
    assert found.take([1, 3]).phase_sets == ("7", ".")


def test_who_names_no_sample_of_the_file_is_told_which_there_are_and_what_to_do(tmp_path):
    path = vcf(tmp_path, (1, "A", "C", "GT\t1|1\t0|2"))
    path.write_text(path.read_text().replace("\ta\tb\n", "\tNA12878\tHG00096\n"))
    have = "the file has NA12878, HG00096; name one of its samples (--sample)."
    for sample, said in [
        (None, f"{path}: expected one sample to be named, {have}"),
        ("NOBODY", f"{path}: expected a sample 'NOBODY', {have}"),
        ("NA12879", f"{path}: expected a sample 'NA12879', {have} Did you mean 'NA12878'?"),
    ]:
        with pytest.raises(ConfigError) as caught:
            read_phased(path, sample=sample)
        assert str(caught.value) == said
    path.write_text(path.read_text().split("\tFORMAT")[0] + "\n")
    with pytest.raises(ConfigError, match=r"has no sample; take a file with genotypes, or .*\.$"):
        read_phased(path, sample="NA12878")


def test_a_wrong_genotype_is_refused(tmp_path):
    path = vcf(tmp_path, (1, "A", "C", "GT\t1|1\t0|2"))
    assert len(read_phased(path, sample="a").variants) == 1
    with pytest.raises(FormatError, match=r"x\.vcf:3: GT 0\|2 names allele 2, the record has 1"):
        read_phased(path, sample="b")
    with pytest.raises(FormatError, match=r"x\.vcf:3: GT must be like 0\|1, got '0\|x'"):
        read_phased(vcf(tmp_path, (1, "A", "C", "GT\t0|x\t.")), sample="a")


def test_a_ref_that_the_genome_has_not_and_wrong_settings_are_refused(genome):
    store = genome("ACGT")
    with pytest.raises(GenomeError, match="REF is G, the genome has A"):
        HaplotypeWindower(store, phased([Variant("c", 0, "G", "T")]), 4)
    with pytest.raises(ConfigError, match="at least 2 bases"):
        HaplotypeWindower(store, phased([]), 1)
    with pytest.raises(GenomeError, match="no contig 'x'"):
        HaplotypeWindower(store, phased([]), 4)([Interval("x", 0, 1)])
