"""A training step of a small Mamba on CPU, in tokens per second, beside Hugging Face transformers.

    python -m benchmarks.train_step [--out benchmarks/results/train_step.json]

d_model 128, 4 layers, L 1024: forward, next-token loss, backward, AdamW. The other model is
MambaForCausalLM of transformers without CUDA kernels, with the same weights: the script checks that
both give the same logits before it times them, in turns, within one run. transformers is no
dependency; without it only our own speed is measured, and the result says so. To install it aside:

    pip install --target /tmp/transformers transformers
    PYTHONPATH=/tmp/transformers python -m benchmarks.train_step
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import describe
from dnassm.artifact import write_json
from dnassm.config import ModelConfig
from dnassm.model import DNAModel

try:
    from transformers import MambaConfig, MambaForCausalLM
except ImportError:
    MambaForCausalLM = None

Logits = Callable[[Tensor], Tensor]


def their_name(name: str) -> str:
    """Name of one of our parameters in MambaForCausalLM."""
    name = name.replace("embedding.", "backbone.embeddings.").replace("blocks.", "backbone.layers.")
    if name == "norm.weight":
        return "backbone.norm_f.weight"
    for ours, theirs in (
        ("conv_weight", "conv1d.weight"),
        ("conv_bias", "conv1d.bias"),
        ("dt_bias", "dt_proj.bias"),
    ):
        name = name.replace(ours, theirs)
    return name


def transformers_model(model: DNAModel) -> nn.Module:
    """The same model in transformers, with our weights."""
    config = model.config
    other = MambaForCausalLM(
        MambaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=len(config.pattern),
            layer_norm_epsilon=1e-5,
            use_cache=False,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    theirs = other.state_dict()
    for name, parameter in model.named_parameters():
        theirs[their_name(name)].copy_(parameter.detach().view_as(theirs[their_name(name)]))
    other.load_state_dict(theirs)
    return other


def check_same(ours: Logits, theirs: Logits, tokens: Tensor) -> float:
    """Largest difference of the logits relative to the largest logit; raises when not the same."""
    with torch.no_grad():
        mine, other = ours(tokens), theirs(tokens)
    difference = ((mine - other).abs().max() / mine.abs().max()).item()
    if difference > 1e-4:
        raise RuntimeError(f"expected the same logits from both models, they differ: {difference}")
    return difference


def train_step(logits: Logits, optimizer: torch.optim.Optimizer, tokens: Tensor) -> float:
    """Seconds of one step."""
    begin = time.perf_counter()
    predicted = logits(tokens)[:, :-1]
    loss = F.cross_entropy(predicted.flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - begin


def race(batch: int, length: int, depth: int, rounds: int, ours_per_round: int) -> dict[str, Any]:
    """Tokens per second of both at one batch size; a round is one step of theirs, some of ours."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 4, (batch, length))
    model = DNAModel(ModelConfig(d_model=128, pattern="m" * depth))
    contenders: dict[str, tuple[nn.Module, Logits, int]] = {
        "dnassm": (model, lambda t: model(t)[0], ours_per_round)
    }
    row: dict[str, Any] = {"batch": batch, "length": length, "layers": depth}
    if MambaForCausalLM is not None:
        other = transformers_model(model)
        contenders["transformers"] = (other, lambda t: other(t).logits, 1)
        row["logits_differ_by"] = check_same(
            contenders["dnassm"][1], contenders["transformers"][1], tokens[:, :64]
        )
    times: dict[str, list[float]] = {name: [] for name in contenders}
    optimizers = {n: torch.optim.AdamW(m.parameters()) for n, (m, _, _) in contenders.items()}
    for turn in range(rounds + 1):
        for name, (_, logits, repeats) in contenders.items():
            taken = [train_step(logits, optimizers[name], tokens) for _ in range(repeats)]
            if turn:  # the first round warms up
                times[name] += taken
        print(f"batch {batch}, round {turn} of {rounds}", file=sys.stderr)
    for name, taken in times.items():
        row[f"{name}_step_s"] = round(statistics.median(taken), 4)
        row[f"{name}_tokens_per_s"] = round(batch * length / statistics.median(taken), 1)
        row[f"{name}_all_s"] = [round(value, 4) for value in taken]
    if "transformers" in times:
        row["times_faster"] = round(row["transformers_step_s"] / row["dnassm_step_s"], 1)
    return row


def main() -> None:
    """Measure, write or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file; stdout when missing")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-per-round", type=int, default=5)
    options = parser.parse_args()
    other = "not installed: only dnassm was measured"
    if MambaForCausalLM is not None:
        other = importlib.metadata.version("transformers")
    result = {
        "what": "training step (forward, backward, AdamW) of a Mamba, d_model 128; medians",
        **describe(),
        "transformers": other,
        "results": [
            race(batch, options.length, options.layers, options.rounds, options.ours_per_round)
            for batch in options.batches
        ],
    }
    if options.out is None:
        print(json.dumps(result, indent=2))
    else:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
