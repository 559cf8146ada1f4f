"""A FASTA file read through its index is the genome of its store; a wrong index is never used."""

from __future__ import annotations

import gzip
import hashlib
import logging
import multiprocessing
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from Bio import bgzf
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.aliases import match_contigs
from dnassm.data.alphabet import PAD, decode
from dnassm.data.centre import centred_codes
from dnassm.data.faidx import FastaGenome
from dnassm.data.genome import Genome, open_genome
from dnassm.data.interval import Interval
from dnassm.data.sampler import SAMPLERS
from dnassm.data.store import GenomeStore, build_store
from dnassm.errors import ArtifactError, FormatError, GenomeError

TEXT = ">chr1 the first\nACGTNacgtnuU\nRYKM\n>chr2\nGGGCCCATAT\nAC\n>last of all\nACGTAA\n"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DNASSM_CACHE", str(folder))
    return folder


def write(path: Path, text: str = TEXT) -> Path:
    if path.suffix == ".gz":
        with bgzf.BgzfWriter(str(path)) as file:
            file.write(text.encode())
    else:
        path.write_bytes(text.encode())
    return path


def assert_same(genome: Genome, store: Genome) -> None:
    assert genome.lengths == store.lengths
    assert genome.splits == store.splits
    assert genome.split_rule == store.split_rule
    assert genome.digest == store.digest
    facts = ("name", "description", "length", "sha256", "md5", "counts")
    for ours, theirs in zip(genome.contigs, store.contigs, strict=True):
        assert [getattr(ours, fact) for fact in facts] == [getattr(theirs, fact) for fact in facts]
        whole = Interval(ours.name, 0, ours.length)
        assert np.array_equal(genome.fetch(whole), store.fetch(whole))


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz", "g.fasta.bgz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_fasta_file_is_the_genome_that_its_store_is(tmp_path, name, end):
    text = TEXT.replace("\n", end)
    path = tmp_path / name
    write(path.with_suffix(".gz"), text).rename(path) if ".gz" in name or ".bgz" in name else write(
        path, text
    )
    store = build_store([path], tmp_path / "store", split="halves")
    assert_same(open_genome(path, split="halves"), store)
    assert_same(open_genome(path, split="halves"), store)  # through the index that is there now
    assert isinstance(open_genome(store.path), GenomeStore)


