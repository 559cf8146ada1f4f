"""ROC and precision-recall curves of all models together, and every score with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnassm.report import formats
from dnassm.report.content import Figure
from dnassm.report.figures.canvas import COLOURS, clean, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

_POINTS = 300
#: A constant score, as of the majority class, has two points; the line between them means nothing.
_FEWEST_POINTS = 3
_MOST_MODELS = 12
_MOST_METRICS = 6


def curve_figures(
    key: str, models: Sequence[Mapping[str, Any]], prior: float | None, classes: Sequence[str]
) -> tuple[Figure, ...]:
    """Draw both curves of every model that has them; nothing beyond two classes."""
    positive = classes[1] if len(classes) == 2 else "positive"
    figures = []
    roc = [model for model in models if len(model["roc"]) >= _FEWEST_POINTS]
    if roc:
        figures.append(
            _curve_figure(
                key,
                "roc",
                "ROC curve",
                ("false positive rate", "true positive rate"),
                roc,
                "Dotted: chance. Dashed: baselines.",
                None,
            )
        )
    pr = [model for model in models if len(model["pr"]) >= _FEWEST_POINTS]
    if pr:
        share = "" if prior is None else f"Dotted: share of {positive}, {formats.percent(prior)}. "
        figures.append(
            _curve_figure(
                key,
                "pr",
                "Precision and recall",
                (f"recall of {clean(positive, 20)}", "precision"),
                pr,
                f"{share}Dashed: baselines.",
                prior,
            )
        )
    return tuple(figures)


def intervals_figure(
    key: str, models: Sequence[Mapping[str, Any]], metrics: Sequence[tuple[str, str]]
) -> tuple[Figure, ...]:
    """Draw each score with its interval, one small panel per metric; nothing for a single model."""
    shown = [model for model in models if "majority" not in model["name"]][:_MOST_MODELS]
    measured = [
        (name, title)
        for name, title in metrics
        if any(_bounds(model, name) is not None for model in shown)
    ][:_MOST_METRICS]
    if len(shown) < 2 or not measured:
        return ()
    alt = "Scores with 95 % intervals: " + "; ".join(
        f"{title}: " + ", ".join(_spoken(model, name) for model in shown)
        for name, title in measured
    )
    return (
        Figure(
            name="intervals",
            title="Scores with their 95\u00a0% intervals",
            alt=alt,
            caption=(
                "Filled: pretrained models. Hollow: what they have to beat; the majority class, "
                "far to the left, is in the table. Each panel has its own scale."
            ),
            span="full",
            svg=render(
                lambda sheet: _paint_intervals(sheet, shown, measured),
                key=f"{key}-intervals",
                label=alt,
                span="full",
                height=0.75 + 0.24 * len(shown),
            ),
        ),
    )


def _curve_figure(
    key: str,
    name: str,
    title: str,
    axis_names: tuple[str, str],
    models: Sequence[Mapping[str, Any]],
    caption: str,
    level: float | None,
) -> Figure:
    metric = {"roc": "auroc", "pr": "auprc"}[name]
    labels = [f"{clean(m['name'])}{_area(m, metric)}" for m in models]
    alt = f"{title} of {', '.join(labels)}"

    def paint(sheet: Sheet) -> None:
        axes = sheet.subplots()
        if name == "roc":
            axes.plot([0, 1], [0, 1], ":", color=COLOURS["muted"], linewidth=1)
        elif level is not None:
            axes.axhline(level, linestyle=":", color=COLOURS["muted"], linewidth=1)
        for model in reversed(models):
            _paint_curve(axes, model, name)
        _unit_square(axes, axis_names)

    return Figure(
        name=name,
        title=title,
        alt=alt,
        caption=caption,
        keys=tuple((model["colour"], label) for model, label in zip(models, labels, strict=True)),
        span="third",
        svg=render(paint, key=f"{key}-{name}", label=alt, span="third", height=3.0),
    )


def _paint_curve(axes: Axes, model: Mapping[str, Any], name: str) -> None:
    points = np.array(model[name], dtype=float)
    if len(points) > _POINTS:
        points = points[np.linspace(0, len(points) - 1, _POINTS).round().astype(int)]
    style: dict[str, Any] = {}
    if model["baseline"]:
        style = {"linestyle": (0, (4, 2)), "linewidth": 1.2}
    axes.plot(*points.T, color=COLOURS[model["colour"]], **style)


def _unit_square(axes: Axes, names: tuple[str, str]) -> None:
    ticks = [0, 0.25, 0.5, 0.75, 1]
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xticks(ticks, ["0", "", "0.5", "", "1"])
    axes.set_yticks(ticks, ["0", "", "0.5", "", "1"])
    axes.set_aspect("equal")
    axes.grid()
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])


def _paint_intervals(
    sheet: Sheet, models: Sequence[Mapping[str, Any]], metrics: Sequence[tuple[str, str]]
) -> None:
    panels = sheet.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, (name, title) in zip(panels, metrics, strict=True):
        for row, model in enumerate(models):
            bounds = _bounds(model, name)
            if bounds is None:
                continue
            value, low, high = bounds
            colour = COLOURS[model["colour"]]
            axes.plot([low, high], [row, row], color=colour, linewidth=1.6)
            face = COLOURS["paper"] if model["baseline"] else colour
            axes.plot([value], [row], "o", markersize=5, color=colour, markerfacecolor=face)
        axes.set_title(title, loc="left", fontweight="bold")
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="y")
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks(range(len(models)), [clean(model["name"], 30) for model in models])


def _bounds(model: Mapping[str, Any], metric: str) -> tuple[float, float, float] | None:
    score = model["metrics"].get(metric, {})
    value = score.get("value")
    if value is None:
        return None
    low, high = score.get("low"), score.get("high")
    return value, value if low is None else low, value if high is None else high


def _area(model: Mapping[str, Any], metric: str) -> str:
    for name, score in model["metrics"].items():
        if name.lower() == metric and score["value"] is not None:
            return f" {formats.decimals(score['value'], 3)}"
    return ""


def _spoken(model: Mapping[str, Any], metric: str) -> str:
    bounds = _bounds(model, metric)
    return (
        f"{clean(model['name'])} {'missing' if bounds is None else formats.decimals(bounds[0], 3)}"
    )
