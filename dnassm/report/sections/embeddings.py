"""Embeddings: where windows lie in the space of the model, and whether labels lie together."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dnassm.errors import FormatError
from dnassm.extras import require
from dnassm.report import formats
from dnassm.report.content import Column, Provenance, Section, Table
from dnassm.report.figures.embeddings import map_figures
from dnassm.report.loading import read_provenance
from dnassm.report.section import SECTIONS, SectionReader

_MOST = 5000
_COLUMNS = (
    Column(key="label", title="Label"),
    Column(key="windows", title="Windows", form="count"),
    Column(key="share", title="Share", form="percent"),
    Column(key="together", title="Nearest neighbour has the label", form="percent"),
)


@dataclasses.dataclass(frozen=True)
class Windows:
    """Vectors (n, D) with where they come from; label None where there is none."""

    values: NDArray[np.float32]
    contigs: list[str]
    starts: list[int]
    ends: list[int]
    labels: list[str | None]
    facts: dict[str, str]
    total: int


@SECTIONS.register("embeddings")
class EmbeddingsReader(SectionReader):
    """Reads at most `_MOST` vectors, evenly chosen."""

    order = 3
    holds = "embeddings (.npy with its .bed twin, or .parquet)"

    def recognises(self, path: Path) -> bool:
        """Whether the file is one of the two."""
        twin = path.suffix == ".npy" and path.with_suffix(".bed").is_file()
        return path.is_file() and (twin or path.suffix == ".parquet")

    def read(self, path: Path, key: str) -> Section:
        """Read the vectors, project them, and ask whose nearest neighbour shares the label."""
        windows = _finite(_read_npy(path) if path.suffix == ".npy" else _read_parquet(path))
        provenance = read_provenance(path.with_suffix(".run.json")) or _provenance(windows.facts)
        points, explained = _project(windows.values)
        rows = _labels(windows)
        return Section(
            title="Embeddings",
            source=str(path),
            says=_says(windows, rows),
            notes=_notes(windows, explained),
            blocks=(
                *map_figures(key, points, explained, windows.labels, _places(windows)),
                *([_table(rows)] if rows else []),
            ),
            provenance=provenance,
        )


def _read_npy(path: Path) -> Windows:
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path}: expected an array of numbers: {error}") from error
    _check_shape(values.shape, values.dtype.kind, path)
    bed = path.with_suffix(".bed")
    rows, facts = _read_twin(bed)
    if len(rows) != len(values):
        raise FormatError(
            f"{bed}: {len(rows)} lines beside {len(values)} vectors; expected one for each"
        )
    kept = _evenly(len(values))
    return _windows(np.asarray(values[kept]), [rows[index] for index in kept], facts, len(values))


def _read_twin(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Read the coordinates, and the provenance that `dnassm embed` writes as the first comment."""
    from dnassm.data.annotation import read_bed

    rows = [
        {
            "chrom": record.interval.contig,
            "start": record.interval.start,
            "end": record.interval.end,
            "label": record.label,
        }
        for record in read_bed(path)
    ]
    with path.open(encoding="utf-8") as lines:
        first = lines.readline()
    if not first.startswith("# {"):
        return rows, {}
    try:
        return rows, {str(k): str(v) for k, v in json.loads(first[2:]).items()}
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}:1: expected provenance as JSON: {error}") from error


def _read_parquet(path: Path) -> Windows:
    parquet = require("pyarrow.parquet", "tables", "reading .parquet")
    arrow = require("pyarrow", "tables", "reading .parquet")
    try:
        table = parquet.read_table(path)
    except arrow.ArrowInvalid as error:
        raise FormatError(f"{path}: expected parquet: {str(error).splitlines()[0]}") from error
    if "embedding" not in table.column_names:
        have = ", ".join(table.column_names)
        raise FormatError(f"{path}: expected a column 'embedding', got {have}")
    total = table.num_rows
    table = table.take(_evenly(total))
    lists = table.column("embedding").combine_chunks()
    width = len(lists[0]) if total else 0
    flat = np.asarray(lists.flatten())
    _check_shape((table.num_rows, width), flat.dtype.kind, path)
    names = [name for name in table.column_names if name != "embedding"]
    rows = table.select(names).to_pylist()
    metadata = (table.schema.metadata or {}).items()
    facts = {k.decode(): v.decode() for k, v in metadata if k not in (b"ARROW:schema", b"pandas")}
    return _windows(flat.reshape(-1, width), rows, facts, total)


def _check_shape(shape: tuple[int, ...], kind: str, path: Path) -> None:
    if len(shape) != 2 or kind != "f" or not shape[1]:
        raise FormatError(
            f"{path}: expected floats of shape (windows, width), got {shape} of kind {kind!r}; "
            "pool embeddings of single bases first"
        )


