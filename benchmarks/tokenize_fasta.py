"""Speed and memory of `dnassm tokenize`: MB of FASTA per second on one core and on more, parts.

    python -m benchmarks.tokenize_fasta --out benchmarks/results/tokenize.json
    python -m benchmarks.tokenize_fasta --contigs 100000 --out FILE

Every measurement is a process of its own that is bound to so many cores; the imports are not in it,
the compilation is. `wall` is by the clock and includes waiting for the disk (the store is on it at
the end) and for other programs; `cpu` is the time that all threads of the process computed,
`main_thread` that of the one that parses. Each is the median over the turns, with the slowest and
the fastest beside it. The stages take turns, so that whatever else runs on the machine slows all of
them; `of_floor` is the median over the turns of the CPU time of the floor divided by that of
tokenizing.

The parts of a turn of one core: `parse` (with reading), `digests`, `write` and `compile_all`;
`hashlib` is what the digests would take without own code, `parse_by_numpy` the parsing, and
`digests_of_one` those of a genome of one contig, each byte of which has to wait for the one before.
The floor is `digests`, MD5 and SHA-256 of every base, and nothing else; of gzip it is `inflate`.
With --contigs the file is a draft assembly of so many contigs of 1.5 kb, the floor is `parse`, and
`open_store` opens what `tokenize` wrote.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import md5, sha256
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.machine import ROOT, describe
from dnassm.data import digest_code, line_code
from dnassm.data.alphabet import Codes
from dnassm.data.bytestream import ByteStream
from dnassm.data.codes_file import CodesFile
from dnassm.data.digest_lanes import DigestLanes
from dnassm.data.fasta import BLOCK_BYTES, read_blocks
from dnassm.data.store import GenomeStore, build_store

CONTIGS = 5
SOFT_MASKED, N_RUN = (0.30, 0.60), (0.90, 0.93)
"""Stretches of each contig, as fractions of its length."""


def write_fasta(path: Path, megabytes: int, width: int, contigs: int = CONTIGS) -> None:
    """A genome of random bases, 30 % soft-masked, 3 % N, with lines of one width."""
    rng = np.random.default_rng(0)
    rows = megabytes * 1_000_000 // contigs // (width + 1)
    with path.open("wb") as file:
        for number in range(contigs):
            file.write(f">chr{number}\n".encode())
            bases = np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, rows * width, np.uint8)]
            start, end = (int(part * bases.size) for part in SOFT_MASKED)
            bases[start:end] |= 0x20
            start, end = (int(part * bases.size) for part in N_RUN)
            bases[start:end] = ord("N")
            lines = np.full((rows, width + 1), ord("\n"), np.uint8)
            lines[:, :width] = bases.reshape(rows, width)
            file.write(lines.tobytes())


def compress(source: Path, target: Path) -> int:
    """Bytes of lines of `source` packed as archives pack them, at gzip's own level.

    That takes a minute per gigabyte: a quarter of the first contig is packed, four times for each.
    """
    with source.open("rb") as file:
        begin = file.readlines(source.stat().st_size // CONTIGS)
    lines = [line for line in begin if not line.startswith(b">")][::4]
    member = gzip.compress(b"".join(lines), 6)
    headers = [f">chr{number}\n".encode() for number in range(CONTIGS)]
    with target.open("wb") as file:
        for header in headers:
            file.write(gzip.compress(header) + 4 * member)
    return sum(map(len, headers)) + 4 * CONTIGS * sum(map(len, lines))


def read_only(path: Path, folder: Path) -> None:
    """Read the file into one buffer: the floor of everything."""
    for _ in _blocks(path):
        pass


def parse(path: Path, folder: Path) -> None:
    """Read, find headers, drop line ends, encode, count; no digests, nothing written."""
    for _ in read_blocks(path, compile_code=True):
        pass


def parse_by_numpy(path: Path, folder: Path) -> None:
    """The same without compiled code."""
    for _ in read_blocks(path):
        pass


def _blocks(path: Path) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            yield buffer[:count]


class _Zeros(CodesFile):
    """Holds nothing but zeros, in no time."""

    def fetch(self, codes: Codes, at: int) -> None:
        """Leave `codes` as they are."""


def _digests(path: Path, folder: Path, contigs: int) -> None:
    with _Zeros(folder / "codes") as file:
        lanes = DigestLanes(file)
        for _ in range(contigs):
            lanes.begin(file.size)
            file.size += path.stat().st_size // contigs
            lanes.grow(file.size)
        lanes.drain()


def digests(path: Path, folder: Path) -> None:
    """MD5 and SHA-256 of as many bytes, from memory, as tokenizing takes them."""
    _digests(path, folder, CONTIGS)


def digests_of_one(path: Path, folder: Path) -> None:
    """The same of one contig."""
    _digests(path, folder, 1)


def hashlib(path: Path, folder: Path) -> None:
    """The same by hashlib."""
    digests = md5(usedforsecurity=False), sha256()
    block = memoryview(bytes(BLOCK_BYTES))
    for start in range(0, path.stat().st_size, BLOCK_BYTES):
        for digest in digests:
            digest.update(block[: path.stat().st_size - start])


def write(path: Path, folder: Path) -> None:
    """Write as many bytes to the disk as tokenizing does."""
    with CodesFile(folder / "codes") as file:
        block = memoryview(bytes(BLOCK_BYTES))
        while file.size < path.stat().st_size:
            file.append(block[: path.stat().st_size - file.size])
        os.fsync(file.fileno())


def compile_all(path: Path, folder: Path) -> None:
    """Load the compiler and compile what long files are read with."""
    line_code.compiled()
    digest_code.compiled("one")
    digest_code.compiled("four")
    digest_code.compiled("spell")


def inflate(path: Path, folder: Path) -> None:
    """Inflate the file with isal into one buffer."""
    buffer = memoryview(bytearray(BLOCK_BYTES))
    with ByteStream(path) as stream:
        while stream.readinto(buffer):
            pass


def tokenize(path: Path, folder: Path) -> None:
    """All of it, flushed to the disk."""
    build_store([path], folder / "store")


def open_store(path: Path, folder: Path) -> None:
    """Open the store that stands beside the file."""
    GenomeStore.open(path.with_suffix(".store"))


STAGES: dict[str, Callable[[Path, Path], None]] = {
    f.__name__: f
    for f in (
        *(tokenize, read_only, parse, parse_by_numpy, digests, digests_of_one, hashlib),
        *(write, compile_all, inflate, open_store),
    )
}
GZIP = ("tokenize", "parse", "inflate")
MANY = ("tokenize", "read_only", "parse", "open_store")
PLAIN = tuple(stage for stage in STAGES if stage not in ("inflate", "open_store"))


def measure(stage: str, path: Path, cores: int) -> None:
    """In the child process: run one stage and print what it took."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    clocks = (time.perf_counter, time.process_time, time.thread_time)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        before = [clock() for clock in clocks]
        STAGES[stage](path, Path(folder))
        wall, cpu, main_thread = (
            clock() - start for clock, start in zip(clocks, before, strict=True)
        )
    # ru_maxrss would be that of the parent, which a child inherits
    status = Path("/proc/self/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    peak_mb = peak_kib * 1024 / 1e6
    print(json.dumps({"wall": wall, "cpu": cpu, "main_thread": main_thread, "peak_mb": peak_mb}))


def once(stage: str, path: Path, cores: int) -> dict[str, float]:
    """Run one stage in a process of its own."""
    program = [sys.executable, "-m", "benchmarks.tokenize_fasta", "--stage", stage]
    command = [*program, "--input", str(path), "--cores", str(cores)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, check=True, env=environment, cwd=ROOT)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def case(
    path: Path, megabytes: float, stages: Sequence[str], floor: str, cores: int, repeats: int
) -> dict[str, object]:
    """Several turns of each stage, in MB of FASTA text per second."""
    turns = [{stage: once(stage, path, cores) for stage in stages} for _ in range(repeats)]
    result: dict[str, object] = {
        stage: _summary([turn[stage] for turn in turns], megabytes) for stage in stages
    }
    shares = [turn[floor]["cpu"] / turn["tokenize"]["cpu"] for turn in turns]
    return {"cores": cores, "floor": floor, "of_floor": round(median(shares), 3), **result}


def _summary(turns: Sequence[dict[str, float]], megabytes: float) -> dict[str, object]:
    """Median, slowest and fastest speed of a stage; time per byte; memory at its peak."""
    summary: dict[str, object] = {}
    for clock in ("wall", "cpu"):
        speeds = sorted(megabytes / turn[clock] for turn in turns)
        summary[f"mb_per_{clock}_s"] = round(median(speeds), 1)
        summary[f"mb_per_{clock}_s_from_to"] = [round(speeds[0], 1), round(speeds[-1], 1)]
    for clock in ("cpu", "main_thread"):
        seconds = median(turn[clock] for turn in turns)
        summary[f"{clock}_ns_per_byte"] = round(seconds * 1e3 / megabytes, 3)
    return {**summary, "peak_rss_mb": round(max(turn["peak_mb"] for turn in turns), 1)}


def run(megabytes: int, repeats: int, folder: Path) -> dict[str, object]:
    """Measure every case in `folder`."""
    plain = {width: folder / f"lines{width}.fa" for width in (60, 80)}
    for width, path in plain.items():
        write_fasta(path, megabytes, width)
    packed = folder / "lines60.fa.gz"
    size = compress(plain[60], packed) / 1e6
    cases: dict[str, object] = {}
    for cores in [n for n in (1, 2, 4) if n <= len(os.sched_getaffinity(0))]:
        for width, path in plain.items() if cores == 1 else [(60, plain[60])]:
            name = f"plain, {width} columns, cores {cores}"
            own = path.stat().st_size / 1e6
            cases[name] = case(path, own, PLAIN, "digests", cores, repeats)
        name = f"gzip, 60 columns, cores {cores}, MB of content"
        cases[name] = case(packed, size, GZIP, "inflate", cores, repeats)
    return {**describe(), "megabytes": megabytes, "cases": cases}


def run_many(contigs: int, repeats: int, folder: Path) -> dict[str, object]:
    """Measure a draft assembly of so many contigs."""
    path = folder / "contigs.fa"
    write_fasta(path, contigs * 1525 // 1_000_000, 60, contigs)
    build_store([path], path.with_suffix(".store"))
    cases = {
        f"plain, contigs of 1.5 kb, cores {cores}": case(
            path, path.stat().st_size / 1e6, MANY, "parse", cores, repeats
        )
        for cores in (1, 2)
    }
    return {**describe(), "contigs": contigs, "cases": cases}


def main() -> None:
    """Parse the command line and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--contigs", type=int, help="measure a file of so many short contigs")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--input", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, default=1, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        measure(arguments.stage, arguments.input, arguments.cores)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.contigs:
            result = run_many(arguments.contigs, arguments.repeats, Path(folder))
        else:
            result = run(arguments.megabytes, arguments.repeats, Path(folder))
    text = json.dumps(result, indent=2)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
