"""`dnassm tokenize`: table on stdout, progress on stderr, one line for a mistake."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dnassm.data.store import GenomeStore
from dnassm.errors import ArtifactError, ConfigError, FormatError
from dnassm.pipelines.cli import cli


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "genome.fa"
    path.write_text(">chr1 one\nACGTNacgtn\n>chr2\nGGCC\n")
    return path


def invoke(*arguments):
    return CliRunner().invoke(cli, ["tokenize", *map(str, arguments)])


def test_the_table_shows_every_contig_and_the_progress_goes_to_stderr(fasta, tmp_path):
    result = invoke(fasta, "--out", tmp_path / "store", "--split", "halves")
    assert result.exit_code == 0
    store = GenomeStore.open(tmp_path / "store")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["contig", "bases", "GC", "N", "IUPAC", "soft-masked", "MD5"]
    assert lines[1].split() == ["chr1", "10", "0.5", "2", "0", "5", store.contig("chr1").md5]
    assert lines[3].split()[:3] == ["all", "2", "14"]
    assert "split   halves:gap=0: train 7, valid 0, test 7 bases" in lines
    assert lines[-1] == f"digest  {store.digest}"
    assert "MB/s" in result.stderr or "B/s" in result.stderr


def test_json_holds_the_same_facts(fasta, tmp_path):
    result = invoke(fasta, "--out", tmp_path / "store", "--json")
    facts = json.loads(result.stdout)
    assert facts["bases"] == 14
    assert facts["soft_masked"] == 5
    assert [contig["name"] for contig in facts["contigs"]] == ["chr1", "chr2"]
    assert facts["split"] == {"rule": "none", "train": 14, "valid": 0, "test": 0}


def test_the_run_is_recorded_with_its_inputs(fasta, tmp_path):
    invoke(fasta, "--out", tmp_path / "store", "--split", "contig:test=chr2")
    run = json.loads((tmp_path / "store" / "run.json").read_text())
    assert run["command"] == "tokenize"
    assert run["config"] == {"split": "contig:test=chr2"}
    assert list(run["inputs"]) == [str(fasta)]
    assert {"python", "dnassm", "numpy"} <= set(run["versions"])
    assert run["seed"] is None


@pytest.mark.parametrize(
    ("content", "options", "kind"),
    [
        (">a\nMKVLAE\n", [], FormatError),
        (">a\nACGT\n", ["--split", "block:size=3,every=2"], ConfigError),
        (None, [], ArtifactError),
    ],
)
def test_a_mistake_is_a_dnassm_error_and_leaves_no_store(tmp_path, content, options, kind):
    path = tmp_path / "a.fa"
    if content is not None:
        path.write_text(content)
    result = invoke(path, "--out", tmp_path / "store", *options)
    assert isinstance(result.exception, kind)
    assert [p.name for p in tmp_path.iterdir() if p != path] == []


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ("block:size=3,every=2", "no split rule 'block'; have none, .* Did you mean 'blocks'?"),
        ("blocks:size=0,every=2", "size must be a whole number >= 1, got '0'"),
        ("halves:gap", "expected key=value, got 'gap'"),
        ("bed:nothing.bed", "nothing.bed: expected a BED file, cannot read it"),
    ],
)
def test_a_wrong_rule_is_said_before_anything_is_read(fasta, tmp_path, split, said):
    for path in (fasta, tmp_path / "missing.fa"):
        result = invoke(path, "--out", tmp_path / "store", "--split", split)
        assert re.search(said, str(result.exception))
        assert result.output == result.stderr == ""


def test_a_taken_target_is_kept_without_force(fasta, tmp_path):
    assert invoke(fasta, "--out", tmp_path / "store").exit_code == 0
    again = invoke(fasta, "--out", tmp_path / "store")
    assert isinstance(again.exception, ArtifactError)
    assert invoke(fasta, "--out", tmp_path / "store", "--force").exit_code == 0


def test_from_the_shell_a_mistake_is_one_line_and_exit_code_1(tmp_path):
    (tmp_path / "p.fa").write_text(">p\nMKVLAE\n")
    done = subprocess.run(
        [sys.executable, "-m", "dnassm", "tokenize", "p.fa", "--out", "store"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("dnassm: error: p.fa, line 2, contig 'p': ")
    assert "Traceback" not in done.stderr


def peak_of_tokenizing(paths, store, jobs) -> int:
    """Bytes of memory of the process, and of its largest child, at their peak."""
    code = (
        "import resource\n"
        "from pathlib import Path; from dnassm.data.store import build_store\n"
        "if __name__ == '__main__':\n"
        f"    paths = [Path(path) for path in {[str(path) for path in paths]!r}]\n"
        f"    build_store(paths, Path({str(store)!r}), jobs={jobs})\n"
        "    status = Path('/proc/self/status').read_text().splitlines()\n"
        "    own = int(next(line.split()[1] for line in status if 'VmHWM' in line))\n"
        "    print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"
    )
    script = store.with_name(store.name + ".py")
    script.write_text(code)  # processes of a pool import it again
    done = subprocess.run([sys.executable, str(script)], capture_output=True, check=True)
    return int(done.stdout) * 1024


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "jobs"), [("plain", 1), ("gzip", 1), ("plain", 2)])
def test_memory_does_not_depend_on_the_length_of_the_genome(tmp_path, kind, jobs):
    # Of the bases only blocks of one size are ever in memory, and a bounded number of them waits
    # for the threads: what 240 MB need, 3.1 GB need too. From 100 MB on there is the compiler too.
    line = b"ACGTTGCAAC" * 6 + b"\n"
    peaks = []
    for pieces in (45, 100):
        path = tmp_path / f"{pieces}.fa"
        with gzip.open(path, "wb", 1) if kind == "gzip" else path.open("wb") as file:
            file.write(b">chr1\n")
            for _ in range(pieces):
                file.write(line * 40_000)
        small = tmp_path / "small.fa"
        small.write_text(">chr2\nACGT\n")
        peaks.append(peak_of_tokenizing([path, small], tmp_path / f"{pieces}.store", jobs))
        codes = tmp_path / f"{pieces}.store" / "codes.bin"
        assert codes.stat().st_size == pieces * 40_000 * 60 + 4
    assert peaks[1] < 200e6
    assert peaks[1] - peaks[0] < 15e6
