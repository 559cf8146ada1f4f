"""Classification: every model with its intervals, beside the baselines, and who wins."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dnassm.errors import FormatError
from dnassm.report import formats
from dnassm.report.content import Column, Fact, Section, Table
from dnassm.report.figures.canvas import SERIES
from dnassm.report.figures.classification import curve_figures, intervals_figure
from dnassm.report.leakage import leakage_says, leakage_table
from dnassm.report.loading import need, number, read_provenance, read_record, winners
from dnassm.report.section import SECTIONS, SectionReader
from dnassm.report.verdict import verdict

#: Names of what a pretrained model has to beat; "random" is the same model without pretraining.
_BASELINE = re.compile(r"k-?mer|majority|random", re.IGNORECASE)
_TITLES = {"accuracy": "Accuracy", "macro_f1": "Macro F1", "f1": "F1"}
#: The metric that decides who wins: the first of these that is measured.
_DECIDING = ("auroc", "mcc", "macro_f1", "f1", "accuracy")
_MOST_CLASSES = 30


@SECTIONS.register("classification")
class ClassificationReader(SectionReader):
    """Reads result.json of a fine-tuning run."""

    order = 4
    holds = "classification run (folder with result.json)"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is result.json or the folder with it."""
        return path.name == "result.json" or (path / "result.json").is_file()

    def read(self, path: Path, key: str) -> Section:
        """Read the result."""
        file = path if path.name == "result.json" else path / "result.json"
        result = read_record(file)
        classes = [str(name) for name in need(result, "classes", file, list)]
        models = [_model(each, file) for each in need(result, "models", file, list)]
        for model, colour in zip(models, _colours(models), strict=True):
            model["colour"] = colour
        metric = _deciding(models)
        best = _best([m for m in models if not m["baseline"]] or models, metric)
        return Section(
            title="Classification",
            source=str(path),
            says=(
                *_says(models, metric, len(classes)),
                *_leakage(result),
                *leakage_says(file.parent / "leakage.json"),
            ),
            notes=_notes(result, classes),
            facts=_facts(best, metric),
            blocks=(
                *curve_figures(key, models, _prior(models), classes),
                *_confusion(best, classes, file),
                *intervals_figure(key, models, [(n, title(n)) for n in _metric_names(models)]),
                *([_table(models)] if models else []),
                *leakage_table(file.parent / "leakage.json"),
            ),
            provenance=read_provenance(file.parent / "run.json"),
        )


def title(metric: str) -> str:
    """Write a metric's name: ``auroc`` -> ``AUROC``, ``macro_f1`` -> ``Macro F1``."""
    return _TITLES.get(metric.lower(), metric.upper() if metric.islower() else metric)


def _model(record: Any, path: Path) -> dict[str, Any]:
    name = str(need(record, "name", path, str)).replace("full", "full fine-tuning", 1)
    metrics = {}
    for metric in need(record, "metrics", path, list):
        bounds = {bound: number(metric.get(bound)) for bound in ("value", "low", "high")}
        metrics[str(need(metric, "name", path, str))] = bounds
    return {
        "name": name,
        "baseline": bool(_BASELINE.search(name)),
        "metrics": metrics,
        "roc": _curve(record.get("roc"), "fpr", "tpr", path),
        "pr": _curve(record.get("pr"), "recall", "precision", path),
        "confusion": record.get("confusion"),
        "seconds": number(record.get("seconds")),
    }


def _curve(record: Any, x: str, y: str, path: Path) -> list[tuple[float, float]]:
    if record is None:
        return []
    xs, ys = need(record, x, path, list), need(record, y, path, list)
    if len(xs) != len(ys):
        raise FormatError(f"{path}: {x} has {len(xs)} points, {y} has {len(ys)}; expected as many")
    pairs = ((number(left), number(right)) for left, right in zip(xs, ys, strict=True))
    return [(left, right) for left, right in pairs if left is not None and right is not None]


def _colours(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """Blue first for dnassm models, vermilion first for baselines; beyond eight, grey."""
    own = iter([name for name in SERIES if name not in ("vermilion", "orange", "grey")])
    other = iter(("vermilion", "orange"))
    return [next(other if model["baseline"] else own, "grey") for model in models]


def _metric_names(models: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for model in models for name in model["metrics"]))


def _deciding(models: Sequence[Mapping[str, Any]]) -> str:
    names = {name.lower(): name for name in _metric_names(models)}
    for name in _DECIDING:
        if name in names and any(_value(model, names[name]) is not None for model in models):
            return names[name]
    return ""


def _value(model: Mapping[str, Any], metric: str) -> float | None:
    value: float | None = model["metrics"].get(metric, {}).get("value")
    return value


def _best(models: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any] | None:
    measured = [model for model in models if _value(model, metric) is not None]
    return max(measured, key=lambda model: _value(model, metric) or 0.0, default=None)


