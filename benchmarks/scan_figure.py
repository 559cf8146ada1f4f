"""Draw what benchmarks.scan_length measured: time against L and memory against L.

    python -m benchmarks.scan_figure [--results benchmarks/results/scan_length.json]

Writes scan_time.svg and scan_memory.svg into docs/figures from the results alone.
"""

from __future__ import annotations

import argparse
import itertools
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from dnassm.artifact import read_json, staged_file
from dnassm.errors import ArtifactError
from dnassm.report.figures.canvas import COLOURS

HERE = Path(__file__).resolve().parent
LAST_TICK = 1 << 22
LOOK = {  # method -> colour, width of its line
    "selective scan": ("blue", 2.4),
    "FlashAttention": ("vermilion", 1.6),
    "FFT convolution": ("green", 1.6),
    "LSTM": ("purple", 1.6),
}
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dnassm",
    "text.parse_math": False,
    "font.sans-serif": ["DejaVu Sans", "Verdana"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["faint"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "figure.facecolor": COLOURS["paper"],
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.7,
    "lines.solid_capstyle": "round",
}
# Offset in points from a point of the line, alignment across and up; nearest to the eye first.
NEAR = [
    ((8, 0), "left", "center"),
    ((0, 7), "center", "bottom"),
    ((7, -5), "left", "top"),
    ((-7, 5), "right", "bottom"),
]
FAR = [((-40, 40), "right", "bottom"), ((40, -40), "left", "top"), ((-40, 80), "right", "bottom")]
"""Where lines lie too close for a name between them: beside them, with a thin line to its own."""

Formatter = Callable[[float, object], str]
Candidate = tuple[tuple[int, float], tuple[tuple[int, int], str, str]]


class Label(NamedTuple):
    """What is to be written beside which line."""

    points: list[tuple[int, float]]
    text: str
    colour: str


def duration(milliseconds: float, _: object = None) -> str:
    """A tick: 10 µs, 1 ms, 10 s."""
    if milliseconds < 1:
        return f"{milliseconds * 1e3:.4g} µs"
    return f"{milliseconds:.4g} ms" if milliseconds < 1e3 else f"{milliseconds / 1e3:.4g} s"


def size(mebibytes: float, _: object = None) -> str:
    """A tick: 16 MiB, 4 GiB."""
    return f"{mebibytes:.4g} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.4g} GiB"


def count(length: float, _: object = None) -> str:
    """A tick: 1k is 1024, 1M is 1024k."""
    return f"{length / 1024:.0f}k" if length < 1 << 20 else f"{length / (1 << 20):.0f}M"


def panel(axes: Any, results: dict[str, Any], key: str, base: int) -> list[Label]:
    """One quantity of every method against L; returns the names, to be set when all is placed."""
    labels = []
    for fitted in results["fits"]:
        name = fitted["method"]
        rows = [row for row in results["results"] if row["method"] == name]
        points = [(row["length"], row[key]) for row in rows if row[key] is not None]
        if not points:
            continue
        colour, width = LOOK[name]
        axes.plot(*zip(*points, strict=True), color=COLOURS[colour], lw=width, marker="o", ms=3)
        lines = [name]
        if fitted[key] is not None:
            lines.append(f"slope {fitted[key]['slope']:.2f}")
        if any(row.get("reason") == "out of memory" for row in rows):
            lines.append("then memory is full")
        labels.append(Label(points, "\n".join(lines), COLOURS[colour]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=base)
    axes.margins(y=0.18)  # room for names above the lines
    axes.set_xlim(right=LAST_TICK * 4)
    axes.xaxis.set_major_locator(FixedLocator([4**power for power in range(5, 12)]))
    axes.xaxis.set_major_formatter(FuncFormatter(count))
    axes.yaxis.set_major_locator(LogLocator(base=base, numticks=20))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(axis="y")
    return labels


def name_lines(axes: Any, labels: list[Label]) -> None:
    """Set each name where it covers no line and no other name, as near to its line's end as can be.

    Where a label lands depends on the size of the axes: call it when the layout is done.
    """
    taken = np.concatenate([axes.transData.transform(_between(label.points)) for label in labels])
    for label in labels:
        ends = label.points[::-1]
        candidates = [*itertools.product(ends, NEAR), *itertools.product(ends, FAR)]
        best = min(candidates, key=lambda each: _covered(axes, label, each, taken))
        text = _write(axes, label, best)
        taken = np.concatenate([taken, _filled(_box(text))])


def _covered(axes: Any, label: Label, candidate: Candidate, taken: np.ndarray) -> float:
    """How many drawn points the label would cover; infinite where it leaves the axes."""
    text = _write(axes, label, candidate)
    box, frame = _box(text).padded(3), axes.get_window_extent()
    text.remove()
    if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
        return math.inf
    return float(((taken > box.min) & (taken < box.max)).all(axis=1).sum())


def _box(text: Any) -> Any:
    """Where the words are, without the line that leads to them."""
    text.get_window_extent()  # moves the words to their point
    return Text.get_window_extent(text)


def _write(axes: Any, label: Label, candidate: Candidate) -> Any:
    point, (offset, across, up) = candidate
    leader = {"arrowstyle": "-", "color": label.colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 3}
    return axes.annotate(
        label.text,
        point,
        xytext=offset,
        textcoords="offset points",
        ha=across,
        va=up,
        color=label.colour,
        linespacing=1.25,
        arrowprops=leader if candidate[1] in FAR else None,
    )


def _between(points: list[tuple[int, float]]) -> np.ndarray:
    """The line as a dense row of points, straight in logarithms."""
    x, y = np.log(np.array(points)).T
    steps = np.linspace(x[0], x[-1], 400)
    return np.exp(np.column_stack([steps, np.interp(steps, x, y)]))


def _filled(box: Any) -> np.ndarray:
    """A box as a dense grid of points, so that labels and lines are avoided alike."""
    across, up = (np.linspace(low, high, 40) for low, high in (box.intervalx, box.intervaly))
    return np.stack(np.meshgrid(across, up), axis=-1).reshape(-1, 2)


def footnote(results: dict[str, Any]) -> str:
    """What it was measured on and with."""
    dtypes: dict[str, list[str]] = {}
    for row in results["results"]:
        names = dtypes.setdefault(row["dtype"], [])
        if row["method"] not in names:
            names.append(row["method"])
    kinds = "; ".join(f"{dtype}: {', '.join(names)}" for dtype, names in dtypes.items())
    machine, torch = results["machine"]["device"], results["versions"]["torch"]
    return f"{machine}, torch {torch}. One sequence, 512 channels. {kinds}. Slopes: longer half."


def draw(
    results: dict[str, Any], panels: dict[str, str], target: Path, *, base: int, unit: Formatter
) -> None:
    """One figure: key of the results -> title of its panel, side by side with one scale."""
    with mpl.rc_context(STYLE):
        width = 10.3 if len(panels) > 1 else 7.2
        figure = Figure(figsize=(width, 4.8), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        labels = []
        for axes, (key, title) in zip(row[0], panels.items(), strict=True):
            labels.append(panel(axes, results, key, base))
            axes.set_title(title, pad=10)
            axes.set_xlabel("sequence length L (1k = 1024)")
            axes.yaxis.set_major_formatter(FuncFormatter(unit))
        note = textwrap.fill(footnote(results), int(width * 17))
        figure.supxlabel(note, x=0.01, ha="left", size=7.5, color=COLOURS["muted"])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for axes, names in zip(row[0], labels, strict=True):
            name_lines(axes, names)
        with staged_file(target) as staging:
            figure.savefig(staging, format="svg", metadata={"Date": None})


def main() -> None:
    """Read results, draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results" / "scan_length.json")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "docs" / "figures")
    options = parser.parse_args()
    try:
        results = read_json(options.results)
    except ArtifactError as error:
        raise SystemExit(str(error)) from None
    times = {"forward_ms": "Forward", "forward_backward_ms": "Forward + backward"}
    memory = {"peak_mib": "Peak memory of forward + backward, inputs and gradients included"}
    draw(results, times, options.folder / "scan_time.svg", base=10, unit=duration)
    draw(results, memory, options.folder / "scan_memory.svg", base=8, unit=size)


if __name__ == "__main__":
    main()
