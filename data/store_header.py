"""store.json: the contigs, splits and sources of a genome store, in memory and on disk.

A draft assembly has hundreds of thousands of contigs: each is one small tuple from the moment its
text is parsed, and one line that is written as it comes.
"""

from __future__ import annotations

import json
import operator
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dnassm.data.encoder import COUNTS
from dnassm.errors import ArtifactError

_COUNTS = struct.Struct(f"<{len(COUNTS)}q")
_counts_of = operator.itemgetter(*COUNTS)
_KEYS = ("name", "description", "offset", "length", "sha256", "md5", "counts")
_values_of = operator.itemgetter(*_KEYS)
json_text = json.JSONEncoder().encode
"""A value as JSON in one line; of texts faster than json.dumps."""
_CONTIG = (
    '{"name": %s, "description": %s, "offset": %d, "length": %d, "sha256": "%s", "md5": "%s", '
    '"counts": {' + ", ".join(f'"{kind}": %d' for kind in COUNTS) + "}}"
)


class StoredContig(NamedTuple):
    """One sequence of a store."""

    name: str
    description: str
    offset: int
    """Where its codes begin in codes.bin."""
    length: int
    sha256: str
    md5: str
    packed: bytes
    """Its counts, int64 each, in a third of the memory of a dictionary."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each of COUNTS occurs."""
        return dict(zip(COUNTS, _COUNTS.unpack(self.packed), strict=True))

    def json(self) -> str:
        """As an object of JSON, in one line."""
        name, description, *others, packed = self
        return _CONTIG % (json_text(name), json_text(description), *others, *_COUNTS.unpack(packed))


def write_lines(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object of JSON.

    Values may be objects again, and iterators of texts of JSON: arrays, of which only one item at a
    time is in memory.
    """
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_pieces(value))
        file.write("\n")


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, Iterator):
        yield "["
        for number, item in enumerate(value):
            yield f",\n{item}" if number else f"\n{item}"
        yield "\n]"
    elif isinstance(value, Mapping):
        yield "{"
        for number, (key, item) in enumerate(value.items()):
            yield f"{',' if number else ''}\n{json_text(key)}: "
            yield from _pieces(item)
        yield "\n}"
    else:
        yield json_text(value)


def read_lines(path: Path) -> Any:
    """Read JSON, with a StoredContig for each object that is a contig.

    Raises:
        ArtifactError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=_compact)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is a plain ValueError
        raise ArtifactError(f"{path}: expected JSON, got {error}; restore or rebuild it") from error


def _compact(entry: dict[str, Any]) -> Any:
    """The counts of a contig as bytes, a contig as a tuple; anything else as it is."""
    try:
        if len(entry) == len(COUNTS) and "soft_masked" in entry:
            return _COUNTS.pack(*_counts_of(entry))
        if len(entry) == len(_KEYS) and isinstance(entry.get("counts"), bytes):
            return StoredContig(*_values_of(entry))
    except (KeyError, struct.error):
        pass  # whoever needs a contig here says so
    return entry
