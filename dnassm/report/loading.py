"""Reading what other commands wrote, with errors that name the file and the field."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnassm.artifact import read_json
from dnassm.errors import FormatError
from dnassm.report.content import Provenance


def read_record(path: Path) -> Mapping[str, Any]:
    """Read a JSON object, with NaN and infinities as None: they are not numbers one can show.

    Raises:
        ArtifactError: the file is missing or is not JSON.
        FormatError: it holds something else than an object.
    """
    record = _finite(read_json(path))
    if not isinstance(record, dict):
        raise FormatError(f"{path}: expected a JSON object, got {type(record).__name__}")
    return record


def need(record: Mapping[str, Any], key: str, path: Path, kind: type | tuple[type, ...]) -> Any:
    """Return ``record[key]``, or raise FormatError naming file and key when missing or misfit."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = " or ".join(each.__name__ for each in kinds)
    if not isinstance(record, Mapping) or key not in record:
        raise FormatError(f"{path}: expected a field {key!r} ({wanted}), found none; rebuild it")
    if not isinstance(record[key], kinds) or (isinstance(record[key], bool) and bool not in kinds):
        raise FormatError(f"{path}: expected {key!r} to be {wanted}, got {_short(record[key])}")
    return record[key]


def number(value: Any) -> float | None:
    """Read a finite number, or None: for cells that may be empty, ``nan`` or cut in the middle."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None


def read_provenance(path: Path) -> Provenance | None:
    """Read run.json; None when there is none."""
    if not path.is_file():
        return None
    record = read_record(path)
    argv = record.get("argv")
    command = str(record.get("command") or "unknown")
    if isinstance(argv, list) and argv:
        program = Path(str(argv[0])).name
        command = shlex.join(
            ["dnassm" if program == "__main__.py" else program, *map(str, argv[1:])]
        )
    facts = [(name, record.get(name.lower())) for name in ("Seed", "Device", "Created")]
    versions = record.get("versions")
    if isinstance(versions, Mapping):
        facts.append(("Versions", ", ".join(f"{name} {value}" for name, value in versions.items())))
    inputs = record.get("inputs")
    config = record.get("config")
    return Provenance(
        command=command,
        facts=[(name, str(value)) for name, value in facts if value is not None],
        inputs=[(str(k), str(v)) for k, v in inputs.items()] if isinstance(inputs, Mapping) else [],
        config=json.dumps(config, indent=2, ensure_ascii=False) if config else "",
    )


def winners(
    rows: Sequence[Mapping[str, Any]], keys: Sequence[str], *, lowest: bool = False
) -> frozenset[tuple[int, str]]:
    """Find (row, key) of the best value in each column; ties all win, a lone value does not."""
    best: set[tuple[int, str]] = set()
    for key in keys:
        values = {
            index: value
            for index, row in enumerate(rows)
            if (value := _plain(row.get(key))) is not None
        }
        if len(values) > 1:
            top = min(values.values()) if lowest else max(values.values())
            best |= {(index, key) for index, value in values.items() if value == top}
    return frozenset(best)


def _plain(value: Any) -> float | None:
    return number(value.get("value") if isinstance(value, Mapping) else value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
