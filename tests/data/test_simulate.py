import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.baselines.kmer import KmerClassifier
from dnassm.baselines.markov import fit_mixture
from dnassm.data.alphabet import LETTERS, decode, encode_ascii, reverse_complement
from dnassm.data.annotation import read_bed, read_gff
from dnassm.data.interval import Interval
from dnassm.data.simulate import simulate_genome, write_simulation
from dnassm.data.simulation.tables import (
    AMINO_ACID,
    BACKGROUND,
    BOXES,
    CODON_USAGE,
    CODONS,
    RSCU,
    START_CODONS,
    STOP_CODONS,
)
from dnassm.data.store import build_store
from dnassm.data.variant_reference import check_variants
from dnassm.data.variants import read_vcf
from dnassm.errors import ArtifactError, ConfigError
from dnassm.metrics import auroc
from dnassm.pipelines.simulate import command

BED_COLUMNS = ["chrom", "start", "end", "name", "score", "strand", "label", "split"]
FILES = {"genome.fa", "genes.gff3", "labels.bed", "variants.vcf", "run.json"}


@pytest.fixture(scope="module")
def genome():
    return simulate_genome(length=1_000_000, seed=0)


def read(genome, interval):
    bases = genome.contigs[interval.contig][interval.start : interval.end].upper()
    return bases if interval.strand == "+" else turned(bases)


def turned(bases):
    return decode(reverse_complement(encode_ascii(bases.encode())))


def features(genome, kind):
    return [feature for feature in genome.features if feature.type == kind]


def codons(bases):
    return [bases[i : i + 3] for i in range(0, len(bases), 3)]


def mutated(genome, variant, interval):
    contig = genome.contigs[variant.contig].upper()
    changed = contig[: variant.position] + variant.alt + contig[variant.position + 1 :]
    bases = changed[interval.start : interval.end]
    return bases if interval.strand == "+" else turned(bases)


def site_of(genome, variant, kind):
    return next(
        f
        for f in features(genome, kind)
        if f.interval.contig == variant.contig
        and f.interval.start <= variant.position < f.interval.end
        and f.attributes.get("Parent") == variant.info["OF"]
    )


def test_every_gene_reads_from_a_start_to_its_only_stop_codon(genome):
    genes = features(genome, "CDS")
    assert {gene.interval.strand for gene in genes} == {"+", "-"}
    for gene in genes:
        triplets = codons(read(genome, gene.interval))
        assert len(triplets[-1]) == 3
        assert triplets[0] in START_CODONS
        assert triplets[-1] in STOP_CODONS
        assert not STOP_CODONS.keys() & set(triplets[:-1])


def test_codons_are_used_as_in_e_coli(genome):
    counts = np.zeros(64)
    for gene in features(genome, "CDS"):
        np.add.at(counts, [CODONS.index(c) for c in codons(read(genome, gene.interval))[1:-1]], 1)
    np.testing.assert_allclose(counts / counts.sum(), CODON_USAGE, atol=0.002)


def test_boxes_and_binding_sites_follow_their_weights(genome):
    kinds = {
        "minus_10": "minus_10_signal",
        "minus_35": "minus_35_signal",
        "rbs": "Shine_Dalgarno_sequence",
    }
    for motif, kind in kinds.items():
        consensus, weights = BOXES[motif]
        sites = np.array([list(read(genome, f.interval)) for f in features(genome, kind)])
        found = np.stack([(sites == base).mean(axis=0) for base in "ACGT"], axis=1)
        np.testing.assert_allclose(found, weights, atol=0.1)
        assert "".join("ACGT"[i] for i in weights.argmax(axis=1)) == consensus


def test_the_boxes_of_a_promoter_are_16_to_18_bases_apart(genome):
    tens = {f.attributes["Parent"]: f.interval for f in features(genome, "minus_10_signal")}
    spacings = set()
    for box in features(genome, "minus_35_signal"):
        ten = tens[box.attributes["Parent"]]
        pair = (box.interval, ten) if ten.strand == "+" else (ten, box.interval)
        spacings.add(pair[1].start - pair[0].end)
    assert spacings == {16, 17, 18}


def test_the_genome_is_dense_with_genes_and_has_repeats_and_gaps(genome):
    summary = genome.summary()
    assert 0.78 < summary["coding_fraction"] < 0.88
    sequence = genome.contigs["sim1"]
    assert len(sequence) == summary["bases"] == 1_000_000
    lower, gaps = set(), set()
    for repeat in features(genome, "repeat_region"):
        assert sequence[repeat.interval.start : repeat.interval.end].islower()
        lower.update(range(repeat.interval.start, repeat.interval.end))
    for gap in features(genome, "gap"):
        assert set(sequence[gap.interval.start : gap.interval.end]) == {"N"}
        gaps.update(range(gap.interval.start, gap.interval.end))
    assert sum(base.islower() for base in sequence) == len(lower) > 10_000
    assert sequence.count("N") == len(gaps) > 100


