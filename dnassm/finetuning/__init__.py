"""Classification of sequences with a pretrained model, always beside simple baselines.

>>> import dnassm
>>> dnassm.finetune("runs/ecoli", "promoters.csv", "runs/promoters")  # doctest: +SKIP
"""

from __future__ import annotations

from pathlib import Path

import torch

from dnassm.artifact import check_target, staged_folder, write_json
from dnassm.baselines.kmer import KmerClassifier
from dnassm.baselines.majority import MajorityClassifier
from dnassm.data.leakage_copies import count_duplicates
from dnassm.embedding import default_device
from dnassm.finetuning.classifier import Classifier
from dnassm.finetuning.crossval import Predicted, folds_of, predict_test
from dnassm.finetuning.examples import Examples, Task, load_task
from dnassm.finetuning.folds import Indices
from dnassm.finetuning.full import FullLearner
from dnassm.finetuning.leakage import leakage_of_task
from dnassm.finetuning.learner import BaselineLearner, Learner
from dnassm.finetuning.options import FinetuneOptions
from dnassm.finetuning.output import write_run
from dnassm.finetuning.probe import ProbeLearner
from dnassm.finetuning.result import FinetuneResult, judge
from dnassm.model import DNAModel
from dnassm.runs import Run, load_run

__all__ = [
    "Classifier",
    "Examples",
    "FinetuneOptions",
    "FinetuneResult",
    "Task",
    "classify",
    "finetune",
    "load_task",
]


def finetune(
    run: Run | Path | str,
    data: Path | str,
    out: Path | str,
    *,
    options: FinetuneOptions | None = None,
    test_split: str | None = None,
    force: bool = False,
) -> FinetuneResult:
    """Learn to classify sequences, test on the whole test set, and write a run folder.

    Args:
        run: a run of `dnassm pretrain`, or its folder.
        data: table of sequence, label and perhaps split, or a folder of train, dev, test tables.
        out: folder to write; it loads with `Classifier.load`, its backbone like any other run.
        options: defaults when None.
        test_split: name of the part to test on; without any part there is cross-validation.
        force: replace `out`.

    Raises:
        DnassmError: see `load_task`, `load_run`; nothing is written then.
    """
    options = options or FinetuneOptions()
    out = Path(out)
    check_target(out, force=force)
    task = load_task(Path(data), test_split=test_split)
    loaded = run if isinstance(run, Run) else load_run(Path(run))
    result, chosen, held_out = _compare(loaded, task, options)
    leakage = leakage_of_task(task, held_out)
    with staged_folder(out, force=force) as staging:
        write_run(staging, loaded, task, result, chosen, held_out, options, name=out.name)
        write_json(staging / "leakage.json", leakage.to_json())
    return result


def classify(run: Run, task: Task, options: FinetuneOptions) -> FinetuneResult:
    """Do as `finetune` with a task that is in memory already; writes nothing."""
    return _compare(run, task, options)[0]


def _compare(
    run: Run, task: Task, options: FinetuneOptions
) -> tuple[FinetuneResult, Predicted, list[Indices] | None]:
    held_out = folds_of(task, options.folds, seed=options.seed)
    test = task.test or task.train
    tested = [
        (learner, predict_test(learner, task, held_out, store=number == 0))
        for number, learner in enumerate(_learners(run, task, options))
    ]
    labels = test.label_array()
    models = tuple(
        judge(
            learner.name,
            labels,
            predicted.probabilities,
            seconds=predicted.seconds,
            seed=options.seed,
        )
        for learner, predicted in tested
    )
    parts = [part for part in (task.train, task.dev, task.test) if part is not None]
    result = FinetuneResult(
        task=task.name,
        classes=task.classes,
        n_train=len(task.train),
        n_dev=len(task.dev) if task.dev else 0,
        n_test=len(test),
        duplicates=count_duplicates([s for part in parts for s in part.sequences]),
        leaks=count_duplicates(
            task.test.sequences if task.test else (), among=task.train.sequences
        ),
        models=models,
        folds=None if held_out is None else len(held_out),
    )
    return result, tested[0][1], held_out


def _learners(run: Run, task: Task, options: FinetuneOptions) -> list[Learner]:
    """What to compare, the asked-for model first."""
    model, tokenizer = run.model.to(default_device()), run.tokenizer
    canonical = options.strand == "both"
    learners: list[Learner] = []
    if options.mode == "probe":
        learners.append(ProbeLearner("probe", model, tokenizer, task.classes, options))
        if options.scratch:
            blank = _blank_like(model, options.seed)
            name = "probe, random weights"
            learners.append(ProbeLearner(name, blank, tokenizer, task.classes, options))
    else:
        learners.append(FullLearner("full", model, tokenizer, task.classes, options))
        if options.scratch:
            name = "full, random weights"
            learners.append(
                FullLearner(name, model, tokenizer, task.classes, options, pretrained=False)
            )
    return [
        *learners,
        BaselineLearner(
            "k-mer logistic regression",
            lambda: KmerClassifier(canonical=canonical, seed=options.seed),
            task.classes,
        ),
        BaselineLearner("majority class", MajorityClassifier, task.classes),
    ]


def _blank_like(model: DNAModel, seed: int) -> DNAModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DNAModel(model.config).to(next(model.parameters()).device).eval()
