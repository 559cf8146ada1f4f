"""FastaGenome: a FASTA file read at any place through pyfaidx, without a store.

For a look at a few windows, or where no second copy of a genome is wanted: the bases, digests and
errors are those of a store, each read costs more. Plain or bgzip; lines of one width per contig, as
an index needs them. `dnassm tokenize` reads every other FASTA.

The index is what samtools and pyfaidx use: ``genome.fa.fai``, and ``.gzi`` for bgzip. One that is
there is taken if it is not older than the file and fits it: every name stands where the index says,
and the last base ends where the file ends. Otherwise it is built, beside the file or, where nothing
may be written there, in the cache folder; staged and renamed, so that nobody finds half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from pyfaidx import Faidx, FastaIndexingError, FetchError

from dnassm.artifact import staged_file
from dnassm.data.alphabet import ASCII_TO_CODE, NO_BASE, Codes
from dnassm.data.encoder import BaseCounts, BlockEncoder, NotABaseError
from dnassm.data.fetch.job import default_folder
from dnassm.data.genome import Genome, genome_digest
from dnassm.data.split import parse_split
from dnassm.errors import ArtifactError, FormatError

_log = logging.getLogger(__name__)
_TABLE = ASCII_TO_CODE.tobytes()
_BLOCK_BASES = 3 << 18
_HEAD_BYTES = 18
_MOST_BLANK = 1 << 12
_TOKENIZE = "read it with: dnassm tokenize"


class FastaGenome(Genome):
    """A genome in a FASTA file, read through its index, which is built when it is missing.

    Safe to share: it pickles as its path, and every process, forked or spawned, opens the file for
    itself.
    """

    def __init__(self, reader: _Reader, split: str) -> None:
        rule = parse_split(split)
        contigs = [FastaContig(reader, *facts) for facts in reader.contigs()]
        splits = rule.apply({contig.name: contig.length for contig in contigs})
        super().__init__(reader.path, contigs, rule.text, MappingProxyType(splits))
        self._reader = reader

    @classmethod
    def open(cls, path: Path | str, *, split: str = "none") -> FastaGenome:
        """Open a FASTA file, plain or bgzip.

        Args:
            path: the file; its index lies beside it, or is made.
            split: a rule of dnassm.data.split.

        Raises:
            ArtifactError: it is missing or cannot be read.
            FormatError: it is no FASTA, or none that an index can describe; says what to do.
            GenomeError, ConfigError: the split rule is wrong or leaves a part empty.
        """
        path = Path(path)
        packed = _is_bgzip(path)
        places = [_Index.in_folder(folder, path, packed=packed) for folder in _folders(path)]
        index = next((place for place in places if place.fits(path)), None)
        return cls(_Reader(path, _build(path, places) if index is None else index), split)

    def __reduce__(self) -> tuple[Callable[[Path, str], FastaGenome], tuple[Path, str]]:
        return _reopen, (self.path, self.split_rule)

    @property
    def digest(self) -> str:
        """That of the store of this file; the first time, every base is read for it."""
        return genome_digest(self.contigs)

    def _read(self, contig: str, start: int, end: int) -> Codes:
        letters = self._reader.letters(contig, start, end)
        codes = np.frombuffer(letters.translate(_TABLE), dtype=np.uint8)
        if codes.size and codes.max() == NO_BASE:
            raise _not_a_base(self.path, contig, start, letters)
        return codes


@dataclasses.dataclass(frozen=True)
class FastaContig:
    """One sequence of a FASTA file; what needs all of its bases is computed when asked for."""

    _reader: _Reader
    name: str
    description: str
    length: int

    @property
    def sha256(self) -> str:
        """Over its codes, as a store has them."""
        return self._facts[0]

    @property
    def md5(self) -> str:
        """Over its letters as written, in upper case: M5 of a SAM header."""
        return self._facts[1]

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each kind of base occurs, as in a store."""
        return self._facts[2]

    @functools.cached_property
    def _facts(self) -> tuple[str, str, Mapping[str, int]]:
        sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        counts, encoder = BaseCounts(), BlockEncoder(_BLOCK_BASES)
        for start in range(0, self.length, _BLOCK_BASES):
            end = min(start + _BLOCK_BASES, self.length)
            letters = self._reader.letters(self.name, start, end)
            encoder.letters[: end - start] = np.frombuffer(letters, dtype=np.uint8)
            try:
                codes, upper, found = encoder.encode(end - start)
            except NotABaseError:
                raise _not_a_base(self._reader.path, self.name, start, letters) from None
            sha256.update(codes.data)
            md5.update(upper.data)
            counts.add(found)
        return sha256.hexdigest(), md5.hexdigest(), dataclasses.asdict(counts)


class _Reader:
    """The file, open in this process."""

    def __init__(self, path: Path, index: _Index) -> None:
        self.path = path
        self._index = index
        self._status = _status(path)
        self._faidx, self._owner = index.open(path), os.getpid()

    def __reduce__(self) -> tuple[type[_Reader], tuple[Path, _Index]]:
        return _Reader, (self.path, self._index)

    def contigs(self) -> Iterator[tuple[str, str, int]]:
        """Name, description and length of each."""
        for name, record in self._faidx.index.items():
            if record.rlen == 0:
                raise FormatError(
                    f"{self.path}: contig {name!r}: expected bases after the header, got none; is "
                    "the file complete? If so, delete the header"
                )
            description = (*self._faidx.get_long_name(name).split(None, 1), "", "")[1]
            yield name, description.strip(), record.rlen

    def letters(self, contig: str, start: int, end: int) -> bytes:
        """The letters of ``[start, end)`` of a contig as written; 0-based, half-open.

        Raises:
            ArtifactError: the file changed since it was opened, or is damaged.
        """
        if start == end:
            return b""
        if self._owner != os.getpid():  # after a fork, parent and child share one position
            self._faidx, self._owner = self._index.open(self.path), os.getpid()
        try:
            letters: bytes = self._faidx.fetch(contig, start + 1, end).encode()
        except (FetchError, OSError, ValueError, zlib.error) as error:
            raise ArtifactError(
                f"{self.path}: contig {contig!r} cannot be read at {start:,} ({error}); did the "
                "file change? Open it again, or copy it again"
            ) from error
        if len(letters) != end - start or _status(self.path) != self._status:
            raise ArtifactError(
                f"{self.path}: the file changed while it was in use; open the genome again"
            )
        return letters


