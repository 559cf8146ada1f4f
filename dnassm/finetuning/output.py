"""The run folder that fine-tuning writes: model, head, result, predictions, model card."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dnassm.artifact import staged_file, write_json
from dnassm.finetuning.classifier import Classifier
from dnassm.finetuning.crossval import Predicted
from dnassm.finetuning.examples import Task
from dnassm.finetuning.folds import Indices
from dnassm.finetuning.learner import History
from dnassm.finetuning.options import FinetuneOptions
from dnassm.finetuning.result import FinetuneResult, ModelResult
from dnassm.provenance import write_run_json
from dnassm.runs import Run

_CARD = """---
library_name: dnassm
pipeline_tag: text-classification
tags: [dna, genomics, state-space-model]
---
# {name}

{what} on `{task}`: {classes}.

{table}

{how} Intervals are 95 % bootstrap intervals over the test sequences.
{copies} copies of another sequence ({reverse} more of its reverse complement) are in the data; \
{leaks} test sequences ({leaks_reverse} more as reverse complement) are also in training.

```python
from dnassm.finetuning import Classifier
classifier = Classifier.load("{name}")
classifier.predict_proba(["ACGTACGT"])  # columns: {columns}
```

`result.json` holds every number and curve, `predictions.tsv` the test predictions of `{model}`,
`metrics.csv` its training, `leakage.json` what test and training have in common, `run.json` the
command, the versions and the inputs. The weights come
from the run with model digest `{digest}`.
"""


def write_run(
    folder: Path,
    run: Run,
    task: Task,
    result: FinetuneResult,
    chosen: Predicted,
    held_out: Sequence[Indices] | None,
    options: FinetuneOptions,
    *,
    name: str,
) -> None:
    """Write every file into `folder`.

    Args:
        folder: exists and is empty.
        run: the pretrained run.
        task: what was learnt.
        result: of every model, the one to store first.
        chosen: what that model predicted and learnt.
        held_out: indices of each fold, None with a test set.
        options: of the fine-tuning.
        name: of the finished folder, for the model card.
    """
    classifier = chosen.fitted.classifier
    assert isinstance(classifier, Classifier)  # noqa: S101  the first learner is no baseline
    classifier.model.save_pretrained(folder, run.config)
    classifier.head.save(folder)
    run.tokenizer.save(folder / "tokenizer.json")
    write_json(folder / "result.json", result.to_json())
    _write_table(folder / "predictions.tsv", _predictions(task, result.models[0], held_out), "\t")
    _write_table(folder / "metrics.csv", _history(chosen.fitted.history), ",")
    card = _card(name, run, task, result, options)
    with staged_file(folder / "README.md") as staging:
        staging.write_text(card, encoding="utf-8")
    write_run_json(
        folder,
        command="finetune",
        config=dataclasses.asdict(options),
        seed=options.seed,
        inputs={str(run.path): run.digest, **task.files},
    )


def _predictions(
    task: Task, model: ModelResult, held_out: Sequence[Indices] | None
) -> Iterable[Sequence[object]]:
    """Rows of predictions.tsv, header first; fold counts from 1 and is empty with a test set."""
    test = task.test or task.train
    fold = {int(i): number for number, part in enumerate(held_out or (), 1) for i in part}
    yield ["name", "fold", "label", "predicted", *(f"p({name})" for name in task.classes)]
    best = model.probabilities.argmax(1)
    for i, row in enumerate(model.probabilities):
        yield [
            test.names[i],
            fold.get(i, ""),
            task.classes[test.labels[i]],
            task.classes[best[i]],
            *(f"{value:.6f}" for value in row),
        ]


def _history(history: History) -> Iterable[Sequence[object]]:
    columns = list(history[0]) if history else ["epoch"]
    yield columns
    yield from ([row[column] for column in columns] for row in history)


def _write_table(path: Path, rows: Iterable[Sequence[object]], delimiter: str) -> None:
    with (
        staged_file(path) as staging,
        staging.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows(rows)


def _card(name: str, run: Run, task: Task, result: FinetuneResult, options: FinetuneOptions) -> str:
    lines = [result.columns(), *result.rows()]
    lines.insert(1, tuple("---" for _ in lines[0]))
    counts = np.bincount(task.train.label_array(), minlength=len(task.classes))
    test = (
        f"{result.folds}-fold cross-validation over {result.n_test} sequences, copies of a "
        "sequence in one fold."
        if result.folds
        else f"{result.n_train} training, {result.n_dev} dev and {result.n_test} test sequences."
    )
    return _CARD.format(
        name=name,
        what="Logistic regression on frozen embeddings"
        if options.mode == "probe"
        else "A fully fine-tuned model",
        task=task.name,
        classes=", ".join(f"{label} ({n})" for label, n in zip(task.classes, counts, strict=True)),
        table="\n".join(f"| {' | '.join(map(str, line))} |" for line in lines),
        how=test,
        copies=result.duplicates.exact,
        reverse=result.duplicates.reverse_complement,
        leaks=result.leaks.exact,
        leaks_reverse=result.leaks.reverse_complement,
        columns=json.dumps(list(task.classes)),
        model=result.models[0].name,
        digest=run.digest[:16],
    )
