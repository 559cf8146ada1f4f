"""What a report is made of: frozen values, read from artifacts and rendered by the template."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

#: How a cell is written: see `dnassm.report.formats.cell_text`.
Form = Literal[
    "text",
    "code",
    "count",
    "bases",
    "percent",
    "bits",
    "difference",
    "metric",
    "float",
    "duration",
    "share",
]
#: Part of the page's width that a block takes.
Span = Literal["third", "half", "two-thirds", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fact:
    """One number worth a large type size: ``1.93`` ``bits per base``."""

    value: str
    label: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A drawing: inline SVG with its title, what it shows, and the key of its colours.

    `alt` says in words what a reader who cannot see the drawing would miss. `keys` pairs a colour
    name of `dnassm.report.figures.canvas.COLOURS` with its label.
    """

    name: str
    title: str
    alt: str
    svg: str
    caption: str = ""
    keys: tuple[tuple[str, str], ...] = ()
    span: Span = "half"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the key into the rows, its heading and how its cells are written."""

    key: str
    title: str
    form: Form = "text"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of plain JSON values; shown in part when long, kept whole as JSON inside the page.

    `best` holds (row, column key) of the winning cells, `own` the rows that are dnassm models,
    `shown` how many rows the page shows, `more` the line that stands for the others.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    best: frozenset[tuple[int, str]] = frozenset()
    own: frozenset[int] = frozenset()
    shown: int | None = None
    more: str = ""
    span: Span = "full"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What run.json says: where the artifact came from."""

    command: str
    facts: Sequence[tuple[str, str]]
    inputs: Sequence[tuple[str, str]]
    config: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One artifact: what it says in words, its figures and tables, where it came from."""

    title: str
    source: str
    says: tuple[str, ...]
    notes: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    blocks: tuple[Figure | Table, ...] = ()
    provenance: Provenance | None = None
