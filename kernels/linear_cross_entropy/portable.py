"""The loss in plain torch, for any device: logits of some tokens at a time, never of all.

The backward computes them again. Products of 16-bit numbers on a GPU go through its matrix units
with float32 sums; elsewhere both factors are widened first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dnassm.kernels.linear_cross_entropy.arguments import (
    Gradients,
    Loss,
    largest,
    of_parameters,
)

PRIORITY = 10

# Logits of one chunk, and tokens at most. On CPU they share the cache of a core with the hidden.
_CHUNK = {"cpu": 1 << 16, "cuda": 1 << 25}
_TOKENS = {"cpu": 1 << 14, "cuda": 1 << 18}


def supports(call: Loss) -> str | None:
    """Runs everywhere."""
    return None


def forward(call: Loss) -> tuple[Tensor, Tensor]:
    """Compute the loss of every token and its log of the sum of exp, both (...), `call.inner`."""
    work = _Work(call)
    losses = torch.empty(call.targets.shape, dtype=call.inner, device=call.hidden.device)
    lse = torch.empty_like(losses)
    for tokens in work.chunks():
        logits = work.logits(tokens)
        found = torch.logsumexp(logits, 1)
        targets, counted = work.wanted(tokens)
        wanted = logits.gather(1, targets).squeeze(1)
        if call.smoothing:
            wanted = torch.lerp(wanted, logits.mean(1), call.smoothing)
        wanted.masked_fill_(work.targets[tokens] != targets.squeeze(1), torch.nan)
        losses.view(-1)[tokens] = torch.where(counted, found - wanted, 0.0)
        lse.view(-1)[tokens] = found
    return losses, lse


def backward(call: Loss, lse: Tensor, dlosses: Tensor) -> Gradients:
    """Gradients of every input from those of the losses."""
    work = _Work(call)
    dhidden = torch.empty(call.hidden.shape, dtype=call.hidden.dtype, device=call.hidden.device)
    of_rows = dhidden.view(-1, call.width)
    dweight = torch.zeros(call.weight.shape, dtype=call.inner, device=dhidden.device)
    dbias = dweight.new_zeros(call.vocabulary)
    lse, unit = lse.reshape(-1), largest(dlosses)
    g = dlosses.reshape(-1) / unit
    for tokens in work.chunks():
        targets, counted = work.wanted(tokens)
        found = work.logits(tokens).sub_(lse[tokens].unsqueeze(1)).exp_()
        if call.smoothing:
            found -= call.smoothing / call.vocabulary
        found.scatter_(1, targets, found.gather(1, targets) - (1 - call.smoothing))
        found *= torch.where(counted, g[tokens], 0.0).unsqueeze(1)
        dbias += found.sum(0)
        given = found.to(work.factor)
        of_rows[tokens] = work.product(given, work.weight).mul_(unit)
        dweight += work.product(given.t(), work.hidden[tokens])
    return Gradients(dhidden, *of_parameters(call, dweight * unit, dbias * unit))


class _Work:
    """One call, tokens (T, D) at a time."""

    def __init__(self, call: Loss) -> None:
        self.call = call
        self.hidden = call.rows
        self.targets = call.targets.reshape(-1)
        narrow = call.hidden.is_cuda and call.hidden.dtype in (torch.bfloat16, torch.float16)
        self.factor = call.hidden.dtype if narrow else call.inner
        """Dtype of the factors of a product."""
        self.weight = call.weight.to(self.factor)
        self.bias = None if call.bias is None else call.bias.to(call.inner)

    def chunks(self) -> Iterator[slice]:
        """Tokens that are computed together."""
        kind = self.hidden.device.type
        numbers, most = _CHUNK.get(kind, _CHUNK["cuda"]), _TOKENS.get(kind, _TOKENS["cuda"])
        count, step = self.hidden.shape[0], max(1, min(most, numbers // self.call.vocabulary))
        for begin in range(0, count, step):
            yield slice(begin, min(begin + step, count))

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """The matrix product, summed in `call.inner`."""
        if self.factor == self.call.inner:
            return left.to(self.factor) @ right.to(self.factor)
        return torch.mm(left, right, out_dtype=torch.float32)

    def logits(self, tokens: slice) -> Tensor:
        """(tokens, V)."""
        logits = self.product(self.hidden[tokens], self.weight.t())
        return logits if self.bias is None else logits.add_(self.bias)

    def wanted(self, tokens: slice) -> tuple[Tensor, Tensor]:
        """Targets (tokens, 1), some entry where there is none, and which tokens (tokens,) count."""
        targets = self.targets[tokens]
        entry = targets.clamp(0, self.call.vocabulary - 1)
        return entry.unsqueeze(1), targets != self.call.ignore_index