def test_copies_of_a_repeat_family_differ_by_a_few_per_cent(genome):
    families = {}
    for repeat in features(genome, "repeat_region"):
        copy = np.array(list(read(genome, repeat.interval)))
        families.setdefault(repeat.attributes["rpt_family"], []).append(copy)
    assert len(families) == 3
    for first, second in (copies[:2] for copies in families.values()):
        assert 0.02 < (first != second).mean() < 0.2


def test_windows_are_what_their_label_says(genome):
    coding = np.zeros(1_000_000, bool)
    for gene in features(genome, "CDS"):
        coding[gene.interval.start : gene.interval.end] = True
    last = 0
    for window in genome.windows:
        where = window.interval
        assert where.start >= last
        last = where.end
        share = coding[where.start : where.end].mean()
        assert share == {"coding": 1, "intergenic": 0}[window.label]
        assert window.split == ("train" if where.end <= 500_000 else "test")
        assert where.end <= 500_000 or where.start >= 500_000
        assert set(read(genome, where)) <= set("ACGT")


def test_variants_do_what_their_effect_says(genome):
    sites = {"minus_10": "minus_10_signal", "minus_35": "minus_35_signal"}
    sites |= {"rbs": "Shine_Dalgarno_sequence"}
    for variant in genome.variants:
        site = variant.info["SITE"]
        assert genome.contigs["sim1"][variant.position] == variant.ref != variant.alt
        assert variant.position >= 500_000
        if site in sites:
            box = site_of(genome, variant, sites[site]).interval
            consensus, before, after = (
                BOXES[site][0],
                read(genome, box),
                mutated(genome, variant, box),
            )
            (hit,) = [i for i in range(len(before)) if before[i] != after[i]]
            assert before[hit] == consensus[hit]
            assert BOXES[site][1][hit, "ACGT".index(after[hit])] < 0.1
        elif site != "background":
            gene = site_of(genome, variant, "CDS").interval
            old, new = codons(read(genome, gene)), codons(mutated(genome, variant, gene))
            (hit,) = [i for i in range(len(old)) if old[i] != new[i]]
            if site == "nonsense":
                assert new[hit] in STOP_CODONS
                assert hit < 0.8 * len(old)
            elif site == "start_codon":
                assert hit == 0
                assert new[0] not in START_CODONS
            else:
                assert AMINO_ACID[old[hit]] == AMINO_ACID[new[hit]]
                usage = [CODON_USAGE[CODONS.index(c)] for c in (old[hit], new[hit])]
                assert max(usage) / min(usage) <= 1.3
        else:
            assert not any(
                f.interval.start <= variant.position < f.interval.end for f in genome.features
            )


def test_both_effects_are_as_frequent_and_every_site_occurs(genome):
    counts = genome.summary()["variants"]
    assert sum(n for name, n in counts.items() if name.startswith("silent")) == 400
    assert sum(n for name, n in counts.items() if name.startswith("motif")) == 400
    assert len({v.position for v in genome.variants}) == 800
    assert len(counts) == 7


def test_k_mers_tell_coding_from_intergenic_windows_of_the_held_out_half(genome):
    rows = {"train": ([], []), "test": ([], [])}
    for window in genome.windows:
        rows[window.split][0].append(read(genome, window.interval))
        rows[window.split][1].append(window.label)
    scores = KmerClassifier().fit(*rows["train"]).predict_proba(rows["test"][0])
    truth = [int(label == "intergenic") for label in rows["test"][1]]
    assert auroc(truth, scores[:, 1], resamples=50).low > 0.95


def test_a_model_of_eight_bases_already_ranks_broken_motifs_above_silent_changes(genome):
    codes = encode_ascii(genome.contigs["sim1"].encode()) & 0x0F
    model = fit_mixture([codes[:500_000]], 7)
    gains, broken = [], []
    for variant in genome.variants:
        window = codes[variant.position - 20 : variant.position + 21].copy()
        before = np.nansum(model.bits(window))
        window[20] = LETTERS.index(variant.alt)
        gains.append(np.nansum(model.bits(window)) - before)
        broken.append(int(variant.info["EFFECT"] == "motif_breaking"))
    assert auroc(broken, gains, resamples=50).low > 0.65


def test_the_same_seed_gives_the_same_genome_and_another_seed_another():
    one, two, other = (simulate_genome(length=30_000, seed=s) for s in (5, 5, 6))
    assert one == two
    assert one.contigs != other.contigs


@settings(max_examples=25, deadline=None)
@given(st.integers(20_000, 60_000), st.integers(0, 10**9), st.integers(1, 3))
def test_any_length_seed_and_number_of_contigs_gives_a_whole_genome(length, seed, contigs):
    length = max(length, 20_000 * contigs)
    genome = simulate_genome(length=length, seed=seed, contigs=contigs)
    summary = genome.summary()
    assert (summary["bases"], summary["contigs"]) == (length, contigs)
    assert summary["features"]["CDS"] >= 5 * contigs
    assert {"gap", "repeat_region"} <= summary["features"].keys()
    assert len({variant.info["EFFECT"] for variant in genome.variants}) == 2
    for window in genome.windows:
        assert window.interval.end <= len(genome.contigs[window.interval.contig])


