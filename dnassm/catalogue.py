"""What is registered under which name, for ``dnassm list`` and the documentation."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from typing import Any

from dnassm.errors import UnknownNameError
from dnassm.registry import did_you_mean

_PRESETS = Path(__file__).resolve().parent / "presets"

# kind -> where its registry lives; named as text, because the import of one may cost seconds.
_REGISTRIES = {
    "mixers": ("dnassm.mixer", "MIXERS"),
    "tokenizers": ("dnassm.data.tokenizer", "TOKENIZERS"),
    "samplers": ("dnassm.data.sampler", "SAMPLERS"),
    "tasks": ("dnassm.task", "TASKS"),
}

KINDS = (*_REGISTRIES, "presets")


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One registered name.

    Attributes:
        kind: one of `KINDS`.
        name: what a user types.
        about: what it is, in one line.
        source: paper, equation or link that it follows; None when it follows none.
    """

    kind: str
    name: str
    about: str
    source: str | None


def catalogue(kind: str) -> list[Entry]:
    """Every registered name of `kind`, sorted.

    Raises:
        UnknownNameError: `kind` is none of `KINDS`.

    >>> [entry.name for entry in catalogue("samplers")][-2:]
    ['tiled', 'uniform']
    """
    if kind == "presets":
        return [_preset(path) for path in sorted(_PRESETS.glob("*.toml"))]
    if kind not in _REGISTRIES:
        raise UnknownNameError(
            f"nothing of the kind {kind!r}; have {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}"
        )
    module, attribute = _REGISTRIES[kind]
    registry = getattr(importlib.import_module(module), attribute)
    return [_entry(kind, name, registry[name]) for name in registry.names()]


def _entry(kind: str, name: str, item: Any) -> Entry:
    # getattr with a default: only mixers and tasks promise a source.
    about = (inspect.getdoc(item) or "").partition("\n")[0]
    return Entry(kind, name, about, getattr(item, "source", None))


def _preset(path: Path) -> Entry:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return Entry("presets", path.stem, first.lstrip("# ").strip(), None)
