"""Stores built over processes: the same store, whatever is killed, and taken up again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dnassm.data import store_shards
from dnassm.data.store import GenomeStore, append_to_store, build_store
from dnassm.data.store_shards import finished_bytes, shard_folder
from dnassm.errors import ArtifactError, ConfigError, DnassmError, FormatError
from dnassm.pipelines.cli import cli

FILES = 5


def write_genomes(folder: Path, files: int = FILES, bases: int = 3000) -> list[Path]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(files):
        paths.append(folder / f"g{number}.fa")
        with paths[-1].open("w") as file:
            for contig in range(1 + number % 3):
                text = "".join(rng.choice(list("ACGTacgtN"), bases + number))
                file.write(f">g{number}.{contig} a species\n{text}\n")
    return paths


def files_of(store: GenomeStore) -> list[bytes]:
    return [(store.path / name).read_bytes() for name in ("codes.bin", "store.json")]


@pytest.fixture(scope="module")
def genomes(tmp_path_factory) -> list[Path]:
    return write_genomes(tmp_path_factory.mktemp("genomes"))


@pytest.fixture(scope="module")
def straight(genomes, tmp_path_factory) -> GenomeStore:
    return build_store(genomes, tmp_path_factory.mktemp("one") / "store", split="halves")


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


def test_many_processes_write_the_store_of_one_bit_for_bit(genomes, straight, tmp_path):
    seen: list[int] = []
    store = build_store(genomes, tmp_path / "store", split="halves", jobs=3, progress=seen.append)
    assert files_of(store) == files_of(straight)
    store.verify()
    assert seen[-1] == sum(path.stat().st_size for path in genomes)
    assert seen == sorted(seen)
    assert hidden(tmp_path) == []


def test_appending_over_processes_is_appending(genomes, straight, tmp_path):
    build_store(genomes[:2], tmp_path / "store", split="halves")
    grown = append_to_store(genomes[2:], tmp_path / "store", jobs=2)
    assert files_of(grown) == files_of(straight)


def test_from_the_command_line_jobs_change_nothing(genomes, straight, tmp_path):
    out = tmp_path / "store"
    options = ["--out", str(out), "--split", "halves", "--jobs", "2"]
    done = CliRunner().invoke(cli, ["tokenize", *map(str, genomes), *options])
    assert done.exit_code == 0, done.output
    assert files_of(GenomeStore.open(out)) == files_of(straight)


def test_a_bad_file_is_named_and_the_finished_ones_are_not_read_again(
    genomes, straight, tmp_path, monkeypatch
):
    bad = tmp_path / "bad.fa"
    bad.write_text(">p\nMKVLAE\n")
    out = tmp_path / "store"
    with pytest.raises(FormatError, match=r"bad\.fa, line 2, contig 'p': .*amino acid"):
        build_store([*genomes, bad], out, jobs=2, split="halves")
    assert not out.exists()
    assert finished_bytes(genomes, out) == sum(path.stat().st_size for path in genomes)
    # Nothing is left to do, so no process may be needed.
    monkeypatch.setattr(store_shards.multiprocessing, "get_context", None)
    assert files_of(build_store(genomes, out, jobs=2, split="halves")) == files_of(straight)
    assert hidden(tmp_path) == []


def test_a_file_that_changed_since_its_shard_was_made_is_read_again(tmp_path):
    paths = write_genomes(tmp_path / "in")
    out = tmp_path / "store"
    (tmp_path / "bad.fa").write_text(">p\nMKVE\n")
    with pytest.raises(FormatError):
        build_store([*paths, tmp_path / "bad.fa"], out, jobs=2)
    before = paths[1].stat()
    paths[1].write_bytes(paths[1].read_bytes().replace(b"A", b"C"))
    os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    store = build_store(paths, out, jobs=2)
    assert store.digest == build_store(paths, tmp_path / "again").digest


@pytest.mark.parametrize("damage", ["short codes", "no codes", "half a header", "another version"])
def test_a_shard_that_is_not_whole_is_made_again(genomes, straight, tmp_path, damage):
    bad = tmp_path / "bad.fa"
    bad.write_text(">p\nMKVE\n")
    out = tmp_path / "store"
    with pytest.raises(FormatError):
        build_store([*genomes, bad], out, jobs=1 + len(genomes), split="halves")
    record = next(shard_folder(out).glob("*.json"))
    codes = record.with_suffix(".codes")
    if damage == "short codes":
        codes.write_bytes(codes.read_bytes()[:-1])
    elif damage == "no codes":
        codes.unlink()
    elif damage == "half a header":
        record.write_text(record.read_text()[:40])
    else:
        record.write_text(json.dumps({"of": {"version": 0}}))
    assert files_of(build_store(genomes, out, jobs=2, split="halves")) == files_of(straight)


def test_a_name_in_two_files_is_refused_with_both_places(genomes, tmp_path):
    copy = tmp_path / "copy.fa"
    shutil.copyfile(genomes[2], copy)
    with pytest.raises(FormatError) as caught:
        build_store([*genomes, copy], tmp_path / "store", jobs=2)
    assert f"{copy}, line 1: contig 'g2.0' occurs a second time" in str(caught.value)
    assert f"first in {genomes[2]}, line 1" in str(caught.value)
    with pytest.raises(FormatError, match="occurs a second time"):
        build_store([genomes[0], genomes[0]], tmp_path / "store", jobs=2)


def test_no_process_at_all_is_refused(genomes, tmp_path):
    with pytest.raises(ConfigError, match="jobs: expected at least 1 process, got 0"):
        build_store(genomes, tmp_path / "store", jobs=0)


def test_two_runs_for_one_store_do_not_mix(genomes, tmp_path):
    out = tmp_path / "store"
    with (
        store_shards._claim(shard_folder(out), out),
        pytest.raises(ArtifactError, match="another process is building it"),
    ):
        build_store(genomes, out, jobs=2)


def command(paths: list[Path], out: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "dnassm", "tokenize", *map(str, paths)),
        *("--out", str(out), "--jobs", "2", "--split", "halves", "--force"),
    ]


def children_of(process: subprocess.Popen[bytes]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_no_store_or_a_whole_one(tmp_path):
    paths = write_genomes(tmp_path / "in", files=12, bases=60_000)
    expected = files_of(build_store(paths, tmp_path / "whole", split="halves"))
    out = tmp_path / "store"
    began = time.monotonic()
    subprocess.run(command(paths, out), check=True, capture_output=True)
    takes = time.monotonic() - began
    shutil.rmtree(out)
    dice = random.Random(0)
    killed, left = 0, set()
    for _ in range(8):
        process = subprocess.Popen(
            command(paths, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(dice.uniform(0.3, 1.1) * takes)
        workers = children_of(process) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        killed += process.returncode == -signal.SIGKILL
        if out.exists():
            assert files_of(GenomeStore.open(out)) == expected
            left.add("whole")
        else:
            left.add("none")
        deadline = time.monotonic() + 30
        while any(map(runs, workers)):  # they end with the first process
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert killed
    subprocess.run(command(paths, out), check=True, capture_output=True)
    assert files_of(GenomeStore.open(out)) == expected
    assert hidden(tmp_path) == []


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_its_shards(tmp_path):
    paths = write_genomes(tmp_path / "in", files=12, bases=60_000)
    out = tmp_path / "store"
    process = subprocess.Popen(
        command(paths, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(shard_folder(out).glob("*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait(60)
    if not out.exists():
        assert finished_bytes(paths, out) > 0
    done = subprocess.run(command(paths, out), check=True, capture_output=True, text=True)
    assert "tokenize" in done.stderr
    assert GenomeStore.open(out).digest == build_store(paths, tmp_path / "one").digest
    assert hidden(tmp_path) == []


def test_a_worker_that_is_killed_is_one_line_and_not_a_hang(genomes, tmp_path, monkeypatch):
    monkeypatch.setattr(store_shards, "_make", kill_myself)
    with pytest.raises(ArtifactError, match="a process that read files was killed") as caught:
        build_store(genomes, tmp_path / "store", jobs=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(DnassmError):
        GenomeStore.open(tmp_path / "store")


def kill_myself(path: Path, folder: Path, threads: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
