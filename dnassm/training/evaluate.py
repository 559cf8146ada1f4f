"""Bits per base on held-out sequence, beside Markov models trained on the same split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import torch

from dnassm.artifact import write_json
from dnassm.baselines.markov import bits_per_base as markov_bits
from dnassm.baselines.markov import fit_markov, fit_mixture
from dnassm.config import RunConfig
from dnassm.console import Progress
from dnassm.data.batch import Batch
from dnassm.data.samplers.tiled import TiledSampler
from dnassm.data.store import GenomeStore
from dnassm.data.tokenizer import Tokenizer
from dnassm.data.windows import WindowDataset, make_loader, window_bases
from dnassm.errors import GenomeError
from dnassm.model import DNAModel
from dnassm.runs import Run
from dnassm.task import IGNORED, TASKS, token_loss
from dnassm.training.hardware import uses_bfloat16

MARKOV_ORDERS = range(1, 13)
_MIXTURE_ORDERS = (7, 11)
# Of one forward: bounds its memory whatever the length and the vocabulary.
_MOST_WINDOWS, _MOST_TOKENS, _MOST_LOGITS = 16, 1 << 16, 1 << 26


def evaluate_run(
    run: Run, genome: GenomeStore, *, split: str | None = None, baselines: bool = True
) -> dict[str, Any]:
    """Measure a run on a held-out split and write ``evaluation.json`` into its folder.

    Args:
        run: the finished run.
        genome: the store that it was trained on: the baselines are fitted on its "train" split.
        split: name of the split; "valid", else "test", when None.
        baselines: also fit Markov models of order 1..12 and two interpolated mixtures.

    Raises:
        GenomeError: the genome has nothing held out.
    """
    split = split or held_out_split(genome)
    if split is None or not genome.splits.get(split):
        raise GenomeError(
            f"{genome.path}: nothing is held out; tokenize with --split blocks:size=50000,every=10"
        )
    bits, bases = _measure(run, genome, split)
    result = {
        "objective": run.config.objective.name,
        "split": split,
        "bits_per_base": bits,
        "bases": bases,
        "baselines": _markov_baselines(genome, split) if baselines else [],
    }
    write_json(run.path / "evaluation.json", result)
    return result


def _measure(run: Run, genome: GenomeStore, split: str) -> tuple[float, int]:
    """Bits per base over a whole split, on the accelerator where there is one."""
    home = next(run.model.parameters()).device
    away = torch.device("cuda") if torch.cuda.is_available() else home
    with Progress(None, "tokens", "evaluate") as bar:
        try:
            return bits_per_base(
                run.model.to(away), run.tokenizer, run.config, genome, split=split, progress=bar
            )
        finally:
            run.model.to(home)


def _markov_baselines(genome: GenomeStore, split: str) -> list[dict[str, Any]]:
    train = [genome.fetch(interval) for interval in genome.splits["train"]]
    test = [genome.fetch(interval) for interval in genome.splits[split]]
    rows: list[dict[str, Any]] = []
    with Progress(len(MARKOV_ORDERS) + len(_MIXTURE_ORDERS), "models", "Markov baselines") as bar:
        for order in MARKOV_ORDERS:
            value = markov_bits(fit_markov(train, order), test).value
            rows.append({"name": f"Markov order {order}", "order": order, "bits_per_base": value})
            bar.update(len(rows))
        for order in _MIXTURE_ORDERS:
            block = _mixture_block(sum(map(len, train)))
            if block < 2 * (order + 1):
                continue  # a genome of a few hundred bases leaves nothing to fit its weights on
            value = markov_bits(fit_mixture(train, order, block=block), test).value
            name = f"Markov orders 0-{order} interpolated"
            rows.append({"name": name, "order": order, "bits_per_base": value})
            bar.update(len(rows))
    return rows


def _mixture_block(bases: int) -> int:
    """Bases per block, of which a tenth fits the weights: a small genome needs small ones."""
    return 10_000 if bases >= 200_000 else bases // 20


def held_out_split(store: GenomeStore) -> str | None:
    """Name of the split to evaluate on: "valid", else "test", else None."""
    return next((name for name in ("valid", "test") if store.splits.get(name)), None)


@torch.inference_mode()
def bits_per_base(
    model: DNAModel,
    tokenizer: Tokenizer,
    config: RunConfig,
    store: GenomeStore,
    *,
    split: str,
    windows: int | None = None,
    progress: Progress | None = None,
) -> tuple[float, int]:
    """Bits that the targets cost, over the bases that they tell; windows tile the split.

    p is a softmax over the whole vocabulary, special tokens included: a model that knows nothing
    pays log2 V for a token. Every base counts that the objective predicts, and each as much as
    every other, soft-masked or not: with next-token, all but those of the first token of a window.
    A token of several bases tells all of them. An overlapping word tells one, what it shares with
    the word before is known; the shorter words at the end of a window tell none and do not count.

    Args:
        model: in evaluation mode.
        tokenizer: the run's.
        config: the run's; gives window length, objective and precision.
        store: the genome.
        split: name of the split.
        windows: look at this many, spread evenly, instead of all.
        progress: told of the tokens that were read.

    Returns:
        Bits per base, and the number of bases that counted.
    """
    objective = TASKS[config.objective.name](config.objective, tokenizer)
    device = next(model.parameters()).device
    low = uses_bfloat16(config.training.precision, device)
    generator = torch.Generator().manual_seed(0)
    told = torch.from_numpy(tokenizer.told()).to(device)
    nats, bases, read = 0.0, 0, 0
    for batch in _tiles(tokenizer, config.data.length, store, split=split, windows=windows):
        here = batch.each(lambda tensor: tensor.to(device))
        inputs, targets, _ = objective.prepare_held_out(here, generator)
        bases_BL = told[targets.clamp(min=0)].masked_fill(targets == IGNORED, 0)
        targets = targets.masked_fill(bases_BL == 0, IGNORED)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            logits, _ = model(inputs)
        nats += float(token_loss(logits, targets)) * int((targets != IGNORED).sum())
        bases, read = bases + int(bases_BL.sum()), read + inputs.numel()
        if progress is not None:
            progress.update(read)
    return nats / max(bases, 1) / math.log(2), bases


def _tiles(
    tokenizer: Tokenizer, length: int, store: GenomeStore, *, split: str, windows: int | None
) -> Iterator[Batch]:
    """Batches of windows that tile a split, or of `windows` of them, spread evenly."""
    longest = max(len(interval) for interval in store.splits[split])
    bases = min(window_bases(tokenizer, length, store, split=split), longest)
    sampler = TiledSampler(store, split=split, length=bases, keep_partial=True)
    dataset = WindowDataset(store, tokenizer, sampler, seed=0)
    most_tokens = min(_MOST_TOKENS, _MOST_LOGITS // tokenizer.vocab_size)
    batch_size = max(1, min(_MOST_WINDOWS, most_tokens // min(length, bases)))
    if windows is None or windows >= len(dataset):
        yield from make_loader(dataset, batch_size=batch_size)
        return
    chosen = iter(i * len(dataset) // windows for i in range(windows))
    while some := list(itertools.islice(chosen, batch_size)):
        yield dataset.rows(some)
