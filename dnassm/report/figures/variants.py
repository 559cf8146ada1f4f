"""Scores of variants by effect, and the AUROC with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnassm.report import formats
from dnassm.report.content import Figure
from dnassm.report.figures.canvas import COLOURS, SERIES, clean, dots, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_EFFECTS = 8
_MOST_POINTS = 1500


def scores_figure(
    key: str, groups: Mapping[str, Sequence[float]], score_name: str
) -> tuple[Figure, ...]:
    """Draw every score as a dot and each effect as a box of quartiles, 5th to 95th percentile."""
    if not groups:
        return ()
    largest = sorted(groups, key=lambda name: (-len(groups[name]), name))[:_MOST_EFFECTS]
    names = sorted(largest, key=lambda name: (float(np.median(groups[name])), name))
    alt = f"{score_name} by effect, medians: " + ", ".join(
        f"{clean(name)} {formats.significant(float(np.median(groups[name])))}" for name in names
    )
    hidden = len(groups) - len(names)
    return (
        Figure(
            name="scores",
            title=f"{score_name[:1].upper()}{score_name[1:]} by effect",
            alt=alt,
            caption=(
                "Dots: variants. Box: quartiles and median; whiskers: 5th to 95th percentile."
                + (f" {formats.plural(hidden, 'smaller class')} not drawn." if hidden else "")
            ).replace("classs", "classes"),
            span="two-thirds",
            svg=render(
                lambda sheet: _paint_scores(sheet.subplots(), names, groups, score_name),
                key=f"{key}-scores",
                label=alt,
                span="two-thirds",
                height=0.9 + 0.72 * len(names),
            ),
        ),
    )


def auroc_figure(key: str, areas: Sequence[Mapping[str, Any]]) -> tuple[Figure, ...]:
    """Draw the AUROC of the model and of the baseline with their intervals, beside chance."""
    if not areas:
        return ()
    alt = "AUROC: " + ", ".join(
        f"{clean(area['name'])} {formats.decimals(area['value'], 3)}" for area in areas
    )
    return (
        Figure(
            name="auroc",
            title="AUROC between the effects",
            alt=alt,
            caption="Lines: 95\u00a0% intervals. Dotted: chance.",
            span="third",
            svg=render(
                lambda sheet: _paint_auroc(sheet.subplots(), areas),
                key=f"{key}-auroc",
                label=alt,
                span="third",
                height=0.9 + 0.5 * len(areas),
            ),
        ),
    )


def _paint_scores(
    axes: Axes, names: Sequence[str], groups: Mapping[str, Sequence[float]], score_name: str
) -> None:
    jitter = np.random.default_rng(0)
    for row, name in enumerate(names):
        colour = SERIES[row % len(SERIES)]
        scores = np.sort(np.asarray(groups[name], dtype=float))
        shown = scores
        if len(scores) > _MOST_POINTS:  # the two ends, where the strongest lie, always stay
            shown = scores[np.linspace(0, len(scores) - 1, _MOST_POINTS).round().astype(int)]
        heights = row + 0.16 + 0.22 * jitter.random(len(shown))
        dots(axes, shown, heights, colour, size=2.6, alpha=0.5)
        _box(axes, scores, row - 0.06, colour)
    axes.axvline(0, color=COLOURS["faint"], linewidth=0.8, zorder=0)
    labels = [f"{clean(name, 20)}\n{formats.count(len(groups[name]))}" for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.4, -0.45)
    axes.margins(x=0.04)
    axes.autoscale_view(scaley=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(clean(score_name, 60))


def _box(axes: Axes, scores: Any, row: float, colour: str) -> None:
    low, first, middle, third, high = np.percentile(scores, [5, 25, 50, 75, 95])
    shade = COLOURS[colour]
    axes.plot([low, high], [row, row], color=shade, linewidth=1.2)
    axes.barh([row], [third - first], 0.24, left=[first], color=shade, alpha=0.35)
    axes.plot([middle, middle], [row - 0.12, row + 0.12], color=COLOURS["ink"], linewidth=2)


def _paint_auroc(axes: Axes, areas: Sequence[Mapping[str, Any]]) -> None:
    for row, area in enumerate(areas):
        colour = COLOURS["blue" if row == 0 else "vermilion"]
        value = area["value"]
        low = value if area["low"] is None else area["low"]
        high = value if area["high"] is None else area["high"]
        axes.plot([low, high], [row, row], color=colour)
        axes.plot([value], [row], "o", markersize=5.5, color=colour)
        axes.annotate(
            formats.decimals(value, 3),
            (value, row),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
        )
    axes.axvline(0.5, linestyle=":", color=COLOURS["muted"], linewidth=1)
    lowest = min([0.45, *(area["low"] or area["value"] for area in areas)])
    axes.set_xlim(max(0.0, lowest - 0.05), 1.01)
    axes.set_yticks(range(len(areas)), [clean(area["name"], 16) for area in areas])
    axes.set_ylim(len(areas) - 0.5, -0.7)
    axes.spines["left"].set_visible(False)