def _windows(values: Any, rows: Sequence[dict[str, Any]], facts: dict[str, str], n: int) -> Windows:
    labels = [str(row.get("label") or ".").strip() for row in rows]
    return Windows(
        values=np.asarray(values, dtype=np.float32),
        contigs=[str(row.get("chrom", "?")) for row in rows],
        starts=[int(row.get("start") or 0) for row in rows],
        ends=[int(row.get("end") or 0) for row in rows],
        labels=[None if label in ("", ".") else label for label in labels],
        facts=facts,
        total=n,
    )


def _evenly(total: int) -> NDArray[np.int64]:
    """Choose at most `_MOST` of `total` rows, evenly spread, the same ones every time."""
    return np.unique(np.linspace(0, max(total - 1, 0), min(total, _MOST)).round().astype(np.int64))


def _finite(windows: Windows) -> Windows:
    kept = np.flatnonzero(np.isfinite(windows.values).all(axis=1))
    return dataclasses.replace(
        windows,
        values=windows.values[kept],
        contigs=[windows.contigs[i] for i in kept],
        starts=[windows.starts[i] for i in kept],
        ends=[windows.ends[i] for i in kept],
        labels=[windows.labels[i] for i in kept],
    )


def _project(values: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[float]]:
    """Project on the first two principal axes: (n, 2) and the share of variance of each axis.

    Empty where there is nothing to project: fewer than three windows, or all of them equal.
    """
    from sklearn.decomposition import PCA

    wide = values.astype(np.float64)
    if len(wide) < 3 or wide.shape[1] < 2 or not wide.std(axis=0).any():
        return np.empty((0, 2)), []
    pca = PCA(n_components=min(10, *wide.shape), svd_solver="full")
    points = pca.fit_transform(wide)
    return points[:, :2], [float(share) for share in pca.explained_variance_ratio_]


def _labels(windows: Windows) -> list[dict[str, Any]]:
    """Per label: how many windows, and how often the nearest other window has it too."""
    from sklearn.neighbors import NearestNeighbors

    names = sorted({label for label in windows.labels if label is not None})
    labels = np.array([-1 if name is None else names.index(name) for name in windows.labels])
    labelled = np.flatnonzero(labels >= 0)
    if not len(labelled):
        return []
    together = np.full(len(labelled), np.nan)
    if len(labelled) > 1:
        search = NearestNeighbors(n_neighbors=1).fit(windows.values[labelled])
        nearest = search.kneighbors(return_distance=False)[:, 0]
        together = (labels[labelled][nearest] == labels[labelled]).astype(float)
    rows = []
    for index, name in enumerate(names):
        mine = labels[labelled] == index
        share = float(together[mine].mean())
        rows.append(
            {
                "label": name,
                "windows": int(mine.sum()),
                "share": float(mine.mean()),
                "together": None if np.isnan(share) else share,
            }
        )
    return rows


def _says(windows: Windows, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    width = formats.count(windows.values.shape[1])
    text = f"{formats.plural(windows.total, 'window')} became vectors of {width} numbers"
    if len(rows) < 2 or rows[0]["together"] is None:
        return (f"{text}.",)
    total = sum(row["windows"] for row in rows)
    agree = sum(row["windows"] * row["together"] for row in rows) / total
    chance = sum(row["share"] ** 2 for row in rows)
    return (
        f"{text}; for {formats.percent(agree)} of them the nearest other window has the same "
        f"label, by chance it would for {formats.percent(chance)}.",
    )


def _notes(windows: Windows, explained: Sequence[float]) -> tuple[str, ...]:
    notes = []
    if explained:
        spread = formats.percent(sum(explained[:2]))
        notes.append(f"The two axes of the map hold {spread} of the variance.")
    else:
        notes.append("Nothing to map: it needs three windows that differ.")
    examined = min(windows.total, _MOST)
    if windows.total > examined:
        notes.append(f"The map shows {formats.count(examined)} of them, evenly chosen.")
    broken = examined - len(windows.values)
    if broken:
        notes.append(f"{formats.plural(broken, 'vector')} with NaN or infinity left out.")
    if _overlapping(windows):
        notes.append("Windows overlap, so a neighbour may share sequence.")
    return tuple(notes)


def _overlapping(windows: Windows) -> bool:
    order = sorted(zip(windows.contigs, windows.starts, windows.ends, strict=True))
    return any(a[0] == b[0] and b[1] < a[2] for a, b in itertools.pairwise(order))


def _places(windows: Windows) -> list[tuple[str, int]]:
    return list(zip(windows.contigs, windows.starts, strict=True))


def _provenance(facts: dict[str, str]) -> Provenance | None:
    if not facts:
        return None
    return Provenance(
        command=facts.get("made_by", "dnassm embed"),
        facts=[(name, value) for name, value in facts.items() if name != "made_by" and value],
        inputs=[],
        config="",
    )


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    return Table(
        name="labels",
        caption="Labels of the windows on the map",
        columns=_COLUMNS,
        rows=rows,
        span="half",
    )
