"""The sheet that every figure is drawn on: one look, SVG that follows the page's theme.

Figures are drawn in the light colours of `COLOURS`; `render` then turns each colour into the CSS
variable of its name, so that one drawing serves light, dark and paper. Ids are prefixed,
coordinates rounded, and nothing depends on the clock or on a random id: the same input gives the
same bytes.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dnassm.report.content import Span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Sheet

#: name -> light colour. Data colours are those of Okabe and Ito (2008, jfly.uni-koeln.de/color),
#: told apart with every common colour blindness; yellow is darkened to be seen on paper.
#: page.css.j2 holds the dark twin of each name. No two may be equal: they are replaced by name.
COLOURS = {
    "paper": "#fbfaf7",
    "ink": "#1d2024",
    "muted": "#65696f",
    "line": "#dedad2",
    "faint": "#c2c4c8",
    "blue": "#0072b2",
    "vermilion": "#d55e00",
    "green": "#009e73",
    "purple": "#c4679a",
    "sky": "#4ba8df",
    "orange": "#e09a00",
    "yellow": "#a89a12",
    "grey": "#8c9096",
    "ramp0": "#23366f",
    "ramp1": "#2d5489",
    "ramp2": "#3a7196",
    "ramp3": "#4d8e9b",
    "ramp4": "#6ba698",
    "ramp5": "#93b98c",
    "ramp6": "#c0c67a",
    "ramp7": "#d9b44f",
}
#: Data colours in the order in which series take them.
SERIES = ("blue", "vermilion", "green", "purple", "sky", "orange", "yellow", "grey")
RAMP = tuple(f"ramp{step}" for step in range(8))

#: Width in inches; at the page's full width all figures then have the same size of type.
WIDTHS: dict[Span, float] = {"third": 3.25, "half": 5.0, "two-thirds": 6.8, "full": 10.3}

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_TAG = re.compile(r"<[a-z][^>]*>")
_HEX = re.compile(r"#[0-9a-f]{6}")
_VARIABLES = {value: f"var(--{name})" for name, value in COLOURS.items()}
_FONT = re.compile(r"font-family: [^;\"]*")
_ATTRIBUTE = re.compile(r'(?<= )(?:d|x|y|width|height|transform|viewBox)="[^"]*"')


def render(
    paint: Callable[[Sheet], None], *, key: str, label: str, span: Span, height: float
) -> str:
    """Draw with `paint` on an empty sheet and return inline SVG.

    Args:
        paint: draws on the figure it is given.
        key: prefix of every id inside, unique on the page.
        label: what a screen reader says instead of the drawing.
        span: width as part of the page's.
        height: in inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Sheet

    buffer = io.StringIO()
    with rc_context(_style()), _quiet():
        sheet = Sheet(figsize=(WIDTHS[span], height), layout="constrained")
        paint(sheet)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        sheet.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue(), key, label)


def clean(text: object, limit: int = 28) -> str:
    """Make a name from a file fit to be drawn: one line, no control characters, not too long."""
    name = _CONTROL.sub("\ufffd", str(text))
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def dots(axes: Axes, x: Any, y: Any, colour: str, *, size: float = 3.0, alpha: float = 0.7) -> None:
    """Draw points as one path of round caps: a fifth of the bytes that markers take."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    points = np.repeat(np.column_stack([x, y]).astype(float), 2, axis=0)
    if not len(points):
        return
    codes = np.tile([Path.MOVETO, Path.LINETO], len(points) // 2)
    path = Path(points, codes)
    path.should_simplify = False
    axes.add_patch(
        PathPatch(
            path,
            facecolor="none",
            edgecolor=COLOURS[colour],
            alpha=alpha,
            linewidth=size,
            capstyle="round",
        )
    )
    axes.update_datalim(points)
    axes.autoscale_view()


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """Move label positions apart until neighbours are at least `gap` from each other."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    placed = [positions[index] for index in order]
    # Each pass moves a touching pair apart by half of what is missing; a few labels settle at once.
    for _ in range(200):
        moved = False
        for left in range(len(placed) - 1):
            missing = gap - (placed[left + 1] - placed[left])
            if missing > 1e-9 * gap:
                placed[left] -= missing / 2
                placed[left + 1] += missing / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(positions)
    for place, index in zip(placed, order, strict=True):
        result[index] = place
    return result


def quantity_axis(axis: Any, *, unit: str = "") -> None:
    """Label large counts as 200k, 1.5M: no offset text, no exponent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value) + unit))


def short_count(value: float) -> str:
    """Write a count in a tick's space: ``0``, ``950``, ``12.5k``, ``2M``."""
    for letter, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{letter}"
    return f"{value:.4g}"


def _style() -> Any:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "dnassm",
        "text.parse_math": False,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 8.5,
        "axes.titlesize": 8.5,
        "axes.labelsize": 8.5,
        "axes.labelcolor": COLOURS["muted"],
        "axes.edgecolor": COLOURS["faint"],
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["faint"],
        "ytick.color": COLOURS["faint"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "grid.color": COLOURS["line"],
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "lines.solid_capstyle": "round",
        "patch.linewidth": 0,
        "path.simplify_threshold": 0.2,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Mute glyphs that the measuring font lacks: the reader's browser has its own fonts."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _inline(svg: str, key: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    # Only inside tags: a contig may be called anything, also `id="` or a colour.
    svg = _TAG.sub(lambda tag: _themed(tag.group(), key), svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]*)"', head)
    view = box.group(1) if box else "0 0 1 1"
    return f'<svg viewBox="{view}" role="img" aria-label="{html.escape(label)}">{body}'


def _themed(tag: str, key: str) -> str:
    tag = re.sub(r'\bid="', f'id="{key}-', tag)
    tag = re.sub(r'xlink:href="#', f'href="#{key}-', tag)
    tag = re.sub(r"url\(#", f"url(#{key}-", tag)
    tag = _ATTRIBUTE.sub(_rounded, tag)
    tag = _FONT.sub("font-family: var(--sans)", tag)
    return _HEX.sub(lambda hexa: _VARIABLES.get(hexa.group(), hexa.group()), tag)


def _rounded(match: re.Match[str]) -> str:
    text = _LONG_NUMBER.sub(lambda number: f"{float(number.group()):.2f}", match.group())
    return " ".join(text.split())
