"""GenomeStore: a folder with one byte per base, memory-mapped, and what is known of each contig.

Format: docs/store.md. A store is written once, staged beside its place and renamed into it, so a
process that is killed leaves the old store or none.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dnassm.artifact import check_target, staged_folder
from dnassm.data.alphabet import Codes
from dnassm.data.codes_file import CodesFile
from dnassm.data.genome import Genome, genome_digest
from dnassm.data.interval import Interval
from dnassm.data.split import PARTS, SplitRule, parse_split
from dnassm.data.store_header import StoredContig, json_text, read_lines, write_lines
from dnassm.data.store_shards import drop_shards, shards
from dnassm.data.store_writer import Part, Progress, twice, usable_cores, write_part
from dnassm.errors import ArtifactError, ConfigError, DnassmError
from dnassm.provenance import write_run_json

FORMAT = "dnassm-genome"
VERSION = 1
_CODES = "codes.bin"
_HEADER = "store.json"


class GenomeStore(Genome):
    """A genome on disk; opening reads the header only, `fetch` maps the bases.

    Safe to share: it pickles as its path, and every process maps the file for itself.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.stored: tuple[StoredContig, ...] = tuple(header["contigs"])
        """The contigs again, with their offsets in codes.bin."""
        splits = {part: tuple(header["splits"][part]) for part in PARTS}
        super().__init__(path, self.stored, header["splits"]["rule"], MappingProxyType(splits))
        self.sources: tuple[Mapping[str, Any], ...] = tuple(header["sources"])
        self._digest: str = header["digest"]
        self._offsets = {contig.name: contig.offset for contig in self.stored}
        self._codes: Codes | None = None

    @classmethod
    def open(cls, path: Path | str) -> GenomeStore:
        """Open the store in the folder `path`.

        Raises:
            ArtifactError: it is missing, no store, of a newer version, or cut short.
        """
        folder = Path(path)
        _check_is_store(folder)
        try:
            with _collector_paused():
                header = read_lines(folder / _HEADER)
                _check_version(folder, header)
                _check_contigs(header["contigs"])
                for part in PARTS:
                    header["splits"][part] = [Interval(*entry) for entry in header["splits"][part]]
                store = cls(folder, header)
                _check_header(store)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            words = " ".join(str(error).split())  # keys of JSON may hold line ends
            raise ArtifactError(
                f"{folder / _HEADER} is damaged ({type(error).__name__}: {words}); "
                "tokenize the genome again"
            ) from error
        store._check_size()
        return store

    def __reduce__(self) -> tuple[Callable[[Path], GenomeStore], tuple[Path]]:
        return GenomeStore.open, (self.path,)

    @property
    def digest(self) -> str:
        """As in the header; `verify` holds the bases against it."""
        return self._digest

    def verify(self) -> None:
        """Read every base again and compare with the sha256 of its contig.

        Raises:
            ArtifactError: a contig's codes changed since the store was written.
        """
        for contig in self.contigs:
            codes = self._read(contig.name, 0, contig.length)
            if hashlib.sha256(codes.data).hexdigest() != contig.sha256:
                raise ArtifactError(
                    f"{self.path}: the bases of contig {contig.name!r} are not those that were "
                    "written; the disk or a copy damaged them: tokenize the genome again"
                )

    def _read(self, contig: str, start: int, end: int) -> Codes:
        if self._codes is None:
            mapped = np.memmap(self.path / _CODES, dtype=np.uint8, mode="r")
            self._codes = mapped.view(np.ndarray)  # slices of the subclass cost ten times more
        offset = self._offsets[contig]
        return self._codes[offset + start : offset + end]

    def _check_size(self) -> None:
        expected = sum(contig.length for contig in self.contigs)
        file = self.path / _CODES
        found = file.stat().st_size if file.is_file() else 0
        if found != expected:
            raise ArtifactError(
                f"{file}: expected {expected:,} bytes, found {found:,}; the copy is incomplete: "
                "copy the store again or tokenize the genome again"
            )


