"""The pretraining run: what it learned, beside Markov models of the same training sequence."""

from __future__ import annotations

import csv
import json
import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnassm.errors import FormatError
from dnassm.report import formats
from dnassm.report.content import Column, Fact, Section, Table
from dnassm.report.figures.pretraining import curve_figures, orders_figure
from dnassm.report.loading import need, number, read_provenance, read_record, winners
from dnassm.report.section import SECTIONS, SectionReader

_METRICS = ("step", "tokens", "train_bits")
#: A rise of the held-out loss that one evaluation's noise does not explain, in bits per base.
_OVERFITTED = 0.003
_COLUMNS = (
    Column(key="name", title="Model"),
    Column(key="bits_per_base", title="Bits per base", form="bits"),
    Column(key="difference", title="Against the model", form="difference"),
)
_RUN_COLUMNS = (
    Column(key="name", title="Model"),
    Column(key="parameters", title="Parameters", form="count"),
    Column(key="tokens", title="Tokens seen", form="count"),
    Column(key="seconds", title="Time", form="duration"),
    Column(key="tokens_per_s", title="Tokens per second", form="count"),
    Column(key="train_bits", title="Training bits per base", form="bits"),
    Column(key="bits_per_base", title="Held-out bits per base", form="bits"),
)


@SECTIONS.register("pretraining")
class PretrainingReader(SectionReader):
    """Reads metrics.csv, evaluation.json and the header of model.safetensors of a run."""

    order = 2
    holds = "pretraining run (folder with config.json and metrics.csv)"

    def recognises(self, path: Path) -> bool:
        """Whether the folder is a run that was not trained on labels."""
        names = ("config.json", "metrics.csv")
        return all((path / n).is_file() for n in names) and not (path / "result.json").exists()

    def read(self, path: Path, key: str) -> Section:
        """Read the curve, the evaluation when there is one, and the size of the model."""
        curve = read_curve(path / "metrics.csv")
        evaluation = _evaluation(path / "evaluation.json")
        bits = evaluation["bits_per_base"] if evaluation else _last(curve, "valid_bits")
        baselines = evaluation["baselines"] if evaluation else []
        rows = [_model_row(path, curve, bits), *baselines]
        for row in rows:
            own = row["bits_per_base"]
            known = row is not rows[0] and own is not None and bits is not None
            row["difference"] = own - bits if known else None
        return Section(
            title="Pretraining",
            source=str(path),
            says=(*_says(bits, baselines, evaluation), *_overfitting(curve)),
            notes=_notes(curve, evaluation),
            facts=_facts(rows[0], baselines),
            blocks=(
                *curve_figures(key, curve, _best(baselines)),
                *orders_figure(key, bits, baselines),
                *([_comparison(rows)] if baselines else []),
                _run_table(rows[0]),
            ),
            provenance=read_provenance(path / "run.json"),
        )


def read_curve(path: Path) -> dict[str, list[float | None]]:
    """Read metrics.csv as columns; cells that are empty, nan or cut in the middle become None.

    A resumed run may log a step twice: the later row stands.

    Raises:
        FormatError: a column is missing.
    """
    with path.open(newline="", encoding="utf-8", errors="replace") as lines:
        reader = csv.DictReader(line.replace("\0", "") for line in lines)
        columns = list(reader.fieldnames or [])
        missing = [name for name in _METRICS if name not in columns]
        if missing and columns:
            raise FormatError(
                f"{path}: expected the columns {', '.join(_METRICS)}, got {', '.join(columns)}"
            )
        by_step = {}
        for row in reader:
            step = number(row.get("step"))
            if step is not None and number(row.get("tokens")) is not None:
                by_step[step] = row
    names = [*_METRICS, "seconds", "valid_bits", "lr", "tokens_per_s"]
    return {name: [number(by_step[step].get(name)) for step in sorted(by_step)] for name in names}


def model_name(config: Mapping[str, Any]) -> str:
    """Describe the model by its blocks: ``6 mamba blocks, width 256``; empty when it is not said.

    >>> model_name({"model": {"pattern": "mms", "letters": {"m": {"name": "mamba"},
    ...                       "s": {"name": "s4d"}}, "d_model": 64}})
    '2 mamba + 1 s4d blocks, width 64'
    """
    model = config.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("pattern"), str):
        return ""
    letters = model.get("letters") or {}
    mixers = Counter((letters.get(letter) or {}).get("name", letter) for letter in model["pattern"])
    blocks = " + ".join(f"{number} {name}" for name, number in mixers.items())
    both = "bidirectional " if model.get("bidirectional") else ""
    noun = "block" if len(model["pattern"]) == 1 else "blocks"
    return f"{both}{blocks} {noun}, width {model.get('d_model')}"


