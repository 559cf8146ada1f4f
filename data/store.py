"""GenomeStore: a folder with one byte per base, memory-mapped, and what is known of each contig.

Format: docs/store.md. A store is written once, staged beside its place and renamed into it, so a
process that is killed leaves the old store or none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from dnassm.artifact import check_target, read_json, staged_folder, write_json
from dnassm.data.alphabet import PAD, Codes, reverse_complement
from dnassm.data.encoder import BaseCounts
from dnassm.data.fasta import Bases, Header, read_fasta
from dnassm.data.interval import Interval
from dnassm.data.split import PARTS, SplitRule, parse_split
from dnassm.errors import ArtifactError, ConfigError, DnassmError, FormatError, GenomeError
from dnassm.provenance import write_run_json
from dnassm.registry import did_you_mean

FORMAT = "dnassm-genome"
VERSION = 1
_CODES = "codes.bin"
_HEADER = "store.json"

Progress = Callable[[int], None]
"""Called with the bytes of all input files that have been read, of `input_bytes`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Contig:
    """One sequence of the genome."""

    name: str
    """First word of its FASTA header."""
    description: str
    """The rest of the header."""
    offset: int
    """Where its codes begin in codes.bin."""
    length: int
    """Bases."""
    sha256: str
    """Over its codes as stored: one byte per base, soft mask included."""
    md5: str
    """Over its letters as written, in upper case, without line ends: M5 of a SAM header."""
    counts: Mapping[str, int]
    """A, C, G, T, N, iupac, soft_masked, and U: the part of T that was written U."""


