"""Numbers as a reader wants them: sensible digits, a unit, a real minus sign, never broken."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dnassm.report.content import Form

_SPACE = "\u00a0"
_MINUS = "\u2212"
_MISSING = "\u2013"


def count(value: float) -> str:
    """Whole number with thousands separators.

    >>> count(4641652)
    '4,641,652'
    """
    return _minus(f"{round(value):,}")


def bases(value: float) -> str:
    """Length in base pairs with three digits: ``4.64 Mb``."""
    return _scaled(value, (("Gb", 1e9), ("Mb", 1e6), ("kb", 1e3), ("bp", 1.0)))


def amount(value: float) -> str:
    """Large count in words: ``51.2 million``; below ten thousand every digit."""
    if abs(value) < 1e4:
        return count(value)
    return _scaled(value, (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)))


def percent(share: float) -> str:
    """Share of one as per cent: ``50.8 %``, ``0.02 %``, ``0 %``."""
    value = 100 * share
    if value == 0 or value == 100:
        digits = 0
    elif abs(value) < 0.1 or 99.9 < value < 100:
        digits = 2
    else:
        digits = 1
    return _minus(f"{value:.{digits}f}{_SPACE}%")


def decimals(value: float, digits: int) -> str:
    r"""Fixed number of decimals with a real minus sign.

    >>> ascii(decimals(-0.25, 1))
    "'\\u22120.2'"
    """
    text = f"{value:.{digits}f}"
    return _minus(text.lstrip("-") if float(text) == 0 else text)


def significant(value: float, digits: int = 3) -> str:
    """`digits` significant digits, scientific only where nothing else is readable."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if -4 <= magnitude < 6:
        return decimals(value, max(0, digits - 1 - magnitude))
    mantissa = decimals(value / 10.0**magnitude, digits - 1)
    return f"{mantissa}e{_minus(str(magnitude))}"


def interval(low: float | None, high: float | None) -> str:
    """``[0.941, 0.960]``, or nothing when a bound is missing."""
    if low is None or high is None:
        return ""
    return f"[{decimals(low, 3)}, {decimals(high, 3)}]"


def duration(seconds: float) -> str:
    """Time as a person says it: ``0.4 s``, ``42 s``, ``3 min 20 s``, ``1 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f}{_SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{_SPACE}s"
    if whole < 3600:
        return _SPACE.join(filter(None, (f"{whole // 60}", "min", _rest(whole % 60, "s"))))
    hours, minutes = divmod(round(seconds / 60), 60)
    return _SPACE.join(filter(None, (f"{hours:,}", "h", _rest(minutes, "min"))))


def plural(number: int, noun: str) -> str:
    """``1 contig``, ``17 contigs``."""
    return f"{count(number)}{_SPACE}{noun}{'' if number == 1 else 's'}"


def cell_text(form: Form, value: Any) -> str:
    """Write one cell: a missing value becomes a dash, an interval is written by `cell_detail`."""
    if isinstance(value, Mapping):
        value = value.get("value", value.get("share"))
    if value is None or value == "":
        return _MISSING
    if form in ("text", "code") or isinstance(value, str):
        return str(value)
    writers = {
        "count": count,
        "bases": bases,
        "percent": percent,
        "share": percent,
        "bits": lambda number: decimals(number, 4),
        "difference": lambda number: ("+" if number > 0 else "") + decimals(number, 4),
        "metric": lambda number: decimals(number, 3),
        "float": significant,
        "duration": duration,
    }
    return writers[form](float(value))


def cell_detail(value: Any) -> str:
    """Write the small print of a cell: its interval, or the count behind its share."""
    if not isinstance(value, Mapping):
        return ""
    if "count" in value:
        return count(value["count"])
    return interval(value.get("low"), value.get("high"))


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    # 999,999 must read "1.00 Mb", not "1000 kb": three digits are decided before the unit.
    size = abs(value)
    for unit, scale in units:
        if round(size / scale, 3) >= 0.9995 or unit == units[-1][0]:
            ratio = value / scale
            digits = 0 if scale == 1 or abs(ratio) >= 99.95 else 1 if abs(ratio) >= 9.995 else 2
            return f"{decimals(ratio, digits)}{_SPACE}{unit}"
    raise AssertionError("unreachable: the last unit always fits")


def _rest(number: int, unit: str) -> str:
    return f"{number}{_SPACE}{unit}" if number else ""


def _minus(text: str) -> str:
    return text.replace("-", _MINUS)
