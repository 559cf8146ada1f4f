"""Rendering: sections into one HTML page that needs nothing from the network."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnassm import __version__
from dnassm.report import formats
from dnassm.report.content import Section, Table

_HERE = Path(__file__).resolve().parent
#: Rows of a table kept in the page as JSON; a draft assembly may have a million contigs.
_MOST_ROWS = 2000
#: What would end a <script> element or break a line of a JavaScript string, as JSON escapes.
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}


def render_page(sections: Sequence[Section], *, title: str, words: Sequence[str] = ()) -> str:
    """Render the page; `words` stand at its top instead of what the sections say themselves."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    environment.filters["tabulated"] = tabulated
    environment.filters["as_json"] = lambda table: Markup(json_text(table))  # noqa: S704  escaped there
    environment.tests["table"] = lambda block: isinstance(block, Table)
    names = own_names(sections)
    named = list(zip(names, sections, strict=True))
    return environment.get_template("page.html.j2").render(
        sections=sections,
        title=title,
        names=names,
        words=list(words)
        or [f"{name}: {line}" if name else line for name, each in named for line in each.says],
        version=__version__,
        facts=[
            (fact.value, f"{fact.label}, {name}" if name else fact.label)
            for name, section in named
            for fact in section.facts
        ],
    )


def own_names(sections: Sequence[Section]) -> list[str]:
    """Name each artifact that is not the only one of its kind; the others need no name."""
    kinds = Counter(section.title for section in sections)
    return [Path(section.source).name if kinds[section.title] > 1 else "" for section in sections]


def json_text(table: Table) -> str:
    """Write a table as JSON that is safe inside a <script> element: no ``<``, ``>`` or ``&``."""
    value = {
        "caption": table.caption,
        "columns": [{"key": column.key, "title": column.title} for column in table.columns],
        "rows": list(table.rows[:_MOST_ROWS]),
        "rows_left_out": max(0, len(table.rows) - _MOST_ROWS),
    }
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_UNSAFE)


def tabulated(table: Table) -> list[dict[str, Any]]:
    """Write the shown rows as text: for each its cells, and whether it is a dnassm model."""
    return [
        {
            "own": index in table.own,
            "cells": [
                {
                    "text": formats.cell_text(column.form, row.get(column.key)),
                    "detail": formats.cell_detail(row.get(column.key)),
                    "best": (index, column.key) in table.best,
                    "form": column.form,
                    "tint": _tint(row.get(column.key)),
                }
                for column in table.columns
            ],
        }
        for index, row in enumerate(table.rows[: table.shown])
    ]


def _tint(value: Any) -> str:
    """Strength of a confusion cell's background, 0 to 60 %, so that ink stays readable on it."""
    share = value.get("share") if isinstance(value, Mapping) else None
    return "" if share is None else f"{60 * share:.0f}%"
