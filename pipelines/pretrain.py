"""Pretrain a model on a genome."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command(short_help="Pretrain a model on a genome.")
@click.option("--genome", type=_PATH, help="A store made by `dnassm tokenize`, or a FASTA file.")
@click.option("--model", "preset", default="mamba-tiny", show_default=True, help="A preset.")
@click.option("--config", type=_PATH, help="A TOML file instead of a preset.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As training.lr=0.001.")
@click.option("--objective", type=click.Choice(["next", "masked"]), help="What to predict.")
@click.option("--length", type=int, help="Window length in bases.")
@click.option("--max-steps", type=int, help="Optimiser steps.")
@click.option("--max-tokens", type=int, help="Tokens to read, instead of --max-steps.")
@click.option("--minutes", type=float, help="Stop after so many minutes of training.")
@click.option("--seed", type=int, help="Of weights, windows, masks and dropout.")
@click.option("--split", default="blocks:size=50000,every=10", show_default=True, help="For FASTA.")
@click.option("--out", type=_PATH, required=True, help="The run folder to write.")
@click.option("--resume", is_flag=True, help="Go on where an unfinished run was stopped.")
@click.option("--devices", default="auto", show_default=True, help="Number of devices.")
@click.option("--strategy", default="auto", show_default=True, help="Of Lightning, as ddp or fsdp.")
@click.option("--tensorboard", is_flag=True, help="Also log for TensorBoard.")
@click.option("--no-evaluate", is_flag=True, help="Skip the held-out bits per base at the end.")
@click.option("--force", is_flag=True, help="Replace the run that is at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    genome: Path | None,
    preset: str,
    config: Path | None,
    settings: tuple[str, ...],
    objective: str | None,
    length: int | None,
    max_steps: int | None,
    max_tokens: int | None,
    minutes: float | None,
    seed: int | None,
    split: str,
    out: Path,
    resume: bool,  # noqa: FBT001  click passes every option by name
    devices: str,
    strategy: str,
    tensorboard: bool,  # noqa: FBT001
    no_evaluate: bool,  # noqa: FBT001
    force: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
) -> None:
    """Train a model to predict the bases of a genome, and measure it on what was held out.

    \b
      dnassm pretrain --genome genome.fa.gz --out run
      dnassm pretrain --genome STORE --model mamba-small --max-tokens 50000000 --out run
      dnassm pretrain --resume --out run
    """
    from dnassm.training.command import Request, run_pretrain

    shortcuts = {
        "objective.name": objective,
        "data.length": length,
        "training.max_steps": max_steps,
        "training.seed": seed,
    }
    request = Request(
        genome=genome,
        preset=preset,
        config=config,
        settings=(*(f"{k}={v}" for k, v in shortcuts.items() if v is not None), *settings),
        max_tokens=max_tokens,
        minutes=minutes,
        split=split,
        out=out,
        resume=resume,
        devices=devices,
        strategy=strategy,
        tensorboard=tensorboard,
        evaluate=not no_evaluate,
        force=force,
    )
    click.echo(run_pretrain(request, as_json=as_json))
