"""The annotated sampler: the middle base of a window decides how often it is drawn."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from dnassm.data.interval import Interval
from dnassm.data.samplers.annotated import AnnotatedSampler
from dnassm.data.samplers.uniform import UniformSampler
from dnassm.data.store import GenomeStore, build_store
from dnassm.errors import ConfigError, GenomeError

LENGTH = 20
DRAWS = 20_000
GFF = (
    "c\t.\tgene\t101\t300\t.\t+\t.\tID=g\n"
    "c\t.\tCDS\t201\t250\t.\t-\t.\tID=c\n"
    "c\t.\trepeat\t601\t640\t.\t.\t.\tID=r\n"
    "elsewhere\t.\ttRNA\t1\t5\t.\t.\t.\tID=t\n"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GenomeStore:
    """N from 220 to 280, within the gene."""
    bases = np.random.default_rng(10).choice(list("ACGT"), 1000)
    bases[220:280] = "N"
    folder = tmp_path_factory.mktemp("genome")
    (folder / "genome.fa").write_text(f">c\n{''.join(bases)}\n>d\n{'ACGTT' * 40}\n")
    (folder / "genes.gff3").write_text(GFF)
    return build_store([folder / "genome.fa"], folder / "store", split="halves")


def sampler(store: GenomeStore, **options) -> AnnotatedSampler:
    annotation = store.path.parent / "genes.gff3"
    return AnnotatedSampler(store, **({"length": LENGTH, "annotation": annotation} | options))


def expected(store: GenomeStore, weight_of) -> dict[Interval, float]:
    """Share of each admissible start, found by looking at each."""
    found = {}
    for part in store.splits["train"]:
        for start in range(part.start, part.end - LENGTH + 1):
            window = Interval(part.contig, start, start + LENGTH)
            if ((store.fetch(window) & 0x0F) < 4).any():
                found[window] = weight_of(part.contig, start + LENGTH // 2)
    total = sum(found.values())
    return {window: weight / total for window, weight in found.items()}


def check(drawn: AnnotatedSampler, shares: dict[Interval, float]) -> None:
    """No window of share 0, and the sums over stretches of 25 windows as they should be."""
    counts = collections.Counter(
        Interval(w.contig, w.start, w.end)
        for i in range(DRAWS)
        for w in [drawn(2, *divmod(i, len(drawn)))]
    )
    assert set(counts) <= {window for window, share in shares.items() if share}
    windows = sorted(shares)
    for first in range(0, len(windows), 25):
        some = windows[first : first + 25]
        share = sum(shares[window] for window in some)
        drawn_share = sum(counts[window] for window in some) / DRAWS
        assert drawn_share == pytest.approx(share, abs=5 * np.sqrt(share / DRAWS) + 1e-12)


def test_a_start_is_drawn_by_the_weight_of_its_middle_base(store):
    def weight_of(contig: str, middle: int) -> float:
        if contig == "c" and 200 <= middle < 250:
            return 5.0
        return 2.0 if contig == "c" and 100 <= middle < 300 else 0.5

    drawn = sampler(store, weights={"gene": 2.0, "CDS": 5.0}, background=0.5)
    check(drawn, expected(store, weight_of))


def test_a_lighter_feature_within_a_heavier_one_changes_nothing(store):
    def weight_of(contig: str, middle: int) -> float:
        return 3.0 if contig == "c" and 100 <= middle < 300 else 1.0

    check(sampler(store, weights={"gene": 3.0, "CDS": 2.0}), expected(store, weight_of))


def test_without_background_every_middle_base_lies_in_a_feature(store):
    drawn = sampler(store, weights={"*": 1.0}, background=0.0)
    check(drawn, expected(store, lambda contig, at: float(contig == "c" and 100 <= at < 300)))


def test_weights_of_one_are_the_uniform_distribution(store):
    drawn = sampler(store, weights={"*": 1.0})
    check(drawn, expected(store, lambda *_: 1.0))
    assert len(drawn) == len(UniformSampler(store, length=LENGTH))


def test_a_bed_file_names_its_types_in_the_fourth_column(store, tmp_path):
    path = tmp_path / "features.bed"
    path.write_text("chrc\t100\t300\tpeak\nchrc\t300\t400\tother\n")
    drawn = sampler(store, annotation=path, weights={"peak": 1.0}, background=0.0)
    check(drawn, expected(store, lambda contig, at: float(contig == "c" and 100 <= at < 300)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"annotation": None}, ConfigError, "expected annotation=FILE"),
        ({"weights": {"CDSs": 2.0}}, GenomeError, "no feature of type 'CDSs'.*Did you mean 'CDS'"),
        ({"weights": {"CDS": -2.0}}, ConfigError, "expected weights of at least 0"),
        ({"weights": {"CDS": 0.0}, "background": 0.0}, ConfigError, "expected a weight above 0"),
        ({"weights": {"repeat": 2.0}, "background": 0.0}, ConfigError, "a weight above 0"),
        ({"weights": {"tRNA": float("nan")}}, ConfigError, "weights of at least 0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_with_its_reason(options, error, message, store):
    with pytest.raises(error, match=message) as caught:
        sampler(store, **options)
    assert "\n" not in str(caught.value)


def test_an_annotation_of_other_contigs_is_refused(store, tmp_path):
    path = tmp_path / "features.bed"
    path.write_text("chrX\t100\t300\tpeak\n")
    with pytest.raises(GenomeError, match=r"features\.bed.*chrX"):
        sampler(store, annotation=path)


def test_an_annotation_without_any_feature_is_refused(store, tmp_path):
    path = tmp_path / "features.gff3"
    path.write_text("##gff-version 3\n")
    with pytest.raises(GenomeError, match=r"features\.gff3: expected features, got none"):
        sampler(store, annotation=path)