def build_store(
    fastas: Sequence[Path],
    out: Path,
    *,
    split: str = "none",
    jobs: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> GenomeStore:
    """Write the contigs of FASTA files, in their order, into a new store and open it.

    Args:
        fastas: plain, gzip or bgzip FASTA files.
        out: folder of the store; must not exist or be empty unless `force`.
        split: a rule of dnassm.data.split.
        jobs: processes that read files, one file each at a time; changes nothing in the store. With
            2 or more, a run that was stopped is taken up again (see dnassm.data.store_shards), and
            a script must call this under ``if __name__ == "__main__":``.
        force: replace a store that is there already; never another kind of folder.
        progress: called after every block of input.

    Raises:
        FormatError: an input is no DNA FASTA, or a contig name occurs twice.
        ArtifactError: an input cannot be read or `out` cannot be written.
        ConfigError: the split rule is wrong or leaves a part empty, or jobs is below 1.
    """
    rule = parse_split(split)
    _check_out(out, fastas, force=force)
    return _write(_Inputs(fastas, jobs, progress), out, rule, before=None, force=force)


def append_to_store(
    fastas: Sequence[Path], out: Path, *, jobs: int = 1, progress: Progress | None = None
) -> GenomeStore:
    """Add the contigs of more FASTA files to the store `out`: the store of all files at once.

    Its split rule is applied to all contigs anew. The store is written beside the old one and
    replaces it in one move: a reader, or a kill, sees the old or the new one.

    Raises:
        FormatError: as in `build_store`; a name may not occur in the store already either.
        ArtifactError: `out` is no store, or an input or `out` cannot be read or written.
    """
    old = GenomeStore.open(out)
    _check_out(out, fastas, force=True)
    inputs = _Inputs(fastas, jobs, progress)
    return _write(inputs, out, parse_split(old.split_rule), before=old, force=True)


class _Inputs:
    """The FASTA files of a store and how they are read."""

    def __init__(self, fastas: Sequence[Path], jobs: int, progress: Progress | None) -> None:
        if jobs < 1:
            raise ConfigError(f"jobs: expected at least 1 process, got {jobs}")
        self.fastas = fastas
        self._jobs = jobs
        self._progress = progress
        self._done = 0

    @contextlib.contextmanager
    def open(self, out: Path) -> Iterator[Callable[[Path, CodesFile], Part]]:
        """Yield what writes the codes of a file and says what they are."""
        if self._jobs > 1 and len(self.fastas) > 1:
            with shards(self.fastas, out, jobs=self._jobs, progress=self._progress) as copy:
                yield copy
        else:
            yield self._straight
            drop_shards(out)

    def _straight(self, path: Path, codes: CodesFile) -> Part:
        done = self._done

        def report(position: int) -> None:
            if self._progress is not None:
                self._progress(done + position)

        part = write_part(path, codes, threads=usable_cores() > 1, progress=report)
        self._done += part.source["bytes"]
        return part


def _write(
    inputs: _Inputs, out: Path, rule: SplitRule, *, before: GenomeStore | None, force: bool
) -> GenomeStore:
    with (
        _write_errors(out),
        inputs.open(out) as write_part_of,
        staged_folder(out, force=force) as folder,
    ):
        joined = _Joined(before)
        if before is not None:
            shutil.copyfile(before.path / _CODES, folder / _CODES)
        with CodesFile(folder / _CODES) as codes:
            for path in inputs.fastas:
                joined.add(write_part_of(path, codes), path)
        header = _header(joined.contigs, rule, joined.sources)
        write_lines(folder / _HEADER, _as_lines(header))
        write_run_json(
            folder,
            command="tokenize",
            config={"split": rule.text},
            seed=None,
            inputs={source["path"]: _source_digest(source) for source in joined.sources},
        )
    return GenomeStore(out, header)


class _Joined:
    """Contigs and sources of one part after the other, after those of a store, if any."""

    def __init__(self, before: GenomeStore | None) -> None:
        self.contigs: list[StoredContig] = []
        self.sources: list[dict[str, Any]] = []
        self._seen: dict[str, Path] = {}
        """Where each name came from: a file, or the store."""
        self._lines: list[int] = []
        """Of the headers in these files; 0 in the store."""
        self._length = 0
        if before is not None:
            self.contigs += before.stored
            self.sources += [dict(source) for source in before.sources]
            self._seen = dict.fromkeys(before.lengths, before.path)
            self._lines = [0] * len(before.stored)
            self._length = sum(before.lengths.values())

    def add(self, part: Part, path: Path) -> None:
        """Append what a file gave; raises FormatError where a name was there before."""
        for contig, line in zip(part.contigs, part.lines, strict=True):
            if contig.name in self._seen:
                raise twice(contig.name, f"{path}, line {line}", self._where(contig.name))
            self._seen[contig.name] = path
            self._lines.append(line)
            moves = contig.offset != self._length
            self.contigs.append(contig._replace(offset=self._length) if moves else contig)
            self._length += contig.length
        self.sources.append(part.source)

    def _where(self, name: str) -> str:
        line = self._lines[[contig.name for contig in self.contigs].index(name)]
        return f"{self._seen[name]}, line {line}" if line else f"the store {self._seen[name]}"


def input_bytes(fastas: Sequence[Path]) -> int:
    """Bytes of all files on disk.

    Raises:
        ArtifactError: one does not exist.
    """
    for path in fastas:
        if not path.exists():
            raise ArtifactError(f"{path} does not exist; check the path")
    return sum(path.stat().st_size for path in fastas)


@contextlib.contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    """Name the store in what staged_folder does not know: quotas, size limits, broken disks."""
    try:
        yield
    except OSError as error:
        if isinstance(error, DnassmError) or error.errno == errno.ENOSPC:
            raise
        raise ArtifactError(
            f"{out}: cannot be written ({error.strerror}); nothing was changed; try another --out"
        ) from error


def _source_digest(source: Mapping[str, Any]) -> str:
    digest: str = source["sha256"]
    return digest if source["over"] == "file" else f"contigs:{digest}"


def _header(
    contigs: list[StoredContig], rule: SplitRule, sources: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "digest": genome_digest(contigs),
        "contigs": contigs,
        "splits": {
            "rule": rule.text,
            "gap": rule.gap,
            **rule.apply({contig.name: contig.length for contig in contigs}),
        },
        "sources": sources,
    }


def _as_lines(header: Mapping[str, Any]) -> dict[str, Any]:
    """The header as JSON has it, a line per contig and interval."""
    splits = header["splits"]
    lines = {
        part: (f"[{json_text(i.contig)}, {i.start}, {i.end}]" for i in splits[part])
        for part in PARTS
    }
    contigs = map(StoredContig.json, header["contigs"])
    return {**header, "contigs": contigs, "splits": {**splits, **lines}}


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Let the garbage collector not look at every contig again while more of them are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_is_store(folder: Path) -> None:
    if folder.is_file():
        raise ArtifactError(
            f"{folder} is a file, expected a genome store; make one with: "
            f"dnassm tokenize {folder} --out STORE"
        )
    if not folder.is_dir():
        raise ArtifactError(f"{folder} does not exist; make a genome store with: dnassm tokenize")
    if not (folder / _HEADER).is_file():
        raise ArtifactError(f"{folder} is no genome store: it holds no {_HEADER}; check the path")


def _check_version(folder: Path, header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ArtifactError(f"{folder / _HEADER} is no header of a genome store; check the path")
    version = header.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ArtifactError(
            f"{folder}: a store of version {version}, this dnassm reads up to {VERSION}; "
            "update dnassm, or tokenize the genome again"
        )


def _check_contigs(contigs: Sequence[object]) -> None:
    for number, contig in enumerate(contigs, 1):
        if not isinstance(contig, StoredContig):
            raise ValueError(f"contig number {number} has unexpected keywords or values")


def _check_header(store: GenomeStore) -> None:
    """Raise ValueError where a header that was changed could show the bases of another place."""
    offset = 0
    for contig in store.stored:
        # The type itself: JSON's true is an int as well.
        whole = type(contig.length) is int is type(contig.offset)
        if not whole or contig.length < 1 or contig.offset != offset:
            raise ValueError(f"contig {contig.name!r} does not begin where the one before it ends")
        offset += contig.length
    if len(store.lengths) < len(store.stored) or store.digest != genome_digest(store.stored):
        raise ValueError("the digest is not that of the contigs")
    for interval in (interval for part in store.splits.values() for interval in part):
        if not type(interval.start) is int is type(interval.end):
            raise ValueError(f"a split begins or ends at no whole number: {interval}")
        if interval.end > store.lengths[interval.contig]:
            raise ValueError(f"a split ends past its contig: {interval}")


def _check_out(out: Path, fastas: Sequence[Path], *, force: bool) -> None:
    """Refuse what --force must not destroy, before any work is done."""
    if not fastas:
        raise ConfigError("expected at least one FASTA file, got none")
    input_bytes(fastas)
    for path in fastas:
        if out.resolve() in path.resolve().parents:
            raise ArtifactError(f"{out} holds the input {path}; choose another --out")
    if out.is_file():
        raise ArtifactError(f"{out} is a file, expected a folder to write; choose another --out")
    check_target(out, force=force)
    if out.is_dir() and any(out.iterdir()) and not (out / _HEADER).is_file():
        raise ArtifactError(f"{out} is no genome store, so --force keeps it; choose another --out")
