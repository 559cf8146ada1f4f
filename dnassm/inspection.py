"""What is in a genome store or a run folder, from headers alone: no tensor is read, no torch."""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnassm.artifact import read_json
from dnassm.console import table
from dnassm.data.store import GenomeStore
from dnassm.errors import ArtifactError

_MAX_HEADER_BYTES = 100_000_000
"""What the safetensors library itself accepts."""
_SHOWN_CONTIGS = 30


def describe(path: Path) -> dict[str, Any]:
    """Facts about the artifact at `path`, as JSON values; ``kind`` is "store" or "run".

    Raises:
        ArtifactError: it is missing, neither a store nor a run, or broken.
    """
    if (path / "store.json").is_file() or path.is_file():
        return describe_store(GenomeStore.open(path))
    if (path / "config.json").is_file():
        return _describe_run(path)
    if not path.exists():
        raise ArtifactError(f"{path} does not exist; expected a genome store or a run folder")
    raise ArtifactError(
        f"{path} is neither a genome store (no store.json) nor a run folder (no config.json)"
    )


def describe_store(store: GenomeStore) -> dict[str, Any]:
    """Contigs with lengths, composition and digests, totals, and the bases of each split part."""
    contigs: list[dict[str, Any]] = [
        {
            "name": contig.name,
            "length": contig.length,
            "gc": _gc(counts),
            **counts,
            "md5": contig.md5,
            "sha256": contig.sha256,
        }
        for contig, counts in ((contig, contig.counts) for contig in store.contigs)
    ]
    counts = {key: sum(contig[key] for contig in contigs) for key in store.contigs[0].counts}
    return {
        "kind": "store",
        "path": str(store.path),
        "digest": store.digest,
        "bases": sum(store.lengths.values()),
        "gc": _gc(counts),
        **counts,
        "contigs": contigs,
        "split": {
            "rule": store.split_rule,
            **{part: sum(map(len, intervals)) for part, intervals in store.splits.items()},
        },
        "sources": [dict(source) for source in store.sources],
    }


def render(facts: Mapping[str, Any]) -> str:
    """The facts of `describe` as aligned text."""
    return _render_store(facts) if facts["kind"] == "store" else _render_run(facts)


def _render_store(facts: Mapping[str, Any]) -> str:
    columns = ["contig", "bases", "GC", "N", "IUPAC", "soft-masked", "MD5"]

    def row(name: str, entry: Mapping[str, Any], bases: int, digest: str | None) -> list[Any]:
        counts = [entry[key] for key in ("N", "iupac", "soft_masked")]
        return [name, bases, entry["gc"], *counts, digest]

    shown = facts["contigs"][:_SHOWN_CONTIGS]
    rows = [row(c["name"], c, c["length"], c["md5"]) for c in shown]
    hidden = len(facts["contigs"]) - len(shown)
    if hidden:
        rows.append([f"... {hidden} more, --json shows all", *[None] * 6])
    rows.append(row(f"all {len(facts['contigs'])}", facts, facts["bases"], None))
    split = facts["split"]
    parts = ", ".join(f"{part} {split[part]:,}" for part in ("train", "valid", "test"))
    lines = [table(rows, columns), "", f"split   {split['rule']}: {parts} bases"]
    if facts["U"]:
        lines.append(f"RNA     {facts['U']:,} U read as T")
    return "\n".join([*lines, f"digest  {facts['digest']}"])


def _describe_run(path: Path) -> dict[str, Any]:
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or "model" not in config:
        raise ArtifactError(f"{path / 'config.json'} is no config of a dnassm run; check the path")
    run = read_json(path / "run.json") if (path / "run.json").is_file() else {}
    tensors = _tensor_shapes(path / "model.safetensors")
    return {
        "kind": "run",
        "path": str(path),
        "finished": tensors is not None,
        "parameters": None if tensors is None else sum(map(math.prod, tensors.values())),
        "tensors": None if tensors is None else len(tensors),
        "config": config,
        "last_metrics": _last_row(path / "metrics.csv"),
        "checkpoints": len(list((path / "checkpoints").glob("*"))),
        **{key: run.get(key) for key in ("command", "seed", "versions", "device", "created")},
        "inputs": run.get("inputs", {}),
    }


def _render_run(facts: Mapping[str, Any]) -> str:
    parameters = facts["parameters"]
    model = ", ".join(
        f"{key} {value}" for key, value in facts["config"]["model"].items() if _is_plain(value)
    )
    rows = [
        ("state", "finished" if facts["finished"] else "unfinished: no model.safetensors"),
        ("parameters", "-" if parameters is None else f"{parameters:,}"),
        ("model", model),
        ("last row", _words(facts["last_metrics"] or {})),
        ("checkpoints", facts["checkpoints"]),
        ("made by", f"dnassm {facts['command']}, {facts['created']}, {facts['device']}"),
        ("versions", _words(facts["versions"] or {})),
        ("inputs", _words(facts["inputs"])),
    ]
    return "\n".join(f"{name:12} {value}" for name, value in rows)


def _tensor_shapes(path: Path) -> dict[str, list[int]] | None:
    """Shape of every tensor of a safetensors file from its header; None when there is no file."""
    if not path.is_file():
        return None
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else _MAX_HEADER_BYTES
        try:
            if length + 8 > min(size, _MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            if size != 8 + length + max(
                (e["data_offsets"][1] for e in entries.values()), default=0
            ):
                raise ValueError("the file is cut short")
            return {name: entry["shape"] for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{path} is no intact safetensors file: {error}; copy or train it again"
            ) from error


def _last_row(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {key: value for key, value in rows[-1].items() if value} if rows else None


def _gc(counts: Mapping[str, int]) -> float | None:
    """(G + C) / (A + C + G + T); None without any of these."""
    known = sum(counts[letter] for letter in "ACGT")
    return (counts["G"] + counts["C"]) / known if known else None


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int | float)


def _words(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) or "-"