def _says(models: Sequence[Mapping[str, Any]], metric: str, classes: int) -> tuple[str, ...]:
    own = _best([m for m in models if not m["baseline"]], metric)
    other = _best([m for m in models if m["baseline"]], metric)
    if own is None and other is None:
        return ("No model of this run has a measured score.",)
    lone = own or other
    if own is None or other is None:
        missing = "" if own is None else " No baseline was measured beside it."
        return (f"{_reaches(lone, metric)}.{missing}",)
    chance = " (0.5 is chance)" if metric.lower() == "auroc" and classes == 2 else ""
    beside = f"{_the(other['name'], capital=False)} {_score(other, metric)}{chance}"
    judged = verdict(
        (_the(own["name"]), own["metrics"][metric]), (_the(other["name"]), other["metrics"][metric])
    )
    return (f"{_reaches(own, metric)}; {beside}. {judged}",)


def _reaches(model: Any, metric: str) -> str:
    return f"{_the(model['name'])} reaches {title(metric)} {_score(model, metric)}"


def _score(model: Mapping[str, Any], metric: str) -> str:
    score = model["metrics"][metric]
    bounds = formats.interval(score["low"], score["high"])
    return " ".join(filter(None, (formats.decimals(score["value"], 3), bounds)))


def _the(name: str, *, capital: bool = True) -> str:
    return f"{'The' if capital else 'the'} {name}"


def _leakage(result: Mapping[str, Any]) -> tuple[str, ...]:
    leaks = result.get("leaks")
    if not isinstance(leaks, Mapping) or (number(result.get("folds")) or 1) > 1:
        return ()  # with cross-validation copies stay in one fold
    exact = int(number(leaks.get("exact")) or 0)
    reverse = int(number(leaks.get("reverse_complement")) or 0)
    if not exact + reverse:
        return ("No test sequence occurs in the training set, on either strand.",)
    verb = "occurs" if exact + reverse == 1 else "occur"
    return (
        f"Leakage: {formats.plural(exact + reverse, 'test sequence')} {verb} in the training set "
        f"({formats.count(exact)} as they are, {formats.count(reverse)} as reverse complement); "
        "every score here may be too good.",
    )


def _notes(result: Mapping[str, Any], classes: Sequence[str]) -> tuple[str, ...]:
    train, test = number(result.get("n_train")), number(result.get("n_test"))
    notes = []
    if train is not None and test is not None:
        text = f"{formats.count(train)} training and {formats.count(test)} test sequences"
        folds = number(result.get("folds")) or 1
        if folds > 1:
            text = (
                f"{formats.count(test)} sequences in {folds:.0f}-fold cross-validation, "
                "copies of a sequence in one fold"
            )
        notes.append(f"{text}; classes {', '.join(classes)}.")
    if result.get("task"):
        notes.insert(0, f"Task: {result['task']}.")
    return tuple(notes)


def _facts(best: Mapping[str, Any] | None, metric: str) -> tuple[Fact, ...]:
    if best is None:
        return ()
    value = formats.decimals(best["metrics"][metric]["value"], 3)
    return (Fact(value=value, label=f"{title(metric)}, {best['name']}"),)


def _prior(models: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the positive class (the second) among the test sequences."""
    for model in models:
        matrix = model["confusion"]
        if isinstance(matrix, list) and len(matrix) == 2:
            sizes = [sum(row) for row in matrix]
            return sizes[1] / sum(sizes) if sum(sizes) else None
    return None


def _confusion(
    model: Mapping[str, Any] | None, classes: Sequence[str], path: Path
) -> tuple[Table, ...]:
    """Tabulate the confusion matrix: rows the truth, columns the prediction, as row shares."""
    if model is None or not model["confusion"] or len(classes) > _MOST_CLASSES:
        return ()
    matrix = model["confusion"]
    if len(matrix) != len(classes) or any(len(row) != len(classes) for row in matrix):
        raise FormatError(
            f"{path}: expected a confusion matrix of {len(classes)} x {len(classes)} for "
            f"{model['name']!r}, as there are classes; rebuild it"
        )
    rows = []
    for name, counts in zip(classes, matrix, strict=True):
        total = sum(counts)
        cells = [{"count": n, "share": n / total if total else None} for n in counts]
        rows.append({"truth": name} | {f"c{i}": cell for i, cell in enumerate(cells)})
    columns = [Column(key=f"c{i}", title=name, form="share") for i, name in enumerate(classes)]
    return (
        Table(
            name="confusion",
            caption=f"Confusion matrix, {model['name']}: share of each true class, and counts",
            columns=[Column(key="truth", title="True \\ predicted"), *columns],
            rows=rows,
            span="third" if len(classes) <= 3 else "full",
        ),
    )


def _table(models: Sequence[Mapping[str, Any]]) -> Table:
    names = _metric_names(models)
    rows = [{"name": m["name"], **m["metrics"], "seconds": m["seconds"]} for m in models]
    columns = [
        Column(key="name", title="Model"),
        *(Column(key=name, title=title(name), form="metric") for name in names),
    ]
    if any(model["seconds"] is not None for model in models):
        columns.append(Column(key="seconds", title="Time", form="duration"))
    return Table(
        name="scores",
        caption="Scores on the test set with 95\u00a0% bootstrap intervals; higher is better",
        columns=columns,
        rows=rows,
        best=winners(rows, names),
        own=frozenset(index for index, model in enumerate(models) if not model["baseline"]),
    )
