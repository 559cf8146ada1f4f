"""The eukaryotic kind: every truth file is checked against the sequence alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from Bio.Seq import Seq
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.alphabet import decode, encode_ascii, reverse_complement
from dnassm.data.annotation import read_bed, read_gff
from dnassm.data.intervals import complement, merge
from dnassm.data.simulate import simulate_genome, write_simulation
from dnassm.data.simulation.eukaryote_tables import CODON_USAGE, DONOR
from dnassm.data.simulation.tables import CODONS
from dnassm.data.store import build_store
from dnassm.data.variant_reference import check_variants
from dnassm.data.variants import read_vcf
from dnassm.errors import ConfigError

LENGTH = 600_000
BROKEN = {
    "donor": "five_prime_cis_splice_site",
    "acceptor": "three_prime_cis_splice_site",
    "branch_point": "branch_site",
    "tata_box": "TATA_box",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("sim") / "euk"
    write_simulation(simulate_genome(length=LENGTH, seed=0, contigs=2, kind="eukaryotic"), out)
    return out


@pytest.fixture(scope="module")
def contigs(folder):
    """Name -> letters, straight from the FASTA."""
    records = (folder / "genome.fa").read_text().split(">")[1:]
    return {r.split()[0]: "".join(r.splitlines()[1:]) for r in records}


@pytest.fixture(scope="module")
def features(folder):
    found = {}
    for feature in read_gff(folder / "genes.gff3"):
        found.setdefault(feature.type, []).append(feature)
    return found


def turned(bases):
    return decode(reverse_complement(encode_ascii(bases.encode())))


def read(contigs, interval):
    bases = contigs[interval.contig][interval.start : interval.end]
    return bases if interval.strand == "+" else turned(bases)


def by_parent(features):
    groups = {}
    for feature in features:
        groups.setdefault(feature.attributes["Parent"], []).append(feature.interval)
    return {
        parent: sorted(parts, key=lambda i: i.start, reverse=parts[0].strand == "-")
        for parent, parts in groups.items()
    }


def coding_sequence(contigs, parts):
    return "".join(read(contigs, part) for part in parts).upper()


def test_proteins_begin_with_methionine_and_stop_once_at_the_end(contigs, features):
    transcripts = by_parent(features["CDS"])
    assert len(transcripts) == len(features["gene"]) > 20
    assert max(map(len, transcripts.values())) >= 4
    for parts in transcripts.values():
        protein = str(Seq(coding_sequence(contigs, parts)).translate(cds=False))
        assert protein[0] == "M"
        assert protein.index("*") == len(protein) - 1


def test_the_phase_of_every_coding_exon_keeps_the_frame(folder, features):
    rows = [line.split("\t") for line in (folder / "genes.gff3").read_text().splitlines()]
    phases = {}
    for row in (row for row in rows if len(row) == 9 and row[2] == "CDS"):
        phases.setdefault(row[8].split("Parent=")[1], {})[int(row[3]) - 1] = int(row[7])
    for parent, parts in by_parent(features["CDS"]).items():
        done = 0
        for part in parts:
            assert phases[parent][part.start] == -done % 3
            done += len(part)


def test_introns_lie_between_exons_and_have_every_signal(contigs, features):
    exons, introns = by_parent(features["exon"]), by_parent(features["intron"])
    points, tracts = by_parent(features["branch_site"]), by_parent(features["polypyrimidine_tract"])
    donors = []
    for parent, parts in introns.items():
        between = [(min(a.end, b.end), max(a.start, b.start)) for a, b in pairwise(exons[parent])]
        assert [(i.start, i.end) for i in parts] == between
        for intron, point, tract in zip(parts, points[parent], tracts[parent], strict=True):
            bases = read(contigs, intron).upper()
            assert bases.startswith("GT")
            assert bases.endswith("AG")
            assert read(contigs, point)[3] == "A"
            before = intron.end - point.end if intron.strand == "+" else point.start - intron.start
            assert 17 <= before <= 34
            assert "AG" not in bases[-before:-2]
            donors.append(bases[:6])
            pyrimidines = sum(base in "CT" for base in read(contigs, tract))
            assert pyrimidines >= 0.4 * len(tract)
    found = [[sum(d[i] == base for d in donors) / len(donors) for base in "ACGT"] for i in range(6)]
    np.testing.assert_allclose(found, DONOR, atol=0.1)


def test_untranslated_regions_and_exons_make_up_the_transcript(features):
    for kind in ("five_prime_UTR", "three_prime_UTR"):
        assert len(by_parent(features[kind])) == len(features["gene"])
    pieces = [f.interval for k in ("CDS", "five_prime_UTR", "three_prime_UTR") for f in features[k]]
    exons = [f.interval for f in features["exon"]]
    assert sum(map(len, pieces)) == sum(map(len, exons))
    assert merge(pieces, stranded=True) == merge(exons, stranded=True)


def test_codons_are_used_as_in_human_genes_and_signals_stand_where_they_should(contigs, features):
    counts = np.zeros(64)
    for parts in by_parent(features["CDS"]).values():
        bases = coding_sequence(contigs, parts)
        for at in range(3, len(bases) - 3, 3):
            counts[CODONS.index(bases[at : at + 3])] += 1
    np.testing.assert_allclose(counts / counts.sum(), CODON_USAGE, atol=0.01)
    assert {read(contigs, f.interval) for f in features["TATA_box"]} == {"TATAAA"}
    assert {read(contigs, f.interval) for f in features["start_codon"]} == {"ATG"}
    signals = {read(contigs, f.interval) for f in features["polyA_signal_sequence"]}
    assert signals == {"AATAAA", "ATTAAA"}


def cpg(bases):
    """Observed over expected CpG, and GC."""
    c, g = bases.count("C"), bases.count("G")
    return bases.count("CG") * len(bases) / (c * g), (c + g) / len(bases)


def test_islands_are_islands_and_elsewhere_cpg_is_rare(contigs, features):
    islands = [f.interval for f in features["CpG_island"]]
    for island in islands:  # Gardiner-Garden and Frommer 1987
        ratio, gc = cpg(read(contigs, island))
        assert len(island) >= 200
        assert ratio > 0.6
        assert gc > 0.5
    kinds = ("CpG_island", "exon", "dispersed_repeat", "tandem_repeat", "gap")
    marked = [f.interval for kind in kinds for f in features[kind]]
    rest = "".join(
        read(contigs, i) for i in complement(marked, {c: len(s) for c, s in contigs.items()})
    )
    assert rest.isupper()
    assert 0.15 < cpg(rest)[0] < 0.3


def test_the_background_of_an_isochore_has_its_gc(folder, contigs, features):
    kinds = ("CpG_island", "exon", "dispersed_repeat", "tandem_repeat", "gap")
    marked = [f.interval for kind in kinds for f in features[kind]]
    plain = complement(marked, {c: len(s) for c, s in contigs.items()})
    isochores = read_bed(folder / "isochores.bed")
    lengths = Counter()
    for record in isochores:
        where = record.interval
        lengths[where.contig] += len(where)
        inside = [i for i in plain if i.overlaps(where) and where.start <= i.start < where.end]
        bases = "".join(read(contigs, i) for i in inside)
        if len(bases) > 20_000:
            assert cpg(bases)[1] == pytest.approx(record.score / 1000, abs=0.02)
    assert lengths == {name: len(bases) for name, bases in contigs.items()}
    assert len({record.name for record in isochores}) >= 2


def test_repeats_are_masked_and_differ_from_their_consensus_as_they_say(folder, contigs, features):
    records = (folder / "repeats.fa").read_text().split(">")[1:]
    consensus = {r.split()[0]: r.splitlines()[1] for r in records}
    assert len(consensus) == 8
    lower = sum(map(len, merge(f.interval for f in features["dispersed_repeat"])))
    lower += sum(map(len, merge(f.interval for f in features["tandem_repeat"])))
    assert sum(base.islower() for bases in contigs.values() for base in bases) == lower
    assert 0.2 < lower / LENGTH < 0.7
    for copy in features["dispersed_repeat"]:
        says, bases = copy.attributes, read(contigs, copy.interval)
        assert bases.islower()
        first = int(says["consensus_start"]) - 1
        truth = consensus[says["rpt_family"]][first : first + len(bases)]
        differing = sum(a != b for a, b in zip(bases.upper(), truth, strict=True))
        assert differing / len(bases) == pytest.approx(float(says["divergence"]), abs=1e-4)
    for copy in features["tandem_repeat"]:
        says, bases = copy.attributes, read(contigs, copy.interval).upper()
        unit = says["rpt_unit_seq"]
        truth = unit * (len(bases) // len(unit))
        differing = sum(a != b for a, b in zip(bases, truth, strict=True))
        assert differing / len(bases) == pytest.approx(float(says["divergence"]), abs=1e-4)
    assert any(
        i.interval.start < r.interval.start < r.interval.end < i.interval.end
        for i in features["intron"]
        for r in features["dispersed_repeat"]
        if i.interval.contig == r.interval.contig
    )


def test_windows_show_the_site_that_they_are_labelled_with(folder, contigs, features):
    middles = {"donor": set(), "acceptor": set()}
    for intron in (f.interval for f in features["intron"]):
        first, last = intron.start, intron.end - 1
        donor, acceptor = (first, last) if intron.strand == "+" else (last, first)
        middles["donor"].add((intron.contig, donor, intron.strand))
        middles["acceptor"].add((intron.contig, acceptor, intron.strand))
    counts = Counter()
    for record in read_bed(folder / "labels.bed"):
        where = record.interval
        bases = read(contigs, where).upper()
        at = where.start + 200 if where.strand == "+" else where.end - 201
        known = {label: (where.contig, at, where.strand) in middles[label] for label in middles}
        assert known == {label: record.label == label for label in middles}
        assert bases[200:202] == "GT" if record.label == "donor" else True
        assert bases[199:201] == "AG" or bases[200:202] == "GT"
        half = len(contigs[where.contig]) // 2
        assert where.end <= half if record.split == "train" else where.start >= half
        counts[record.split, record.label] += 1
    assert len(counts) == 6
    for split in ("train", "test"):
        assert len({counts[split, label] for label in ("donor", "acceptor", "neither")}) == 1


def test_variants_break_what_they_say_or_nothing(folder, contigs, features, tmp_path):
    variants = read_vcf(folder / "variants.vcf")
    store = build_store([folder / "genome.fa"], tmp_path / "store")
    check_variants(variants, store, max_wrong=0)
    coding = by_parent(features["CDS"])
    sites = Counter()
    for variant in variants:
        site, contig = variant.info["SITE"], contigs[variant.contig]
        changed = dict(contigs) | {
            variant.contig: contig[: variant.position]
            + variant.alt
            + contig[variant.position + 1 :]
        }
        sites[site] += 1
        inside = {
            kind
            for kind, group in features.items()
            for f in group
            if f.interval.contig == variant.contig
            and f.interval.start <= variant.position < f.interval.end
        }
        if site in ("nonsense", "synonymous", "start_codon"):
            parts = coding[f"{variant.info['OF'].removesuffix('.t1')}.t1"]
            old, new = (str(Seq(coding_sequence(c, parts)).translate()) for c in (contigs, changed))
            assert (old == new) == (site == "synonymous")
            assert ("*" in new[:-1]) == (site == "nonsense")
            assert (new[0] == "M") == (site != "start_codon")
        elif site in ("intronic", "intergenic"):
            assert not inside - {"intron", "gene", "mRNA"}
            assert ("intron" in inside) == (site == "intronic")
        else:
            assert BROKEN[site] in inside
    assert len(sites) == 9


def test_the_same_seed_gives_the_same_genome_and_the_ids_are_unique():
    one, two, other = (
        simulate_genome(length=120_000, seed=s, kind="eukaryotic") for s in (1, 1, 2)
    )
    assert one == two
    assert one.contigs != other.contigs
    ids = Counter(f.attributes["ID"] for f in one.features if "ID" in f.attributes)
    assert all(count == 1 or name.endswith(".cds") for name, count in ids.items())
    parents = {f.attributes["Parent"] for f in one.features if "Parent" in f.attributes}
    assert parents <= set(ids)


@settings(max_examples=5, deadline=None)
@given(st.integers(100_000, 130_000), st.integers(0, 10**9))
def test_any_length_and_seed_gives_a_whole_genome(length, seed):
    genome = simulate_genome(length=length, seed=seed, kind="eukaryotic")
    assert len(genome.contigs["sim1"]) == length
    assert {"gene", "intron", "gap", "dispersed_repeat"} <= genome.summary()["features"].keys()


def test_a_genome_that_is_too_short_and_a_kind_that_is_none_are_refused():
    with pytest.raises(ConfigError, match="at least 100,000 bases for each contig"):
        simulate_genome(length=99_999, seed=0, kind="eukaryotic")
    with pytest.raises(ConfigError, match="no kind 'viral' of genome; have bacterial, eukaryotic"):
        simulate_genome(length=99_999, seed=0, kind="viral")


def test_the_bacterial_kind_stays_as_it_was_bit_for_bit(tmp_path):
    write_simulation(simulate_genome(length=60_000, contigs=2, seed=7), tmp_path / "sim")
    digests = {
        "genes.gff3": "04c0cd493728d0d91fbdc5e4a5b845f44c2d5d9804c9f71ce0386a7ca9b48ef9",
        "genome.fa": "8b5501280045dc33c4cedcb209fd653479918e9f1ec4dddc94feda70ff805b75",
        "labels.bed": "2c74b16300e4e0bb0c6aab7ab152403bffdacb67be43f09864f777bb62166545",
        "variants.vcf": "63e7027a27898d1d5ee915c2af550cdc168f3c3f884785fa8bdbd0844407220f",
    }
    for name, digest in digests.items():
        assert hashlib.sha256((tmp_path / "sim" / name).read_bytes()).hexdigest() == digest, name
