"""Pretrain a model on a genome."""

from __future__ import annotations

from pathlib import Path

import click

_PATH = click.Path(path_type=Path)


@click.command(short_help="Pretrain a model on a genome.")
@click.option("--genome", type=_PATH, help="A store made by `dnassm tokenize`, or a FASTA file.")
@click.option("--model", "preset", help="A preset.  [default: mamba-tiny]")
@click.option("--config", type=_PATH, help="A TOML file instead of a preset.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="As training.lr=0.001.")
@click.option("--objective", type=click.Choice(["next", "masked"]), help="What to predict.")
@click.option("--length", type=int, help="Window length in bases.")
@click.option("--max-steps", type=int, help="Optimiser steps.")
@click.option("--max-tokens", type=int, help="Bases to read, instead of --max-steps.")
@click.option("--minutes", type=float, help="Train for so long, instead of --max-steps.")
@click.option("--seed", type=int, help="Of weights, windows, masks and dropout.")
@click.option("--split", help="What a FASTA holds out.  [default: blocks:size=50000,every=10]")
@click.option("--out", type=_PATH, required=True, help="The run folder to write.")
@click.option("--resume", is_flag=True, help="Go on where an unfinished run was stopped.")
@click.option("--devices", default="auto", show_default=True, help="Number of devices.")
@click.option("--strategy", default="auto", show_default=True, help="auto or ddp.")
@click.option("--tensorboard", is_flag=True, help="Also log for TensorBoard.")
@click.option("--no-evaluate", is_flag=True, help="Skip the held-out bits per base at the end.")
@click.option("--force", is_flag=True, help="Replace the run that is at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    genome: Path | None,
    preset: str | None,
    config: Path | None,
    settings: tuple[str, ...],
    objective: str | None,
    length: int | None,
    max_steps: int | None,
    max_tokens: int | None,
    minutes: float | None,
    seed: int | None,
    split: str | None,
    out: Path,
    *,
    resume: bool,
    devices: str,
    strategy: str,
    tensorboard: bool,
    no_evaluate: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Train a model to predict the bases of a genome, and measure it on what was held out.

    \b
      dnassm pretrain --genome genome.fa.gz --out run
      dnassm pretrain --genome STORE --model mamba-small --max-tokens 50000000 --out run
      dnassm pretrain --resume --out run

    A run that was stopped goes on with --resume exactly as if it had not been; the options it was
    started with need not be repeated and cannot be changed.
    """  # noqa: D301  click marks with it what it must not wrap  # noqa: D301  click marks a paragraph to keep with a backspace character
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
    text = run_pretrain(request, as_json=as_json)
    if text:
        click.echo(text)
