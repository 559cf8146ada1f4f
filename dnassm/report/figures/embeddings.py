"""The embedding map, and the first axis by label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dnassm.report import formats
from dnassm.report.content import Figure
from dnassm.report.figures.canvas import COLOURS, RAMP, SERIES, clean, dots, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OTHERS = "others"
_NO_LABEL = "no label"

#: Name, colour and the rows that it holds.
Group = tuple[str, str, NDArray[np.int64]]


def map_figures(
    key: str,
    points: NDArray[np.float64],
    explained: Sequence[float],
    labels: Sequence[str | None],
    places: Sequence[tuple[str, int]],
) -> tuple[Figure, ...]:
    """Draw the windows on their first two principal axes, coloured by label, contig or position.

    Args:
        key: prefix of the ids.
        points: (n, 2) projected windows; empty when there was nothing to project.
        explained: share of the variance of each principal axis.
        labels: n labels; all None colours by place.
        places: n pairs of contig and start, 0-based.
    """
    if not len(points) or len(explained) < 2:
        return ()
    groups, by = _groups(labels, places)
    alt = f"Map of {formats.count(len(points))} windows on two principal axes, coloured by {by}"
    title = "Embedding map"
    drawn = Figure(
        name="map",
        title=title,
        alt=alt,
        caption=f"One dot, one window; coloured by {by}.",
        keys=_keys(groups, by),
        svg=render(
            lambda sheet: _paint_map(sheet.subplots(), points, explained, groups),
            key=f"{key}-map",
            label=alt,
            span="half",
            height=3.9,
        ),
    )
    if by != "label" or len(groups) < 2:
        return drawn, _spectrum_figure(key, explained)
    return drawn, _ridge_figure(key, points, explained, groups)


def _groups(
    labels: Sequence[str | None], places: Sequence[tuple[str, int]]
) -> tuple[list[Group], str]:
    contigs = [contig for contig, _ in places]
    if any(label is not None for label in labels):
        return _by_name([label or _NO_LABEL for label in labels]), "label"
    if len(set(contigs)) > 1:
        return _by_name(contigs), "contig"
    starts = np.array([start for _, start in places], dtype=float)
    edges = np.linspace(starts.min(), starts.max() + 1, len(RAMP) + 1)
    steps = np.clip(np.searchsorted(edges, starts, side="right") - 1, 0, len(RAMP) - 1)
    groups = [
        (f"from {formats.bases(edges[step])}", colour, np.flatnonzero(steps == step))
        for step, colour in enumerate(RAMP)
    ]
    return groups, "position"


def _by_name(names: Sequence[str]) -> list[Group]:
    """Group by name, most frequent first; from the eighth on, and without a label, in grey."""
    frequent = [name for name, _ in Counter(names).most_common() if name != _NO_LABEL]
    kept = frequent if len(frequent) <= len(SERIES) - 1 else frequent[: len(SERIES) - 2]
    array = np.array(names, dtype=object)
    groups = [
        (clean(name), colour, np.flatnonzero(array == name))
        for name, colour in zip(sorted(kept), SERIES, strict=False)
    ]
    rest = np.flatnonzero(~np.isin(array, kept))
    if len(rest):
        only_unlabelled = len(frequent) == len(kept)
        groups.append((_NO_LABEL if only_unlabelled else _OTHERS, "grey", rest))
    return groups


def _keys(groups: Sequence[Group], by: str) -> tuple[tuple[str, str], ...]:
    if by != "position":
        return tuple((colour, f"{name} ({formats.count(len(i))})") for name, colour, i in groups)
    return tuple((colour, name) for name, colour, _ in (groups[0], groups[3], groups[7]))


def _ridge_figure(
    key: str, points: NDArray[np.float64], explained: Sequence[float], groups: Sequence[Group]
) -> Figure:
    medians = ", ".join(f"{n} {formats.significant(_median(points, i))}" for n, _, i in groups)
    alt = f"Distribution along the first axis by label, medians: {medians}"
    return Figure(
        name="ridge",
        title="First axis by label",
        alt=alt,
        caption="Each curve has the same area; the tick is the median.",
        svg=render(
            lambda sheet: _paint_ridges(sheet.subplots(), points[:, 0], explained, groups),
            key=f"{key}-ridge",
            label=alt,
            span="half",
            height=3.9,
        ),
    )


def _spectrum_figure(key: str, explained: Sequence[float]) -> Figure:
    alt = "Share of the variance by principal axis: " + ", ".join(
        formats.percent(share) for share in explained
    )
    return Figure(
        name="spectrum",
        title="Variance by principal axis",
        alt=alt,
        caption="How much of the spread each further axis would show.",
        svg=render(
            lambda sheet: _paint_spectrum(sheet.subplots(), explained),
            key=f"{key}-spectrum",
            label=alt,
            span="half",
            height=3.9,
        ),
    )


def _paint_map(
    axes: Axes, points: NDArray[np.float64], explained: Sequence[float], groups: Sequence[Group]
) -> None:
    size = float(np.clip(120 / np.sqrt(len(points)), 2.2, 5))
    for _, colour, rows in reversed(groups):
        dots(axes, points[rows, 0], points[rows, 1], colour, size=size, alpha=0.55)
    axes.margins(0.04)
    axes.autoscale_view()
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(f"axis 1: {formats.percent(explained[0])} of the variance")
    axes.set_ylabel(f"axis 2: {formats.percent(explained[1])} of the variance")


def _paint_ridges(
    axes: Axes, first: NDArray[np.float64], explained: Sequence[float], groups: Sequence[Group]
) -> None:
    grid = np.linspace(first.min(), first.max(), 200)
    width = 1.06 * float(first.std()) * len(first) ** -0.2
    curves = [
        np.exp(-0.5 * ((grid[:, None] - first[rows]) / width) ** 2).mean(axis=1)
        for _, _, rows in groups
    ]
    crest = max(float(curve.max()) for curve in curves)
    for place, ((_, colour, rows), curve) in enumerate(zip(groups, curves, strict=True)):
        base = len(groups) - 1 - place
        shade = COLOURS[colour]
        axes.fill_between(grid, base, base + 0.85 * curve / crest, color=shade, alpha=0.3)
        axes.plot(grid, base + 0.85 * curve / crest, color=shade, linewidth=1.3)
        middle = float(np.median(first[rows]))
        axes.plot([middle, middle], [base - 0.07, base], color=COLOURS["ink"], linewidth=2)
    axes.set_yticks(range(len(groups)), [name for name, _, _ in reversed(groups)])
    axes.set_ylim(-0.15, len(groups))
    axes.set_xticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"axis 1: {formats.percent(explained[0])} of the variance")


def _paint_spectrum(axes: Axes, explained: Sequence[float]) -> None:
    places = np.arange(1, len(explained) + 1)
    axes.bar(places, explained, 0.66, color=COLOURS["blue"], alpha=0.8)
    for place, share in zip(places, explained, strict=True):
        axes.annotate(
            f"{100 * share:.0f} %",
            (place, share),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.set_xticks(places)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("principal axis")


def _median(points: NDArray[np.float64], rows: NDArray[np.int64]) -> float:
    return float(np.median(points[rows, 0]))