def parameter_count(path: Path) -> int | None:
    """Count the numbers in a .safetensors file from its header; None when there is no such file.

    Raises:
        FormatError: the header is cut or is not the format's.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
            header.pop("__metadata__", None)
            return sum(math.prod(map(int, entry["shape"])) for entry in header.values())
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: expected a safetensors header, got {error}") from error


def _evaluation(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    record = read_record(path)
    baselines = [
        {
            "name": str(need(each, "name", path, str)),
            "order": _order(each),
            "bits_per_base": number(each.get("bits_per_base")),
        }
        for each in record.get("baselines") or []
    ]
    need(record, "bits_per_base", path, (int, float, type(None)))
    return {
        "bits_per_base": number(record["bits_per_base"]),
        "split": str(record.get("split") or "held-out"),
        "bases": number(record.get("bases")),
        "baselines": baselines,
    }


def _order(baseline: Mapping[str, Any]) -> int | None:
    """Order of a plain Markov model; a mixture of orders has none."""
    order = baseline.get("order")
    mixture = "interpolated" in str(baseline["name"])
    return order if isinstance(order, int) and not mixture else None


def _model_row(
    path: Path, curve: Mapping[str, Sequence[float | None]], bits: float | None
) -> dict[str, Any]:
    return {
        "name": model_name(read_record(path / "config.json")) or path.name,
        "order": None,
        "bits_per_base": bits,
        "parameters": parameter_count(path / "model.safetensors"),
        "tokens": _last(curve, "tokens"),
        "seconds": _last(curve, "seconds"),
        "tokens_per_s": _last(curve, "tokens_per_s"),
        "train_bits": _last(curve, "train_bits"),
    }


def _last(curve: Mapping[str, Sequence[float | None]], name: str) -> float | None:
    return next((value for value in reversed(curve[name]) if value is not None), None)


def _best(baselines: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    measured = [each for each in baselines if each["bits_per_base"] is not None]
    return min(measured, key=lambda each: float(each["bits_per_base"]), default=None)


def _says(
    bits: float | None,
    baselines: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
) -> tuple[str, ...]:
    if bits is None:
        return ("The model has not been measured on held-out sequence yet.",)
    head = f"The model needs {formats.decimals(bits, 3)} bits per base on held-out sequence"
    coin = "2 bits is a coin with four sides"
    best = _best(baselines)
    if best is None:
        beside = "" if evaluation else " No Markov model was measured beside it."
        worse = " It is worse than guessing: training has hardly begun." if bits > 2 else ""
        return (f"{head}; {coin}.{worse}{beside}",)
    other = float(best["bits_per_base"])
    name = str(best["name"]).removeprefix("Markov ")
    digits = 3 if round(bits, 3) != round(other, 3) else 4
    head = f"The model needs {formats.decimals(bits, digits)} bits per base on held-out sequence"
    text = f"{head}; the best Markov model ({name}) needs {formats.decimals(other, digits)}"
    gap = formats.decimals(abs(other - bits), digits)
    if round(bits, 4) == round(other, 4):
        winner = "It is a tie"
    elif bits < other:
        winner = f"The model wins by {gap}"
    else:
        winner = f"The Markov model wins by {gap}: counting words still beats this training"
    return (f"{text}; {coin}. {winner}.",)


def _overfitting(curve: Mapping[str, Sequence[float | None]]) -> tuple[str, ...]:
    points = [
        (bits, tokens)
        for bits, tokens in zip(curve["valid_bits"], curve["tokens"], strict=True)
        if bits is not None and tokens is not None
    ]
    if len(points) < 3:
        return ()
    best, tokens = min(points)
    if points[-1][0] - best <= _OVERFITTED:
        return ()
    return (
        f"The held-out loss was lowest, {formats.decimals(best, 3)}, after "
        f"{formats.amount(tokens)} tokens and rose to {formats.decimals(points[-1][0], 3)} since: "
        "the model began to learn the training sequence by heart.",
    )


def _notes(
    curve: Mapping[str, Sequence[float | None]], evaluation: Mapping[str, Any] | None
) -> tuple[str, ...]:
    notes = []
    if not curve["step"]:
        notes.append("metrics.csv holds no measured step, so there is no loss curve to show.")
    if evaluation and evaluation["bases"]:
        notes.append(
            f"Measured on {formats.bases(evaluation['bases'])} of the {evaluation['split']} split."
        )
    return tuple(notes)


def _facts(model: Mapping[str, Any], baselines: Sequence[Mapping[str, Any]]) -> tuple[Fact, ...]:
    facts = []
    if model["parameters"]:
        facts.append(Fact(value=formats.amount(model["parameters"]), label="parameters"))
    if model["bits_per_base"] is not None:
        best = _best(baselines)
        beside = f" (Markov {formats.decimals(best['bits_per_base'], 3)})" if best else ""
        value = formats.decimals(model["bits_per_base"], 3)
        facts.append(Fact(value=value, label=f"bits per base{beside}"))
    return tuple(facts)


def _comparison(rows: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        name="bits",
        caption="Bits per base on held-out sequence; lower is better",
        columns=_COLUMNS,
        rows=[{column.key: row[column.key] for column in _COLUMNS} for row in rows],
        best=winners(rows, ["bits_per_base"], lowest=True),
        own=frozenset({0}),
        span="half",
    )


def _run_table(row: Mapping[str, Any]) -> Table:
    return Table(
        name="run",
        caption="The run",
        columns=[column for column in _RUN_COLUMNS if row[column.key] is not None],
        rows=[{column.key: row[column.key] for column in _RUN_COLUMNS}],
    )