def test_a_file_that_an_index_cannot_describe_gives_the_same_answers_or_none(real_data, tmp_path):
    """Every odd FASTA: read as its store is, or refused in one line."""
    read = refused = 0
    for source in sorted((real_data / "odd_fasta").rglob("*")):
        if not source.is_file() or source.name == "SOURCE.md":
            continue
        path = tmp_path / source.name
        path.write_bytes(source.read_bytes())
        try:
            digest = FastaGenome.open(path).digest
        except (ArtifactError, FormatError):
            refused += 1
            continue
        read += 1
        assert digest == build_store([path], tmp_path / f"{read}.store").digest
    assert read > 10
    assert refused > 10


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_interval_is_the_slice_of_the_text(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "faidx_slices"
    if not folder.exists():
        folder.mkdir()
        lines = ("ACGTacgtNNRY" * 9)[:100]
        for name in ("g.fa", "g.fa.gz"):
            write(folder / name, f">a x\n{lines}\n{lines}\n{lines[:37]}\n>b\n{lines}\n{lines}\n")
    text = {"a": (("ACGTacgtNNRY" * 9)[:100] * 3)[:237], "b": ("ACGTacgtNNRY" * 9)[:100] * 2}
    genome = FastaGenome.open(folder / data.draw(st.sampled_from(["g.fa", "g.fa.gz"])))
    contig = data.draw(st.sampled_from("ab"))
    start = data.draw(st.integers(0, len(text[contig])))
    end = data.draw(st.integers(start, len(text[contig])))
    assert decode(genome.fetch(Interval(contig, start, end))) == text[contig][start:end]


def test_it_reads_as_a_store_reads(tmp_path):
    genome = FastaGenome.open(write(tmp_path / "g.fa"))
    assert decode(genome.fetch(Interval("chr2", 3, 6, "-"))) == "GGG"
    assert genome.fetch(Interval("chr2", 10, 14), pad=True).tolist() == [0, 1, PAD, PAD]
    assert genome.fetch(Interval("chr2", 4, 4)).size == 0
    with pytest.raises(GenomeError, match=r"contig 'chr2' ends at 12 bp, asked for \[4, 13\)"):
        genome.fetch(Interval("chr2", 4, 13))
    with pytest.raises(GenomeError, match=r"no contig 'chr3'.*Did you mean"):
        genome.fetch(Interval("chr3", 0, 1))
    codes = genome.fetch(Interval("chr2", 0, 4))
    codes[:] = 0
    assert decode(genome.fetch(Interval("chr2", 0, 4))) == "GGGC"


def test_digests_are_those_of_the_letters(tmp_path):
    contig = FastaGenome.open(write(tmp_path / "g.fa")).contig("chr1")
    assert contig.md5 == hashlib.md5(b"ACGTNACGTNUURYKM").hexdigest()
    assert contig.counts["U"] == 2


def test_a_split_that_leaves_nothing_is_refused(tmp_path):
    with pytest.raises(GenomeError, match="chr9"):
        FastaGenome.open(write(tmp_path / "g.fa"), split="contig:test=chr9")


@pytest.mark.parametrize("name", ["uniform", "tiled"])
def test_a_sampler_draws_the_windows_that_it_draws_from_the_store(tmp_path, name):
    path = write(tmp_path / "g.fa")
    store = build_store([path], tmp_path / "store")
    ours, theirs = (
        SAMPLERS[name](genome, split="train", length=4, rc_probability=0.5)
        for genome in (open_genome(path), store)
    )
    assert [ours(0, 0, i) for i in range(len(ours))] == [
        theirs(0, 0, i) for i in range(len(theirs))
    ]


def test_windows_around_intervals_are_those_of_the_store(tmp_path):
    path = write(tmp_path / "g.fa")
    store, genome = build_store([path], tmp_path / "store"), open_genome(path)
    for start in range(12):
        around = Interval("chr2", start, start + 1, "+-"[start % 2])
        assert np.array_equal(centred_codes(genome, around, 9), centred_codes(store, around, 9))
    match = match_contigs(["2", "last"], genome)
    assert match.names == {"2": "chr2", "last": "last"}


def index_of(path: Path) -> str:
    return path.with_name(path.name + ".fai").read_text()


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
def test_a_stale_index_is_noticed_and_built_again(tmp_path, caplog, name):
    path = write(tmp_path / name)
    FastaGenome.open(path)
    old = index_of(path)
    write(path, TEXT.replace("GGGCCC", "GGGTTTCCC"))
    later = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(later, later))
    with caplog.at_level(logging.WARNING):
        genome = FastaGenome.open(path)
    assert "is older than" in caplog.text
    assert genome.lengths["chr2"] == 15
    assert index_of(path) != old


@pytest.mark.parametrize(
    "change",
    [
        ("GGGCCC", "GGGTTTCCC"),  # a contig in the middle is longer
        ("ACGTAA", "ACGTAAC"),  # the last one is
        ("ACGTAA\n", "ACGTAA\n>more\nACGT\n"),
        ("chr1 the first", "chr9 the first"),
        (">last of all\nACGTAA\n", ""),
    ],
)
def test_an_index_that_does_not_fit_is_noticed_though_it_is_newer(tmp_path, caplog, change):
    path = write(tmp_path / "g.fa")
    FastaGenome.open(path)
    index = path.with_name("g.fa.fai")
    write(path, TEXT.replace(*change))
    later = path.stat().st_mtime_ns + 10**9
    os.utime(index, ns=(later, later))
    with caplog.at_level(logging.WARNING):
        genome = FastaGenome.open(path)
    assert "does not fit" in caplog.text
    assert genome.digest == build_store([path], tmp_path / "store").digest


@pytest.mark.parametrize(
    "junk", [b"", b"chr1\t12\n", b"chr1\tx\ty\tz\t1\n", b"\xff\x00", b"a\t1\t1\t0\t0\n"]
)
def test_a_damaged_index_is_built_again(tmp_path, junk):
    for name in ("g.fa", "g.fa.gz"):
        path = write(tmp_path / name)
        FastaGenome.open(path)
        for suffix in (".fai", ".gzi") if name.endswith(".gz") else (".fai",):
            path.with_name(name + suffix).write_bytes(junk)
            genome = FastaGenome.open(path)
            assert decode(genome.fetch(Interval("chr2", 0, 12))) == "GGGCCCATATAC"


def test_a_file_that_changes_while_it_is_open_is_not_read_on(tmp_path):
    path = write(tmp_path / "g.fa")
    genome = FastaGenome.open(path)
    write(path, TEXT.replace("GGG", "GGGGGG"))
    with pytest.raises(ArtifactError, match="changed while it was in use; open the genome again"):
        genome.fetch(Interval("chr2", 0, 4))


