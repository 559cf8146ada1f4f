"""The loss as the laws of every op see it: a sum that is carried from window to window.

The state is the loss of a sequence so far and what was counted of it; y the loss of each token,
which the laws want as wide as x.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.laws import SHORT, Bound, Subject
from dnassm.kernels.linear_cross_entropy import linear_cross_entropy
from dnassm.kernels.linear_cross_entropy.arguments import Loss
from dnassm.kernels.linear_cross_entropy.cases import TOLERANCES, Case
from dnassm.kernels.linear_cross_entropy.op import BACKENDS

_VOCABULARY = 8
_IGNORED = -1
"""As a number of 16 bits has it exactly."""


def _call(
    inputs: Mapping[str, Tensor],
    *,
    backend: str = "auto",
    cu_seqlens: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """On reverse nothing depends; targets come as floating numbers, like all that is given."""
    x, targets = inputs["x"], inputs["targets"].long()
    losses, _count = linear_cross_entropy(
        x,
        inputs["weight"],
        targets,
        bias=inputs["bias"],
        ignore_index=_IGNORED,
        reduction="none",
        backend=backend,
    )
    each = torch.stack([losses, (targets != _IGNORED).to(losses.dtype)], 2)
    if cu_seqlens is None:
        sums = each.sum(1)
    else:
        sums = torch.stack([part.sum(0) for part in each[0].split(cu_seqlens.diff().tolist())])
    return losses.unsqueeze(2).expand(x.shape), inputs["initial_state"] + sums


def _step(inputs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    now = {n: inputs[n].unsqueeze(1) for n in ("x", "targets")}
    y, after = _call({**inputs, **now, "initial_state": state})
    return y.squeeze(1), after


def _arguments(inputs: Mapping[str, Tensor]) -> Loss:
    return Loss(
        inputs["x"], inputs["weight"], inputs["bias"], inputs["targets"], _IGNORED, smoothing=0.0
    )


def _inputs(dtype: torch.dtype, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    case = Case(leading=(batch, length), width=channels, vocabulary=_VOCABULARY, bias=True)
    found = case.inputs(dtype)
    return {
        "x": found["hidden"],
        "weight": found["weight"],
        "bias": found["bias"],
        "targets": case.options()["targets"].clamp(min=_IGNORED).to(dtype),
        "initial_state": torch.zeros(batch, 2, dtype=torch.promote_types(dtype, torch.float32)),
    }


def _bound(dtype: torch.dtype, length: int) -> Bound:
    """As in cases; beyond the length of theirs sums over tokens grow as random signs do."""
    stated = TOLERANCES[dtype]
    room = max(1.0, length / SHORT) ** 0.5 if dtype.itemsize >= 4 else 1.0
    return Bound(stated.rms, stated.worst, stated.why).grown(room)


SUBJECT = Subject(
    backends=BACKENDS,
    call=_call,
    step=_step,
    arguments=_arguments,
    inputs=_inputs,
    along=("x", "targets"),
    shared=("weight", "bias"),
    bound=_bound,
)