class GenomeStore:
    """A genome on disk; opening reads the header only, `fetch` maps the bases.

    Safe to share: it pickles as its path, and every process maps the file for itself.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self.digest: str = header["digest"]
        self.contigs: tuple[Contig, ...] = tuple(Contig(**entry) for entry in header["contigs"])
        self.lengths: dict[str, int] = {c.name: c.length for c in self.contigs}
        self.split_rule: str = header["splits"]["rule"]
        self.splits: Mapping[str, tuple[Interval, ...]] = MappingProxyType(
            {part: tuple(Interval(*entry) for entry in header["splits"][part]) for part in PARTS}
        )
        self.sources: tuple[Mapping[str, Any], ...] = tuple(header["sources"])
        self._by_name = {contig.name: contig for contig in self.contigs}
        self._codes: Codes | None = None

    @classmethod
    def open(cls, path: Path | str) -> GenomeStore:
        """Open the store in the folder `path`.

        Raises:
            ArtifactError: it is missing, no store, of a newer version, or cut short.
        """
        folder = Path(path)
        _check_is_store(folder)
        header = read_json(folder / _HEADER)
        _check_version(folder, header)
        try:
            store = cls(folder, header)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"{folder / _HEADER} is damaged ({type(error).__name__}: {error}); "
                "tokenize the genome again"
            ) from error
        store._check_size()
        return store

    def __reduce__(self) -> tuple[Callable[[Path], GenomeStore], tuple[Path]]:
        return GenomeStore.open, (self.path,)

    def __repr__(self) -> str:
        total = sum(self.lengths.values())
        return f"GenomeStore({str(self.path)!r}, {len(self.contigs)} contigs, {total:,} bases)"

    def contig(self, name: str) -> Contig:
        """The contig called `name`; raises GenomeError with a near-miss hint."""
        if name not in self._by_name:
            first = ", ".join(list(self._by_name)[:5])
            raise GenomeError(
                f"{self.path}: no contig {name!r}; it has {first}"
                f"{', ...' if len(self._by_name) > 5 else ''}.{did_you_mean(name, self._by_name)}"
            )
        return self._by_name[name]

    def fetch(self, interval: Interval, *, pad: bool = False) -> Codes:
        """Codes (L,) uint8 of an interval, a copy; the reverse complement on strand '-'.

        Args:
            interval: 0-based, half-open.
            pad: fill what lies past the end of the contig with PAD instead of raising.

        Raises:
            GenomeError: no such contig, or the interval ends past the contig and `pad` is off.
        """
        contig = self.contig(interval.contig)
        if interval.end > contig.length and not pad:
            raise GenomeError(
                f"{self.path}: contig {contig.name!r} ends at {contig.length:,} bp, asked for "
                f"[{interval.start:,}, {interval.end:,}); shorten the interval, or use pad=True"
            )
        start, end = (min(at, contig.length) for at in (interval.start, interval.end))
        codes = self._mapped()[contig.offset + start : contig.offset + end]
        if interval.end > contig.length:
            missing = interval.end - interval.start - codes.size
            codes = np.concatenate([codes, np.full(missing, PAD, dtype=np.uint8)])
        return reverse_complement(codes) if interval.strand == "-" else codes.copy()

    def verify(self) -> None:
        """Read every base again and compare with the sha256 of its contig.

        Raises:
            ArtifactError: a contig's codes changed since the store was written.
        """
        for contig in self.contigs:
            codes = self._mapped()[contig.offset : contig.offset + contig.length]
            if hashlib.sha256(codes.data).hexdigest() != contig.sha256:
                raise ArtifactError(
                    f"{self.path}: the bases of contig {contig.name!r} are not those that were "
                    "written; the disk or a copy damaged them: tokenize the genome again"
                )

    def _mapped(self) -> Codes:
        if self._codes is None:
            mapped = np.memmap(self.path / _CODES, dtype=np.uint8, mode="r")
            self._codes = mapped.view(np.ndarray)  # slices of the subclass cost ten times more
        return self._codes

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
    force: bool = False,
    progress: Progress | None = None,
) -> GenomeStore:
    """Write the contigs of FASTA files, in their order, into a new store and open it.

    Args:
        fastas: plain, gzip or bgzip FASTA files.
        out: folder of the store; must not exist or be empty unless `force`.
        split: a rule of dnassm.data.split.
        force: replace a store that is there already; never another kind of folder.
        progress: called after every block of input.

    Raises:
        FormatError: an input is no DNA FASTA, or a contig name occurs twice.
        ArtifactError: an input cannot be read or `out` cannot be written.
        ConfigError: the split rule is wrong or leaves a part empty.
    """
    rule = parse_split(split)
    _check_out(out, fastas, force=force)
    return _write(fastas, out, rule, progress, before=None, force=force)


def append_to_store(
    fastas: Sequence[Path], out: Path, *, progress: Progress | None = None
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
    return _write(fastas, out, parse_split(old.split_rule), progress, before=old, force=True)


def _write(
    fastas: Sequence[Path],
    out: Path,
    rule: SplitRule,
    progress: Progress | None,
    *,
    before: GenomeStore | None,
    force: bool,
) -> GenomeStore:
    with staged_folder(out, force=force) as folder, _write_errors(out):
        contigs, sources = [], []
        if before is not None:
            shutil.copyfile(before.path / _CODES, folder / _CODES)
            contigs, sources = list(before.contigs), [dict(source) for source in before.sources]
        with (folder / _CODES).open("ab") as codes_file:
            writer = _Writer(codes_file.write, contigs)
            sources += _write_contigs(fastas, writer, out, progress)
        write_json(folder / _HEADER, _header(writer.contigs, rule, sources))
        write_run_json(
            folder,
            command="tokenize",
            config={"split": rule.text},
            seed=None,
            inputs={source["path"]: _source_digest(source) for source in sources},
        )
    return GenomeStore.open(out)


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


class _Writer:
    """Adds to `contigs`: codes go to `write`, digests and counts stay."""

    def __init__(self, write: Callable[[Any], Any], contigs: list[Contig]) -> None:
        self.contigs = contigs
        self._write = write
        self._open: Header | None = None
        self._offset = sum(contig.length for contig in contigs)
        self._begin()

    def _begin(self) -> None:
        self._length = 0
        self._counts = BaseCounts()
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)

    def add(self, item: Header | Bases) -> None:
        """Take what read_fasta yields."""
        if isinstance(item, Header):
            self.close_contig()
            self._open = item
            return
        self._sha256.update(item.codes.data)
        self._md5.update(item.upper.data)
        self._write(item.codes)
        self._counts.add(item.counts)
        self._length += item.codes.size

    def close_contig(self) -> None:
        """File the contig that is being written, if any."""
        if self._open is None:
            return
        self.contigs.append(
            Contig(
                name=self._open.name,
                description=self._open.description,
                offset=self._offset,
                length=self._length,
                sha256=self._sha256.hexdigest(),
                md5=self._md5.hexdigest(),
                counts=dataclasses.asdict(self._counts),
            )
        )
        self._offset += self._length
        self._open = None
        self._begin()


def _write_contigs(
    fastas: Sequence[Path], writer: _Writer, out: Path, progress: Progress | None
) -> list[dict[str, Any]]:
    seen = {contig.name: f"the store {out}" for contig in writer.contigs}
    sources: list[dict[str, Any]] = []
    done = 0
    for path in fastas:
        digests: list[str | None] = []
        report = None if progress is None else _shifted(progress, done)
        first = len(writer.contigs)
        for item in read_fasta(path, progress=report, on_end=digests.append):
            if isinstance(item, Header):
                _check_new(item, path, seen)
            writer.add(item)
        writer.close_contig()
        size = path.stat().st_size
        sources.append(_source(path, size, digests[0], writer.contigs[first:]))
        done += size
    return sources


def _source(path: Path, size: int, digest: str | None, contigs: list[Contig]) -> dict[str, Any]:
    """What an input was: by the bytes of a compressed file, by the contigs of a plain one."""
    return {
        "path": str(path),
        "bytes": size,
        "sha256": _digest(contigs) if digest is None else digest,
        "over": "contigs" if digest is None else "file",
    }


def _source_digest(source: Mapping[str, Any]) -> str:
    digest: str = source["sha256"]
    return digest if source["over"] == "file" else f"contigs:{digest}"


def _shifted(progress: Progress, done: int) -> Progress:
    return lambda position: progress(done + position)


def _check_new(header: Header, path: Path, seen: dict[str, str]) -> None:
    where = f"{path}, line {header.line}"
    if header.name in seen:
        raise FormatError(
            f"{where}: contig {header.name!r} occurs a second time, first in {seen[header.name]}; "
            "names (the first word of a header) must differ: rename or remove one"
        )
    seen[header.name] = where


def _header(
    contigs: list[Contig], rule: SplitRule, sources: list[dict[str, Any]]
) -> dict[str, Any]:
    splits = rule.apply({contig.name: contig.length for contig in contigs})
    return {
        "format": FORMAT,
        "version": VERSION,
        "digest": _digest(contigs),
        "contigs": [dataclasses.asdict(contig) for contig in contigs],
        "splits": {
            "rule": rule.text,
            "gap": rule.gap,
            **{part: [[i.contig, i.start, i.end] for i in splits[part]] for part in PARTS},
        },
        "sources": sources,
    }


def _digest(contigs: Iterable[Contig]) -> str:
    """sha256 over a line ``name TAB length TAB sha256`` per contig, in order."""
    lines = (f"{contig.name}\t{contig.length}\t{contig.sha256}\n" for contig in contigs)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
