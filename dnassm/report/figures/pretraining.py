"""Loss and learning rate against tokens; bits per base against Markov order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dnassm.report import formats
from dnassm.report.content import Figure
from dnassm.report.figures.canvas import COLOURS, quantity_axis, render, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CHANCE = 2.0
#: Points drawn of a curve: more cannot be told apart at this size.
_POINTS = 500

Series = tuple[NDArray[np.float64], NDArray[np.float64]]


def curve_figures(
    key: str, curve: Mapping[str, Sequence[float | None]], best: Mapping[str, Any] | None
) -> tuple[Figure, ...]:
    """Draw the loss curve with its landmarks, and the learning rate, as far as measured."""
    train, valid = _series(curve, "train_bits"), _series(curve, "valid_bits")
    rate = _series(curve, "lr")
    figures = []
    if len(train[0]) + len(valid[0]):
        figures.append(_loss_figure(key, train, valid, best))
    if len(rate[0]) > 1:
        alt = f"Learning rate from {rate[1][0]:.2g} over {rate[1].max():.2g} to {rate[1][-1]:.2g}"
        figures.append(
            Figure(
                name="rate",
                title="Learning rate",
                alt=alt,
                span="third",
                svg=render(
                    lambda sheet: _paint_rate(sheet.subplots(), _thinned(rate)),
                    key=f"{key}-rate",
                    label=alt,
                    span="third",
                    height=3.1,
                ),
            )
        )
    return tuple(figures)


def orders_figure(
    key: str, bits: float | None, baselines: Sequence[Mapping[str, Any]]
) -> tuple[Figure, ...]:
    """Draw bits per base of Markov models by their order, with the model as a line."""
    orders = sorted(
        (int(each["order"]), float(each["bits_per_base"]))
        for each in baselines
        if each["order"] is not None and each["bits_per_base"] is not None
    )
    if len(orders) < 2:
        return ()
    low = min(orders, key=lambda order: order[1])
    alt = f"Markov models: best at order {low[0]} with {formats.decimals(low[1], 3)} bits per base"
    if bits is not None:
        alt += f"; the model needs {formats.decimals(bits, 3)}"
    return (
        Figure(
            name="orders",
            title="Markov models by order",
            alt=alt,
            caption="Longer words say more until they become too rare to be counted.",
            span="half",
            svg=render(
                lambda sheet: _paint_orders(sheet.subplots(), orders, bits),
                key=f"{key}-orders",
                label=alt,
                span="half",
                height=3.6,
            ),
        ),
    )


def _loss_figure(key: str, train: Series, valid: Series, best: Mapping[str, Any] | None) -> Figure:
    ends = [
        f"{name} {formats.decimals(float(series[1][-1]), 3)}"
        for name, series in (("training", train), ("held out", valid))
        if len(series[1])
    ]
    alt = f"Loss in bits per base against tokens; at the end {', '.join(ends)}"
    if best:
        alt += f"; best Markov model {formats.decimals(best['bits_per_base'], 3)}"
    return Figure(
        name="loss",
        title="Loss",
        alt=alt,
        caption="Bits per base. Thin: each logged step; thick: running median; dots: held out.",
        span="two-thirds",
        svg=render(
            lambda sheet: _paint_loss(sheet.subplots(), train, valid, best),
            key=f"{key}-loss",
            label=alt,
            span="two-thirds",
            height=3.1,
        ),
    )


def _paint_loss(axes: Axes, train: Series, valid: Series, best: Mapping[str, Any] | None) -> None:
    low, high = _limits(train, valid, best)
    labels = []
    if len(train[0]):
        smooth = _running_median(train)
        axes.plot(*_thinned(train), color=COLOURS["grey"], linewidth=0.7, alpha=0.55)
        axes.plot(*_thinned(smooth), color=COLOURS["ink"], linewidth=1.4)
        labels.append((float(smooth[1][-1]), "training", "ink"))
    if len(valid[0]):
        style: dict[str, Any] = {"markersize": 3.2, "markeredgewidth": 0, "linewidth": 1.6}
        axes.plot(*_thinned(valid), "o-", color=COLOURS["blue"], **style)
        labels.append((float(valid[1][-1]), "held out", "blue"))
    landmarks = [(_CHANCE, "four-sided coin", "muted")]
    if best:
        landmarks.append((float(best["bits_per_base"]), "best Markov", "vermilion"))
    for level, _, colour in landmarks:
        axes.axhline(level, color=COLOURS[colour], linewidth=0.9, dashes=(4, 3))
    last = max(float(series[0][-1]) for series in (train, valid) if len(series[0]))
    axes.set_xlim(0, last or 1)
    axes.set_ylim(low, high)
    _label_right(axes, [*labels, *landmarks], (low, high))
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    quantity_axis(axes.xaxis)
    axes.set_xlabel("tokens")


def _label_right(
    axes: Axes, labels: Sequence[tuple[float, str, str]], limits: tuple[float, float]
) -> None:
    """Write the name and value of each line beside its right end, kept apart."""
    low, high = limits
    inside = [label for label in labels if low <= label[0] <= high]
    places = spread([level for level, _, _ in inside], (high - low) * 0.062)
    for place, (level, name, colour) in zip(places, inside, strict=True):
        axes.annotate(
            f"{name} {formats.decimals(level, 3)}",
            (1.0, level),
            xytext=(1.025, (place - low) / (high - low)),
            xycoords=axes.get_yaxis_transform(),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS[colour],
                "linewidth": 0.9,
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def _paint_rate(axes: Axes, rate: Series) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.plot(*rate, color=COLOURS["ink"])
    axes.fill_between(*rate, color=COLOURS["blue"], alpha=0.08)
    axes.set_xlim(0, float(rate[0][-1]) or 1)
    axes.set_ylim(0, float(rate[1].max()) * 1.08 or 1)
    axes.locator_params(axis="y", nbins=4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    quantity_axis(axes.xaxis)
    axes.set_xlabel("tokens")


def _paint_orders(axes: Axes, orders: Sequence[tuple[int, float]], bits: float | None) -> None:
    places, levels = np.array(orders, dtype=float).T
    marks: dict[str, Any] = {"markersize": 4, "markeredgewidth": 0, "linewidth": 1.2}
    axes.plot(places, levels, "o-", color=COLOURS["vermilion"], **marks)
    at = int(levels.argmin())
    axes.annotate(
        formats.decimals(levels[at], 3),
        (places[at], levels[at]),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
    if bits is not None:
        axes.axhline(bits, color=COLOURS["blue"])
        axes.annotate(
            f"the model {formats.decimals(bits, 3)}",
            (1, bits),
            xytext=(0, 4),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            bbox={"facecolor": COLOURS["paper"], "pad": 1},
        )
    axes.margins(y=0.18)
    axes.set_xticks(places, [f"{place:.0f}" for place in places])
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("order: bases of context")
    axes.set_ylabel("bits per base")


def _series(curve: Mapping[str, Sequence[float | None]], name: str) -> Series:
    points = [
        (tokens, value)
        for tokens, value in zip(curve["tokens"], curve[name], strict=True)
        if tokens is not None and value is not None
    ]
    columns = np.array(points, dtype=np.float64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _limits(train: Series, valid: Series, best: Mapping[str, Any] | None) -> tuple[float, float]:
    """Zoom on what is learned: the first steps, far above two bits, leave at the top."""
    settled = train[1][len(train[1]) // 20 :]
    values = [*settled, *valid[1], _CHANCE]
    low = min([*values, *([float(best["bits_per_base"])] if best else [])])
    span = max(_CHANCE - low, 0.01)
    ends = [float(series[1][-1]) for series in (train, valid) if len(series[1])]
    # A run that stopped above two bits, or came back there, is shown whole.
    high = max(values) if max(ends) > _CHANCE else min(max(values), _CHANCE + 0.6 * span)
    return low - 0.06 * (high - low), high + 0.06 * (high - low)


def _running_median(series: Series) -> Series:
    tokens, values = series
    width = 2 * (len(values) // 50) + 1
    padded = np.pad(values, width // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)
    return tokens, np.median(windows, axis=1)


def _thinned(series: Series) -> Series:
    """Keep at most `_POINTS` points, evenly chosen, first and last among them."""
    tokens, values = series
    if len(tokens) <= _POINTS:
        return series
    kept = np.linspace(0, len(tokens) - 1, _POINTS).round().astype(int)
    return tokens[kept], values[kept]
