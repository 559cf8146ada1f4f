"""Learn to classify sequences with a pretrained model, beside simple baselines."""

from pathlib import Path
from typing import Any

import click


@click.command(short_help="Learn to classify sequences with a pretrained model.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="CSV, TSV or parquet of sequence,label[,split]; or a folder with train, dev, test tables.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@click.option("--test-split", help="Part to test on.  [default: test]")
@click.option(
    "--mode",
    type=click.Choice(["probe", "full"]),
    default="probe",
    show_default=True,
    help="probe: logistic regression on frozen embeddings; full: train every weight.",
)
@click.option("--scratch", is_flag=True, help="Also train from random weights, to compare.")
@click.option(
    "--folds",
    type=click.IntRange(2),
    help="Cross-validation, for data without parts.  [default: 5]",
)
@click.option("--epochs", type=click.IntRange(1), default=10, show_default=True, help="Full only.")
@click.option(
    "--lr", type=float, default=5e-4, show_default=True, help="Backbone's peak; full only."
)
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=32,
    show_default=True,
    help="Sequences at a time.",
)
@click.option(
    "--strand",
    type=click.Choice(["plus", "both"]),
    default="plus",
    show_default=True,
    help="both: learn from both strands and average both; where the strand means nothing.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of weights, folds and bootstrap.",
)
@click.option("--force", is_flag=True, help="Replace --out.")
@click.option("--json", "as_json", is_flag=True, help="Print result.json.")
def command(
    run: Path,
    data: Path,
    out: Path,
    test_split: str | None,
    *,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune the model of RUN and test it on the whole test set.

    The table has the k-mer logistic regression and the majority class trained on the same data.

    \b
    dnassm finetune RUN --data promoters.csv --out RUN2
    dnassm finetune RUN --data gue/tf/0 --mode full --scratch --out RUN2
    """  # noqa: D301  click marks with it what it must not wrap
    import json

    from dnassm.console import table
    from dnassm.finetuning import FinetuneOptions, finetune

    result = finetune(
        run, data, out, options=FinetuneOptions(**options), test_split=test_split, force=force
    )
    if as_json:
        click.echo(json.dumps(result.to_json()))
    else:
        click.echo(table(result.rows(), result.columns()))
