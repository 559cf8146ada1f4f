"""Base composition and the split along each contig."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnassm.report import formats
from dnassm.report.content import Figure
from dnassm.report.figures.canvas import COLOURS, clean, quantity_axis, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

_BASES = (("A", "blue"), ("C", "sky"), ("G", "orange"), ("T", "vermilion"))
_PARTS = (("train", "blue"), ("valid", "orange"), ("test", "vermilion"))
#: Above this many intervals the blocks are finer than the picture: shares are drawn instead.
_FINE = 1500
_BAR = 0.62


def composition_figure(
    key: str, whole: Mapping[str, Any], contigs: Sequence[Mapping[str, Any]], total: int
) -> Figure:
    """Draw the shares of A, C, G, T (and N where there is any), one bar for each contig."""
    rows = [whole] if total == 1 else [whole, *contigs]
    unknown = any(row["counts"]["N"] + row["counts"]["iupac"] for row in rows)
    alt = "Shares of the bases: " + ", ".join(
        f"{base} {formats.percent(_share(whole, base))}" for base, _ in _BASES
    )
    return Figure(
        name="composition",
        title="Base composition",
        alt=alt,
        caption=_caption(total, len(contigs)),
        keys=(("grey", "N and other IUPAC codes"),) if unknown else (),
        svg=render(
            lambda sheet: _paint_composition(sheet.subplots(), rows),
            key=f"{key}-composition",
            label=alt,
            span="half",
            height=0.75 + 0.25 * len(rows),
        ),
    )


def splits_figure(
    key: str,
    contigs: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Sequence[tuple[str, int, int]]],
    total: int,
) -> tuple[Figure, ...]:
    """Draw training and held-out stretches along each contig; nothing when there is no split."""
    if not parts:
        return ()
    names = {contig["name"] for contig in contigs}
    fine = sum(each[0] in names for intervals in parts.values() for each in intervals) > _FINE
    sizes = {
        part: sum(end - start for _, start, end in intervals) for part, intervals in parts.items()
    }
    alt = "Length of each part: " + ", ".join(f"{p} {formats.bases(n)}" for p, n in sizes.items())
    caption = _caption(total, len(contigs))
    if fine:
        caption = f"The blocks are finer than the picture: their shares are shown. {caption}"
    return (
        Figure(
            name="splits",
            title="What the model may learn from",
            alt=alt,
            caption=caption.strip(),
            keys=tuple(
                (colour, f"{part} {formats.bases(sizes[part])}")
                for part, colour in _PARTS
                if part in sizes
            ),
            svg=render(
                lambda sheet: _paint_splits(sheet, contigs, parts, fine=fine),
                key=f"{key}-splits",
                label=alt,
                span="half",
                height=0.75 + 0.25 * (len(contigs) + (total > 1)),
            ),
        ),
    )


def _paint_composition(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    places = np.arange(len(rows))
    left = np.zeros(len(rows))
    for base, colour in _BASES:
        shares = np.array([_share(row, base) for row in rows])
        axes.barh(places, shares, _BAR, left=left, color=COLOURS[colour], alpha=0.85)
        middle = float(left[0] + shares[0] / 2)
        axes.text(middle, -0.75, base, ha="center", va="bottom", fontweight="bold")
        left += shares
    axes.barh(places, 1 - left, _BAR, left=left, color=COLOURS["grey"], alpha=0.6)
    _name_rows(axes, rows)
    axes.set_xlim(0, 1)
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])


def _paint_splits(
    sheet: Sheet,
    contigs: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Sequence[tuple[str, int, int]]],
    *,
    fine: bool,
) -> None:
    axes = sheet.subplots()
    row_of = {contig["name"]: row for row, contig in enumerate(contigs)}
    lengths = np.array([contig["length"] for contig in contigs], dtype=float)
    axes.barh(np.arange(len(contigs)), lengths, _BAR, color=COLOURS["line"])
    offset = np.zeros(len(contigs))
    for part, colour in _PARTS:
        spans = [(row_of[n], s, e) for n, s, e in parts.get(part, ()) if n in row_of]
        if fine:
            sizes = np.zeros(len(contigs))
            for row, start, end in spans:
                sizes[row] += end - start
            spans = [(r, offset[r], offset[r] + sizes[r]) for r in range(len(contigs))]
            offset += sizes
        _rectangles(axes, spans, colour)
    _name_rows(axes, contigs)
    axes.set_xlim(0, max(1.0, float(lengths.max())))
    axes.set_ylim(len(contigs) - 0.5, -0.8)
    quantity_axis(axes.xaxis)
    axes.set_xlabel("position (bp)")


def _rectangles(axes: Axes, spans: Sequence[tuple[int, float, float]], colour: str) -> None:
    """Fill [start, end) of each row as one path, whatever the number of blocks."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not spans:
        return
    rows, starts, ends = np.array(spans, dtype=float).T
    low, high = rows - _BAR / 2, rows + _BAR / 2
    corners = [(starts, low), (ends, low), (ends, high), (starts, high), (starts, low)]
    points = np.stack([np.column_stack(corner) for corner in corners], axis=1).reshape(-1, 2)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(rows)
    axes.add_patch(PathPatch(Path(points, codes), facecolor=COLOURS[colour], alpha=0.85))


def _name_rows(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.set_yticks(np.arange(len(rows)), [clean(row["name"], 18) for row in rows])
    axes.spines["left"].set_visible(False)


def _share(row: Mapping[str, Any], base: str) -> float:
    length = sum(row["counts"][each] for each in ("A", "C", "G", "T", "N", "iupac"))
    return float(row["counts"][base]) / length if length else 0.0


def _caption(total: int, shown: int) -> str:
    if total <= shown:
        return ""
    return f"The {shown} longest contigs; {formats.count(total - shown)} more are not drawn."
