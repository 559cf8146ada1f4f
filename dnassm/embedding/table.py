"""Embeddings: vectors beside their coordinates, names and provenance; and how they reach a file."""

from __future__ import annotations

import abc
import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dnassm.artifact import check_target
from dnassm.data.interval import Interval
from dnassm.errors import ArtifactError, ConfigError, ShapeError
from dnassm.registry import Registry

COLUMNS = ("chrom", "start", "end", "name", "strand", "label", "split")


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One thing that is embedded: where it lies (0-based, half-open) and what is known about it.

    A sequence without a genome is its own contig: its interval is ``[0, L)`` of its name.
    """

    interval: Interval
    name: str = ""
    label: str = ""
    split: str = ""

    def cells(self) -> tuple[str | int, ...]:
        """Values in the order of COLUMNS."""
        where = self.interval
        return (
            *(where.contig, where.start, where.end),
            *(self.name, where.strand, self.label, self.split),
        )


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Vectors and what they stand for.

    Attributes:
        values: (n, D) float32, one vector per row, or (n, L, D), one per base of a row.
        rows: n coordinates with name, label and split.
        provenance: run, genome, pooling, layer, strand and version that made them; flat.
    """

    values: npt.NDArray[np.float32]
    rows: tuple[Row, ...]
    provenance: Mapping[str, str | int]

    def __len__(self) -> int:
        return len(self.rows)

    def row_names(self) -> list[str]:
        """``chr1:100-200(+)`` for every row; the second row of one name ends in ``#2``."""
        seen: Counter[str] = Counter()
        names = []
        for row in self.rows:
            name = str(row.interval)
            seen[name] += 1
            names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
        return names

    def columns(self) -> dict[str, list[str | int]]:
        """Column name -> values, one list per column of COLUMNS."""
        cells = zip(*(row.cells() for row in self.rows), strict=True)
        return {name: list(values) for name, values in zip(COLUMNS, cells, strict=True)}

    def save(self, out: Path | str, *, force: bool = False) -> list[Path]:
        """Write to `out`; its suffix chooses the format. Returns the files written.

        Raises:
            ConfigError: no format has this suffix.
            ArtifactError: a file exists and `force` is not given, or the disk is full.
            ShapeError: one vector per base asks for .npy.
        """
        form = check_output(Path(out), force=force, per_base=self.values.ndim == 3)
        form.write(self, Path(out))
        return form.files(Path(out))


class Format(abc.ABC):
    """One file format of embeddings. One format = one file of dnassm/embedding/formats."""

    per_base: bool = False
    """Whether it holds one vector per base as well."""

    @abc.abstractmethod
    def write(self, embeddings: Embeddings, out: Path) -> None:
        """Write every file of `files`, each one atomically."""

    def files(self, out: Path) -> list[Path]:
        """Paths that `write` makes."""
        return [out]

    def check(self) -> None:  # noqa: B027  most formats need no library
        """Raise MissingExtraError when a library that this format needs is not installed."""


FORMATS: Registry[type[Format]] = Registry("embedding format", "dnassm.embedding.formats")
"""Suffix without its dot -> how to write it."""


def check_output(
    out: Path, *, force: bool, per_base: bool, inputs: tuple[Path, ...] = ()
) -> Format:
    """Return the format for `out` once everything that could refuse the writing was asked.

    Called before the work starts, so that hours of it are not lost to a wrong file name.

    Args:
        out: file to write.
        force: whether files that exist may be replaced.
        per_base: whether there will be one vector per base.
        inputs: files that are being read and must not be replaced, whatever `force` says.

    Raises:
        ConfigError: no format has this suffix.
        ArtifactError: a file to write exists already or is an input.
        ShapeError: the format does not hold one vector per base.
        MissingExtraError: the library for the format is not installed.
    """
    suffix = out.suffix.removeprefix(".")
    if suffix not in FORMATS:
        have = ", ".join(f".{name}" for name in FORMATS.names())
        raise ConfigError(f"{out}: no format for {out.suffix or 'no suffix'!r}; have {have}")
    form = FORMATS[suffix]()
    if per_base and not form.per_base:
        raise ShapeError(
            f"{out}: pool 'none' gives one vector per base, which .{suffix} does not hold; write "
            ".npy, or pool"
        )
    for path in form.files(out):
        if any(path.resolve() == given.resolve() for given in inputs):
            raise ArtifactError(f"{path} would replace an input of this run; choose another --out")
        check_target(path, force=force)
    form.check()
    return form
