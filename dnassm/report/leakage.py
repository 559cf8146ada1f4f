"""The block "leakage between splits" of a section, from the leakage.json beside a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnassm.report import formats
from dnassm.report.content import Column, Table
from dnassm.report.loading import need, number, read_record

#: Share of k-mers from which on a sequence counts as a near copy, and how it is written.
_NEAR, _NEAR_TEXT = "0.8", "80\u00a0%"
_COLUMNS = (
    Column(key="part", title="Held out"),
    Column(key="against", title="Against"),
    Column(key="compared", title="Compared", form="count"),
    Column(key="exact", title="Copies", form="count"),
    Column(key="reverse_complement", title="Other strand", form="count"),
    Column(key="mean", title="Mean share of k-mers", form="percent"),
    Column(key="max", title="Largest", form="percent"),
)


def leakage_table(file: Path) -> tuple[Table, ...]:
    """Tabulate each held-out part against the others; nothing without the file.

    Raises:
        FormatError: the file does not hold what its format asks for.
    """
    if not file.is_file():
        return ()
    record = read_record(file)
    rows = [_row(each, file) for each in need(record, "between", file, list)]
    if not rows:
        return ()
    levels = list(dict.fromkeys(key for row in rows for key in row if key.startswith("0.")))
    columns = [
        *_COLUMNS,
        *(Column(key=key, title=f"Share ≥ {float(key):.0%}", form="count") for key in levels),
    ]
    k, scaled = number(record.get("k")) or 0, number(record.get("scaled")) or 1
    counted = f"k-mers of {k:.0f} bases" + (f", one of {scaled:.0f} counted" if scaled > 1 else "")
    caption = (
        f"Leakage between splits, {need(record, 'unit', file, str)}: copies, and the share of "
        f"{counted} that occur in the other part on either strand"
    )
    return (Table(name="leakage", caption=caption, columns=columns, rows=rows),)


def leakage_says(file: Path) -> tuple[str, ...]:
    """Say in words how many held-out sequences are near copies, or why that is not known.

    Raises:
        FormatError: the file does not hold what its format asks for.
    """
    if not file.is_file():
        return ()
    record = read_record(file)
    if record.get("missing"):
        return (f"Near copies between splits were not looked for: {record['missing']}.",)
    rows = [_row(each, file) for each in need(record, "between", file, list)]
    known = [row for row in rows if row["against"] in ("train", "other folds") and _NEAR in row]
    tested = [row for row in known if row["part"] != "valid"]
    near = sum(int(row[_NEAR]) for row in tested)
    compared = sum(int(row["compared"]) for row in tested)
    if not compared:
        return ()
    return (
        f"{formats.count(near)} of {formats.plural(compared, 'held-out sequence')} "
        f"({formats.percent(near / compared)}) {'has' if near == 1 else 'have'} at least "
        f"{_NEAR_TEXT} of their k-mers in the data that was trained on.",
    )


def _row(record: Any, file: Path) -> dict[str, Any]:
    row = {key: need(record, key, file, str) for key in ("part", "against")}
    row |= {
        key: need(record, key, file, int) for key in ("compared", "exact", "reverse_complement")
    }
    shares = record.get("containment")
    if isinstance(shares, Mapping):
        row |= {key: number(shares.get(key)) for key in ("mean", "max")}
        levels = shares.get("at_least")
        row |= {str(k): number(v) for k, v in levels.items()} if isinstance(levels, Mapping) else {}
    return row