class _Index(NamedTuple):
    """The files of an index."""

    fai: Path
    gzi: Path | None
    """Of bgzip only: where its blocks begin."""

    @classmethod
    def in_folder(cls, folder: Path, path: Path, *, packed: bool) -> _Index:
        gzi = folder / f"{path.name}.gzi" if packed else None
        return cls(folder / f"{path.name}.fai", gzi)

    def open(self, path: Path) -> Any:
        """Open the FASTA file at `path` with this index; nothing is written.

        Raises:
            FormatError: this is no index, or the file is none that pyfaidx reads.
        """
        return _faidx(path, self.fai, self.gzi)

    def fits(self, path: Path) -> bool:
        """Whether it is there, is not older than the file, and says where its contigs are."""
        made = [file for file in self if file is not None]
        if not all(file.is_file() for file in made):
            return False
        if min(file.stat().st_mtime_ns for file in made) < path.stat().st_mtime_ns:
            _log.warning("%s is older than %s: not used", self.fai, path)
            return False
        try:
            faidx = self.open(path)
            names_fit = all(
                faidx.get_long_name(name).split(None, 1)[:1] == [name] for name in faidx.index
            )
            fits = names_fit and bool(faidx.index) and (self.gzi or _ends_with(faidx, path))
        except (FormatError, ValueError, OSError, struct.error, zlib.error):
            fits = False
        if not fits:
            _log.warning("%s does not fit %s: not used", self.fai, path)
        return bool(fits)


def _ends_with(faidx: Any, path: Path) -> bool:
    """Whether a plain file ends where the index has its last base, but for white space."""
    last = next(reversed(faidx.index.values()))
    end = last.bend - (last.lenb - last.lenc)
    if not end <= path.stat().st_size <= end + _MOST_BLANK:
        return False
    with path.open("rb") as file:
        file.seek(end - 1)
        text = file.read()
    return bool(text[:1].strip()) and not text[1:].strip()


def _build(path: Path, places: Sequence[_Index]) -> _Index:
    """Build the index beside the file, or in the cache folder where nothing may be written."""
    place = places[0] if os.access(path.parent, os.W_OK) else places[1]
    place.fai.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        staged = [
            None if file is None else stack.enter_context(staged_file(file)) for file in place
        ]
        _faidx(path, *staged, build=True).close()
    if not place.fits(path):
        raise FormatError(
            f"{path}: expected FASTA that an index can describe: nothing but white space before "
            f"the first header and after the last base; {_TOKENIZE}"
        )
    return place


def _faidx(path: Path, fai: Path | None, gzi: Path | None, *, build: bool = False) -> Any:
    """pyfaidx's object of a file and its index, which it writes only if told to build it."""
    options = {"as_raw": True, "rebuild": build, "build_index": build}
    try:
        return Faidx(path, indexname=fai, gzi_indexname=gzi, **options)  # type: ignore[no-untyped-call]
    except (FastaIndexingError, ValueError, struct.error, zlib.error) as error:
        raise FormatError(f"{path}: cannot be indexed: {_one_line(error)}; {_TOKENIZE}") from error
    except OSError as error:
        system = error.__context__  # pyfaidx says "may not be writable" to all of them
        if isinstance(system, OSError) and system.errno is not None:
            raise system from None
        raise FormatError(f"{path}: cannot be indexed: {_one_line(error)}; {_TOKENIZE}") from error


def _is_bgzip(path: Path) -> bool:
    """Whether a FASTA file is bgzip, not plain; refuses what pyfaidx would misread."""
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder, expected a FASTA file; name the file in it")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist; check the path") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    packed = head[:2] == b"\x1f\x8b"
    if packed and head[12:14] != b"BC":
        raise FormatError(
            f"{path}: plain gzip can be read from its start only; {_TOKENIZE}, or compress it with "
            "bgzip instead of gzip"
        )
    if packed != path.name.lower().endswith((".gz", ".bgz")):
        what = "bgzip" if packed else "not compressed"
        raise FormatError(f"{path}: its content is {what}, its name says otherwise; rename it")
    return packed


def _folders(path: Path) -> tuple[Path, Path]:
    """Where the index of a file may lie."""
    key = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return path.parent, default_folder() / "faidx" / key


def _status(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _not_a_base(path: Path, contig: str, start: int, letters: bytes) -> FormatError:
    at = next(i for i, letter in enumerate(letters) if _TABLE[letter] == NO_BASE)
    return FormatError(
        f"{path}, contig {contig!r}: expected DNA letters (A C G T U N and IUPAC), got "
        f"{chr(letters[at])!r} at base {start + at:,}, 0-based; {_TOKENIZE}, which says more"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _reopen(path: Path, split: str) -> FastaGenome:
    return FastaGenome.open(path, split=split)
