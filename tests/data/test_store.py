"""The genome store: what was written is what is fetched, and a broken store is never used."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from dnassm.data.alphabet import PAD, decode, encode_ascii
from dnassm.data.codes_file import CodesFile
from dnassm.data.genome import open_genome
from dnassm.data.interval import Interval
from dnassm.data.store import GenomeStore, append_to_store, build_store
from dnassm.errors import ArtifactError, ConfigError, DnassmError, FormatError, GenomeError
from dnassm.pipelines.cli import cli

GENOME = ">chr1 the first\nACGTNacgtn\nRYKM\n>chr2\nGGGCCCATAT\n"
CHR1 = "ACGTNacgtnRYKM"


@pytest.fixture
def fasta(tmp_path) -> Path:
    path = tmp_path / "genome.fa"
    path.write_text(GENOME)
    return path


@pytest.fixture
def store(fasta, tmp_path) -> GenomeStore:
    return build_store([fasta], tmp_path / "store")


def opened_after(store, change) -> str:
    """The one-line error of opening a store whose header was changed."""
    header = json.loads((store.path / "store.json").read_text())
    change(header)
    (store.path / "store.json").write_text(json.dumps(header))
    with pytest.raises(ArtifactError) as caught:
        GenomeStore.open(store.path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_contig_is_fetched_as_it_was_written_with_its_soft_mask(store):
    assert decode(store.fetch(Interval("chr1", 0, 14))) == CHR1
    assert decode(store.fetch(Interval("chr2", 3, 6))) == "CCC"
    assert decode(store.fetch(Interval("chr1", 3, 12, "-"))) == "RYnacgtNA"
    assert store.fetch(Interval("chr1", 5, 5)).size == 0


def test_a_contig_knows_its_counts_and_digests(store):
    first = store.contig("chr1")
    assert (first.description, first.offset, first.length) == ("the first", 0, 14)
    assert first.counts == dict.fromkeys("ACGTN", 2) | {"iupac": 4, "soft_masked": 5, "U": 0}
    assert first.md5 == hashlib.md5(CHR1.upper().encode()).hexdigest()
    assert first.sha256 == hashlib.sha256(encode_ascii(CHR1.encode()).tobytes()).hexdigest()
    assert store.lengths == {"chr1": 14, "chr2": 10}


def test_numpy_and_json_alone_read_a_store(store):
    header = json.loads((store.path / "store.json").read_text())
    codes = np.fromfile(store.path / "codes.bin", dtype=np.uint8)
    second = header["contigs"][1]
    part = codes[second["offset"] : second["offset"] + second["length"]]
    assert "".join("ACGTN"[code & 15] for code in part) == "GGGCCCATAT"
    assert hashlib.sha256(part.tobytes()).hexdigest() == second["sha256"]
    lines = "".join(f"{c['name']}\t{c['length']}\t{c['sha256']}\n" for c in header["contigs"])
    assert hashlib.sha256(lines.encode()).hexdigest() == header["digest"] == store.digest


def test_the_same_genome_gives_the_same_store_however_it_was_wrapped_or_compressed(tmp_path, store):
    wrapped = tmp_path / "wrapped.fa.gz"
    wrapped.write_bytes(gzip.compress(GENOME.replace("GGGC", "GG\r\n\r\nGC").encode()))
    other = build_store([wrapped], tmp_path / "other")
    assert other.digest == store.digest
    assert [c.md5 for c in other.contigs] == [c.md5 for c in store.contigs]
    codes = [(s.path / "codes.bin").read_bytes() for s in (store, other)]
    assert codes[0] == codes[1]


def test_many_files_become_one_store_in_the_order_given(tmp_path):
    paths = []
    for name in ("b", "a"):
        paths.append(tmp_path / f"{name}.fa")
        paths[-1].write_text(f">{name}\nACGT\n")
    store = build_store(paths, tmp_path / "store")
    assert list(store.lengths) == ["b", "a"]
    assert [source["path"] for source in store.sources] == [str(path) for path in paths]
    run = json.loads((store.path / "run.json").read_text())
    assert list(run["inputs"]) == [str(path) for path in paths]
    assert run["config"] == {"split": "none"}


@pytest.mark.parametrize("rule", ["none", "blocks:size=4,every=2", "contig:test=b"])
def test_appending_gives_the_store_of_all_files_at_once(tmp_path, rule):
    paths = [tmp_path / f"{name}.fa" for name in "abc"]
    for path in paths:
        path.write_text(f">{path.stem}\nACGTNNac{path.stem}tgGGTA\n")
    whole = build_store(paths, tmp_path / "whole", split=rule)
    build_store(paths[:2], tmp_path / "grown", split=rule)
    grown = append_to_store(paths[2:], tmp_path / "grown")
    for file in ("codes.bin", "store.json"):
        assert (grown.path / file).read_bytes() == (whole.path / file).read_bytes()
    grown.verify()


def test_appending_a_name_that_is_there_leaves_the_store_as_it_is(store, tmp_path):
    before = {file.name: file.read_bytes() for file in store.path.iterdir()}
    twice = tmp_path / "twice.fa"
    twice.write_text(f">new\nACGT\n>{store.contigs[0].name}\nACGT\n")
    with pytest.raises(FormatError, match=r"line 3: contig .* a second time, first in the store"):
        append_to_store([twice], store.path)
    assert {file.name: file.read_bytes() for file in store.path.iterdir()} == before
    assert not list(store.path.parent.glob(".*partial*"))


def test_appending_to_what_is_no_store_says_so(tmp_path, fasta):
    with pytest.raises(ArtifactError, match="does not exist"):
        append_to_store([fasta], tmp_path / "nowhere")


def test_appending_from_the_command_line_takes_no_other_rule(tmp_path, fasta, store):
    more = tmp_path / "more.fa"
    more.write_text(">more\nACGTACGT\n")
    run = CliRunner().invoke(cli, ["tokenize", str(more), "--out", str(store.path), "--append"])
    assert run.exit_code == 0, run.output
    assert "more" in GenomeStore.open(store.path).lengths
    options = ["--out", str(store.path), "--append", "--split", "none"]
    assert CliRunner().invoke(cli, ["tokenize", str(more), *options]).exit_code == 2


def test_sigkill_while_appending_leaves_the_old_store(tmp_path, fasta):
    old = build_store([fasta], tmp_path / "store")
    process, stop = start_on_a_pipe(tmp_path, "--append")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    stop.set()
    kept = GenomeStore.open(tmp_path / "store")
    assert kept.digest == old.digest
    kept.verify()


def test_a_compressed_source_is_recorded_by_the_sha256_of_the_file(tmp_path):
    path = tmp_path / "a.fa.gz"
    path.write_bytes(gzip.compress(GENOME.encode()))
    (source,) = build_store([path], tmp_path / "store").sources
    assert source["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source["over"] == "file"


def test_padding_fills_what_lies_past_the_end_and_is_no_base(store):
    padded = store.fetch(Interval("chr2", 8, 13), pad=True)
    assert padded.tolist() == [0, 3, PAD, PAD, PAD]
    other_strand = store.fetch(Interval("chr2", 8, 13, "-"), pad=True)
    assert other_strand.tolist() == [PAD, PAD, PAD, 0, 3]
    assert store.fetch(Interval("chr2", 20, 22), pad=True).tolist() == [PAD, PAD]


@pytest.mark.parametrize("strand", ["+", "-"])
def test_an_interval_past_the_end_is_refused(store, strand):
    with pytest.raises(GenomeError, match=r"contig 'chr2' ends at 10 bp, asked for \[4, 11\)"):
        store.fetch(Interval("chr2", 4, 11, strand))


def test_an_unknown_contig_is_refused_with_the_nearest_name(store):
    with pytest.raises(GenomeError, match=r"no contig 'chr3'; it has chr1, chr2\. Did you mean"):
        store.fetch(Interval("chr3", 0, 1))


def test_what_was_fetched_is_a_copy(store):
    for strand in "+-":
        codes = store.fetch(Interval("chr2", 0, 4, strand))
        codes[:] = 0
    assert decode(store.fetch(Interval("chr2", 0, 4))) == "GGGC"


def test_a_store_pickles_as_its_path_and_works_in_another_process(store):
    store.fetch(Interval("chr1", 0, 1))
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert pickle.loads(data).digest == store.digest
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (codes,) = pool.map(store.fetch, [Interval("chr1", 0, 14, "-")])
    assert np.array_equal(codes, store.fetch(Interval("chr1", 0, 14, "-")))


# From Python 3.12 on, a fork beside threads warns, those of numpy's library included.
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("kind", ["store", "FASTA"])
def test_many_processes_read_at_once_what_one_reads(tmp_path, method, kind):
    rng = np.random.default_rng(0)
    fasta = tmp_path / "g.fa"
    with fasta.open("w") as file:
        for name in ("one", "two"):
            bases = "".join(rng.choice(list("ACGTacgtN"), 20_000))
            lines = "\n".join(bases[i : i + 70] for i in range(0, len(bases), 70))
            file.write(f">{name}\n{lines}\n")
    genome = open_genome(fasta) if kind == "FASTA" else build_store([fasta], tmp_path / "store")
    genome.fetch(Interval("one", 0, 100))  # so that the file is open when the processes fork
    starts = rng.integers(0, 19_000, 400)
    windows = [
        Interval("one" if i % 2 else "two", int(start), int(start) + 1000, "+-"[i % 3 == 0])
        for i, start in enumerate(starts)
    ]
    with multiprocessing.get_context(method).Pool(4) as pool:
        found = pool.map(genome.fetch, windows, chunksize=20)
    for window, codes in zip(windows, found, strict=True):
        assert np.array_equal(codes, genome.fetch(window))
    if method == "fork":  # a process that is forked has the open file of its parent, not a copy
        assert same_in_forks(genome, windows, found)


def same_in_forks(genome, windows, expected) -> bool:
    def read():
        for _ in range(3):
            for window, codes in zip(windows, expected, strict=True):
                if not np.array_equal(codes, genome.fetch(window)):
                    os._exit(1)
        os._exit(0)

    processes = [multiprocessing.get_context("fork").Process(target=read) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes] == [0] * 4


def test_the_example_of_the_format_page_reads_a_store_with_numpy_alone(tmp_path, store):
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    assert "dnassm" not in example.replace("dnassm-genome", "")
    code = example + (
        "\nassert letters == 'ACGTNACGTNRYKM', letters\n"
        "assert ''.join('01'[bool(base)] for base in soft_masked) == '00000111110000'\n"
        "import sys; assert 'dnassm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=store.path.parent, check=True)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_contig_of_a_draft_assembly_takes_little_memory(tmp_path, monkeypatch, compiled):
    # As objects of JSON, with digests that stayed until the end, each took 6.6 KB.
    monkeypatch.setattr("dnassm.data.store_writer.WORTH_COMPILING", 0 if compiled else 1 << 40)
    peaks = []
    for count in (0, 5000, 10_000):  # the first one loads and compiles what is needed
        path = tmp_path / f"{count}.fa"
        contigs = (f">contig_{number} cov=1.5\n{'ACGTTGCAAC' * 20}\n" for number in range(count))
        path.write_text(">first\nACGT\n" + "".join(contigs))
        tracemalloc.start()
        store = build_store([path], tmp_path / f"{count}.store", split="halves")
        peaks.append([tracemalloc.get_traced_memory()[1]])
        assert len(store.contigs) == count + 1
        del store
        tracemalloc.stop()
        tracemalloc.start()
        GenomeStore.open(tmp_path / f"{count}.store")
        peaks[-1].append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    building, opening = ((big - small) / 5000 for small, big in zip(*peaks[1:], strict=True))
    assert building < 2000
    assert opening < 2000


def test_the_split_is_kept_with_the_store(fasta, tmp_path):
    store = build_store([fasta], tmp_path / "store", split="halves:gap=1")
    assert store.splits["train"] == (Interval("chr1", 0, 6), Interval("chr2", 0, 4))
    assert store.splits["test"] == (Interval("chr1", 8, 14), Interval("chr2", 6, 10))
    assert store.splits["valid"] == ()
    assert GenomeStore.open(store.path).split_rule == "halves:gap=1"


@settings(deadline=None)
@given(st.data())
def test_any_interval_is_the_slice_of_the_text(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "slices"
    if not (folder / "store").exists():
        folder.mkdir(exist_ok=True)
        (folder / "a.fa").write_text(GENOME)
        build_store([folder / "a.fa"], folder / "store")
    store = GenomeStore.open(folder / "store")
    start = data.draw(st.integers(0, 14))
    end = data.draw(st.integers(start, 14))
    assert decode(store.fetch(Interval("chr1", start, end))) == CHR1[start:end]


def test_duplicate_names_are_refused_with_both_places(tmp_path):
    (tmp_path / "a.fa").write_text(">x\nA\n>chr1 one\nACGT\n")
    (tmp_path / "b.fa").write_text(">chr1 another\nACGT\n")
    with pytest.raises(FormatError) as caught:
        build_store([tmp_path / "a.fa", tmp_path / "b.fa"], tmp_path / "store")
    assert f"{tmp_path / 'b.fa'}, line 1: contig 'chr1' occurs a second time" in str(caught.value)
    assert f"first in {tmp_path / 'a.fa'}, line 3" in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_bad_input_leaves_the_old_store_and_nothing_beside_it(store, tmp_path):
    (tmp_path / "bad.fa").write_text(">a\nACGT\n>b\nMKV!\n")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FormatError):
        build_store([tmp_path / "bad.fa"], store.path, force=True)
    assert sorted(tmp_path.iterdir()) == before
    assert GenomeStore.open(store.path).digest == store.digest


def test_a_taken_target_needs_force(store, fasta):
    with pytest.raises(ArtifactError, match="exists already; pass --force"):
        build_store([fasta], store.path)
    assert build_store([fasta], store.path, force=True).digest == store.digest


def test_force_replaces_nothing_but_a_store(tmp_path, fasta):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("words")
    with pytest.raises(ArtifactError, match="is no genome store, so --force keeps it"):
        build_store([fasta], tmp_path / "thesis", force=True)
    with pytest.raises(ArtifactError, match="is a file, expected a folder"):
        build_store([fasta], fasta, force=True)
    with pytest.raises(ArtifactError, match="holds the input"):
        build_store([fasta], tmp_path, force=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "words"


def test_no_input_and_a_wrong_rule_are_refused_before_any_work(tmp_path, fasta):
    with pytest.raises(ConfigError, match="at least one FASTA file"):
        build_store([], tmp_path / "store")
    with pytest.raises(ConfigError, match="Did you mean 'halves'"):
        build_store([fasta], tmp_path / "store", split="halfs")
    with pytest.raises(ArtifactError, match="does not exist; check the path"):
        build_store([tmp_path / "no.fa"], tmp_path / "store")
    assert sorted(tmp_path.iterdir()) == [fasta]


def test_what_is_no_store_is_refused_with_what_to_do(tmp_path, fasta):
    with pytest.raises(ArtifactError, match="make a genome store with: dnassm tokenize"):
        GenomeStore.open(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="is a file, expected a genome store; make one with"):
        GenomeStore.open(str(fasta))
    with pytest.raises(ArtifactError, match=r"is no genome store: it holds no store\.json"):
        GenomeStore.open(tmp_path)


def test_a_store_of_a_newer_version_is_refused(store):
    message = opened_after(store, lambda header: header.update(version=2))
    assert "a store of version 2, this dnassm reads up to 1; update dnassm" in message


def test_a_header_that_is_none_is_refused(store):
    assert "is damaged" in opened_after(store, lambda header: header.pop("contigs"))
    assert "is no header of a genome store" in opened_after(store, lambda header: header.clear())
    (store.path / "store.json").write_text('{"format": ')
    with pytest.raises(ArtifactError, match="expected JSON"):
        GenomeStore.open(store.path)


def test_truncated_codes_are_noticed_at_once(store):
    codes = store.path / "codes.bin"
    codes.write_bytes(codes.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="expected 24 bytes, found 23; the copy is incomplete"):
        GenomeStore.open(store.path)
    codes.unlink()
    with pytest.raises(ArtifactError, match="expected 24 bytes, found 0"):
        GenomeStore.open(store.path)


def test_verify_notices_a_changed_base(store):
    store.verify()
    codes = bytearray((store.path / "codes.bin").read_bytes())
    codes[20] ^= 1
    (store.path / "codes.bin").write_bytes(codes)
    with pytest.raises(ArtifactError, match="the bases of contig 'chr2' are not those"):
        GenomeStore.open(store.path).verify()


def test_a_full_disk_is_one_line_and_the_old_store_survives(store, fasta, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CodesFile, "append", full)
    with pytest.raises(ArtifactError, match="the disk is full"):
        build_store([fasta], store.path, force=True)
    assert GenomeStore.open(store.path).digest == store.digest
    assert sorted(p.name for p in store.path.parent.iterdir()) == ["genome.fa", "store"]


def test_a_disk_that_really_is_full_is_one_line_and_nothing_is_left(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        small, large = tmp_path / "small.fa", tmp_path / "large.fa"
        small.write_text(GENOME)
        large.write_text(">big\n" + "ACGTACGTAC\n" * 100_000)
        old = build_store([small], disk / "store")
        with pytest.raises(ArtifactError, match="the disk is full") as caught:
            build_store([large], disk / "store", force=True)
        assert "\n" not in str(caught.value)
        assert GenomeStore.open(disk / "store").digest == old.digest
        assert [p.name for p in disk.iterdir()] == ["store"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_file_size_limit_of_the_shell_leaves_nothing(tmp_path):
    path = tmp_path / "large.fa"
    path.write_text(">big\n" + "ACGTACGTAC\n" * 100_000)
    command = [sys.executable, "-m", "dnassm", "tokenize", str(path), "--out", "store"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("dnassm: error: store: cannot be written")
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["large.fa"]


def start_on_a_pipe(tmp_path, *options) -> tuple[subprocess.Popen[bytes], threading.Event]:
    """`dnassm tokenize` stopped in its middle: its input is a pipe that stays open."""
    pipe = tmp_path / "pipe.fa"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "dnassm", "tokenize", str(pipe), "--out", "store", *options]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # A job in the background is born deaf to Ctrl-C; the tests may be such a job.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    stop = threading.Event()

    def feed():
        with contextlib.suppress(BrokenPipeError), pipe.open("wb") as file:
            file.write(b">big\n" + b"ACGTACGTAC\n" * 100_000)
            file.flush()
            stop.wait(60)

    threading.Thread(target=feed, daemon=True).start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        written = [p.stat().st_size for p in tmp_path.glob(".store.partial-*/codes.bin")]
        if written and written[0] > 100_000:
            return process, stop
        time.sleep(0.02)
    process.kill()
    raise AssertionError("tokenize wrote nothing in 60 s")


@pytest.mark.parametrize("old_store", [True, False])
def test_sigkill_in_the_middle_leaves_the_old_store_and_the_next_run_cleans_up(
    tmp_path, fasta, old_store
):
    if old_store:
        old = build_store([fasta], tmp_path / "store")
    process, stop = start_on_a_pipe(tmp_path, "--force")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    stop.set()
    assert len(list(tmp_path.glob(".store.partial-*"))) == 1
    if old_store:
        assert GenomeStore.open(tmp_path / "store").digest == old.digest
    else:
        with pytest.raises(DnassmError):
            GenomeStore.open(tmp_path / "store")
        for partial in tmp_path.glob(".store.partial-*"):
            with pytest.raises(DnassmError):
                GenomeStore.open(partial)
    build_store([fasta], tmp_path / "store", force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["genome.fa", "pipe.fa", "store"]


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path):
    process, stop = start_on_a_pipe(tmp_path)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    stop.set()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert [p.name for p in tmp_path.iterdir()] == ["pipe.fa"]


def test_tokenizing_imports_no_torch(tmp_path, fasta):
    code = (
        "import sys; from pathlib import Path; from dnassm.data.store import build_store\n"
        f"build_store([Path({str(fasta)!r})], Path({str(tmp_path / 's')!r}))\n"
        "assert not {'torch', 'pydantic', 'Bio', 'sklearn', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def independent(path: Path) -> dict[str, str]:
    with gzip.open(path, "rt") as file:
        return {record.id: str(record.seq) for record in SeqIO.parse(file, "fasta")}


@pytest.mark.parametrize(
    ("name", "contigs", "bases"),
    [
        ("ecoli_mg1655/GCF_000005845.2_ASM584v2_genomic.fna.gz", 1, 4_641_652),
        ("yeast_s288c/Saccharomyces_cerevisiae.R64-1-1.dna.toplevel.fa.gz", 17, 12_157_105),
        ("human_small/hg38_chr1_first1Mb.fa.gz", 1, 1_000_000),
        ("human_small/hg18_trimmed_bgzip.fasta.gz", 2, 1_016_571),
        ("human_small/human_g1k_v37.20.21.10M-10M200k.fasta.gz", 2, 400_000),
        ("human_small/hg19mini.fasta.gz", 4, 64_000),
        ("human_small/chr17.hg19.part.fa.gz", 1, 40_000),
    ],
)
def test_a_real_genome_has_the_bases_and_md5_of_an_independent_computation(
    real_data, tmp_path, name, contigs, bases
):
    store = build_store([real_data / name], tmp_path / "store")
    assert (len(store.contigs), sum(store.lengths.values())) == (contigs, bases)
    expected = independent(real_data / name)
    assert list(store.lengths) == list(expected)
    for contig in store.contigs:
        sequence = expected[contig.name]
        assert contig.md5 == hashlib.md5(sequence.upper().encode()).hexdigest()
        assert decode(store.fetch(Interval(contig.name, 0, contig.length))) == sequence
        assert contig.counts["soft_masked"] == sum(sequence.count(base) for base in "acgtn")
    store.verify()


@pytest.mark.parametrize(
    ("name", "contig", "n", "soft_masked"),
    [
        ("hg38_chr1_first1Mb.fa.gz", "chr1", 160_000, 0),
        ("hg18_trimmed_bgzip.fasta.gz", "chrM", 0, 115 + 72 + 89 + 97),
        ("hg18_trimmed_bgzip.fasta.gz", "chr20", 8_000, 131_680 + 165_612 + 162_797 + 135_823),
        ("human_g1k_v37.20.21.10M-10M200k.fasta.gz", "21", 50_000, 0),
        ("hg19mini.fasta.gz", "3", 16_000, 0),
        ("chr17.hg19.part.fa.gz", "chr17", 0, 4_467 + 4_243 + 4_574 + 4_111),
    ],
)
def test_n_runs_and_soft_mask_are_counted_as_the_data_set_states(
    real_data, tmp_path, name, contig, n, soft_masked
):
    counts = build_store([real_data / "human_small" / name], tmp_path / "s").contig(contig).counts
    assert (counts["N"], counts["soft_masked"]) == (n, soft_masked)
