"""The definition of the loss: float64, one line per equation, and the chain rule by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from dnassm.kernels.linear_cross_entropy.arguments import Gradients, Loss, of_parameters

PRIORITY = 0


def supports(call: Loss) -> str | None:
    """Runs everywhere."""
    return None


def forward(call: Loss) -> tuple[Tensor, Tensor]:
    """Compute the loss of every token and its log of the sum of exp, both (...), `call.inner`."""
    logits, wanted, counted = _parts(call)
    lse = logits.exp().sum(-1).log()
    losses = torch.where(counted, lse - (wanted * logits).sum(-1), 0.0)
    shape = call.targets.shape
    return losses.to(call.inner).view(shape), lse.to(call.inner).view(shape)


def backward(call: Loss, lse: Tensor, dlosses: Tensor) -> Gradients:
    """Gradients of every input from those of the losses."""
    logits, wanted, counted = _parts(call)
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    g = torch.where(counted, dlosses.reshape(-1).double(), 0.0)
    dlogits = (p - wanted) * g.unsqueeze(1)
    dhidden = dlogits @ call.weight.double()
    return Gradients(
        dhidden.to(call.hidden.dtype).view(call.hidden.shape),
        *of_parameters(call, dlogits.t() @ call.rows.double(), dlogits.sum(0)),
    )


def _parts(call: Loss) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (T, V), the distribution wanted (T, V), and which tokens (T,) count."""
    logits = call.rows.double() @ call.weight.double().t()
    if call.bias is not None:
        logits = logits + call.bias.double()
    targets = call.targets.reshape(-1)
    counted = targets != call.ignore_index
    one = torch.nn.functional.one_hot(targets.where(counted, 0), call.vocabulary).double()
    wanted = (1 - call.smoothing) * one + call.smoothing / call.vocabulary
    return logits, wanted, counted