def test_the_files_hold_the_genome(tmp_path):
    genome = simulate_genome(length=60_001, seed=1, contigs=2)
    write_simulation(genome, tmp_path / "sim")
    assert {path.name for path in (tmp_path / "sim").iterdir()} == FILES
    records = (tmp_path / "sim/genome.fa").read_text().split(">")[1:]
    lines = [record.splitlines() for record in records]
    assert {line[0].split()[0]: "".join(line[1:]) for line in lines} == dict(genome.contigs)
    assert max(len(line) for record in lines for line in record[1:]) == 60
    assert read_vcf(tmp_path / "sim/variants.vcf") == list(genome.variants)
    rows = [x.split("\t") for x in (tmp_path / "sim/genes.gff3").read_text().splitlines()]
    rows = [row for row in rows if not row[0].startswith("#")]
    assert [(r[0], r[2], int(r[3]) - 1, int(r[4])) for r in rows] == [
        (f.interval.contig, f.type, f.interval.start, f.interval.end) for f in genome.features
    ]
    bed = (tmp_path / "sim/labels.bed").read_text().splitlines()
    assert bed[0].split("\t") == BED_COLUMNS
    assert len(bed) == 1 + len(genome.windows)
    run = json.loads((tmp_path / "sim/run.json").read_text())
    assert (run["seed"], run["config"]["length"], run["config"]["contigs"]) == (1, 60_001, 2)
    assert run["config"]["truth"] == genome.summary()


def test_the_readers_of_the_library_read_the_files_back(tmp_path):
    genome = simulate_genome(length=40_000, seed=2, contigs=2)
    folder = tmp_path / "sim"
    write_simulation(genome, folder)
    store = build_store([folder / "genome.fa"], tmp_path / "store", split="halves")
    for contig, sequence in genome.contigs.items():
        assert decode(store.fetch(Interval(contig, 0, len(sequence)))) == sequence
    check_variants(read_vcf(folder / "variants.vcf"), store, max_wrong=0)
    strandless = {"gap"}
    for read_back, feature in zip(read_gff(folder / "genes.gff3"), genome.features, strict=True):
        assert read_back.type == feature.type
        assert dict(read_back.attributes) == dict(feature.attributes)
        assert read_back.interval == feature.interval or feature.type in strandless
    records = read_bed(folder / "labels.bed")
    assert [(r.interval, r.label, r.split) for r in records] == [
        (w.interval, w.label, w.split) for w in genome.windows
    ]
    for window in genome.windows:
        halves = store.splits[window.split]
        assert any(
            h.contig == window.interval.contig
            and h.start <= window.interval.start
            and window.interval.end <= h.end
            for h in halves
        )


def test_ids_in_the_gff_are_unique_and_every_parent_exists(genome):
    ids = [f.attributes["ID"] for f in genome.features if "ID" in f.attributes]
    assert len(ids) == len(set(ids))
    assert {f.attributes["Parent"] for f in genome.features if "Parent" in f.attributes} <= set(ids)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"length": 19_999, "seed": 0}, "at least 20,000 bases"),
        ({"length": 50_000, "seed": 0, "contigs": 3}, "60,000 for 3"),
        ({"length": 50_000, "seed": -1}, "seed must be 0 or more, got -1"),
        ({"length": 50_000, "seed": 0, "contigs": 0}, "at least 1 contig, got 0"),
    ],
)
def test_arguments_that_make_no_genome_are_refused(arguments, said):
    with pytest.raises(ConfigError, match=said):
        simulate_genome(**arguments)


def test_a_taken_folder_is_kept_unless_forced(tmp_path):
    genome = simulate_genome(length=20_000, seed=0)
    (tmp_path / "mine").write_text("kept")
    with pytest.raises(ArtifactError, match="--force"):
        write_simulation(genome, tmp_path)
    assert (tmp_path / "mine").read_text() == "kept"


def test_the_command_writes_the_files_and_prints_what_it_planted(tmp_path):
    out = str(tmp_path / "sim")
    result = CliRunner().invoke(command, ["--out", out, "--length", "20000", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["bases"] == 20_000
    assert {path.name for path in (tmp_path / "sim").iterdir()} == FILES
    again = CliRunner().invoke(command, ["--out", out, "--length", "20000", "--force"])
    assert "coding fraction" in again.stdout


def test_the_tables_add_up_and_codon_usage_covers_the_genetic_code():
    assert len(AMINO_ACID) == 61
    assert CODON_USAGE.sum() == pytest.approx(1)
    np.testing.assert_allclose(BACKGROUND.sum(axis=1), 1)
    for codons_of in RSCU.values():
        assert sum(codons_of.values()) == pytest.approx(len(codons_of), abs=0.03)