def test_no_index_is_left_where_building_it_fails(tmp_path):
    path = write(tmp_path / "g.fa", ">a\nACGT\nACGTAC\nACG\nAC\n")
    with pytest.raises(FormatError, match=r"cannot be indexed: Line length.*dnassm tokenize"):
        FastaGenome.open(path)
    assert [p.name for p in tmp_path.iterdir()] == ["g.fa"]


@pytest.mark.parametrize("name", ["g.fa", "g.fa.gz"])
def test_the_index_of_a_folder_that_is_not_writable_goes_to_the_cache(
    tmp_path, cache, monkeypatch, name
):
    path = write(tmp_path / name)
    monkeypatch.setattr(os, "access", lambda folder, mode: Path(folder) != tmp_path)
    genome = FastaGenome.open(path)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    made = {p: p.stat().st_mtime_ns for p in cache.rglob("*i") if p.is_file()}
    assert len(made) == 2 if name.endswith(".gz") else 1
    assert FastaGenome.open(path).lengths == genome.lengths  # and is found there
    assert {p: p.stat().st_mtime_ns for p in made} == made


def test_a_disk_that_really_is_read_only_gets_nothing(tmp_path, cache):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        path = write(disk / "g.fa")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert decode(FastaGenome.open(path).fetch(Interval("chr2", 0, 4))) == "GGGC"
        assert [p.name for p in disk.iterdir()] == ["g.fa"]
        assert len(list(cache.rglob("g.fa.fai"))) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_has_no_index_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "plain.fa.gz").write_bytes(gzip.compress(TEXT.encode()))
    write(tmp_path / "x.gz").rename(tmp_path / "bgzip.fa")
    (tmp_path / "text.fa.gz").write_text(TEXT)
    write(tmp_path / "empty_contig.fa", ">a\n>b\nACGT\n")
    write(tmp_path / "twice.fa", ">a\nACGT\n>a\nACGT\n")
    (tmp_path / "latin.fa").write_bytes(b">a \xe9\nACGT\n")
    (tmp_path / "cut.fa.gz").write_bytes(write(tmp_path / "y.gz").read_bytes()[:-28])
    for name, message in {
        "plain.fa.gz": "plain gzip can be read from its start only; read it with: dnassm tokenize",
        "bgzip.fa": "its content is bgzip, its name says otherwise; rename it",
        "text.fa.gz": "its content is not compressed, its name says otherwise; rename it",
        "empty_contig.fa": "contig 'a': expected bases after the header, got none",
        "twice.fa": "Duplicate key",
        "latin.fa": "cannot be indexed",
        "cut.fa.gz": "cannot be indexed: BGZF EOF marker not found",
        "nothing.fa": "does not exist",
    }.items():
        with pytest.raises((ArtifactError, FormatError), match=message) as caught:
            open_genome(tmp_path / name) if name != "nothing.fa" else FastaGenome.open(
                tmp_path / name
            )
        assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="is a folder, expected a FASTA file"):
        FastaGenome.open(tmp_path)


def test_a_letter_that_is_no_base_is_refused_where_it_is_read(tmp_path):
    genome = FastaGenome.open(write(tmp_path / "p.fa", ">p\nACGTACGT\nACEGT\n"))
    assert decode(genome.fetch(Interval("p", 0, 8))) == "ACGTACGT"
    for use in (lambda: genome.fetch(Interval("p", 4, 13)), lambda: genome.digest):
        with pytest.raises(FormatError, match=r"contig 'p': .* got 'E' at base 10, 0-based"):
            use()


# From Python 3.12 on, a fork beside threads warns, those of numpy's library included.
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_process_that_is_forked_does_not_share_the_position_in_the_file(tmp_path):
    genome = FastaGenome.open(write(tmp_path / "g.fa"))
    opened = genome._reader._faidx

    def read():
        same = decode(genome.fetch(Interval("chr2", 0, 4))) == "GGGC"
        os._exit(0 if same and genome._reader._faidx is not opened else 1)

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_it_pickles_as_its_path(tmp_path):
    genome = FastaGenome.open(write(tmp_path / "g.fa"), split="halves")
    again = pickle.loads(pickle.dumps(genome))
    assert_same(again, genome)
    assert len(pickle.dumps(genome)) < 500
    assert pickle.loads(pickle.dumps(genome.contigs[0])).md5 == genome.contigs[0].md5


def test_the_reading_of_a_real_genome_agrees_with_its_store(real_data, tmp_path):
    source = real_data / "human_small" / "hg18_trimmed_bgzip.fasta.gz"
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes())
    assert_same(FastaGenome.open(path), build_store([path], tmp_path / "store"))
