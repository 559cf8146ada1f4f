"""The norms as the laws of every op see them.

A norm has no past: packed or reversed, each position is normed by itself, and the state that the
laws carry from call to call comes back as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.laws import SHORT, Bound, Subject
from dnassm.kernels.norm import add_norm
from dnassm.kernels.norm.arguments import Norm
from dnassm.kernels.norm.cases import TOLERANCES, Case
from dnassm.kernels.norm.op import BACKENDS


def _call(
    inputs: Mapping[str, Tensor], *, backend: str = "auto", **_: Any
) -> tuple[Tensor, Tensor]:
    """Results are seen together, y + sum; of cu_seqlens and reverse nothing depends."""
    given: dict[str, Any] = dict(inputs)
    state: Tensor = given.pop("initial_state")
    y, total = add_norm(**given, backend=backend)
    return y + total, state * 1


def _step(inputs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    return _call({**inputs, "initial_state": state})


def _arguments(inputs: Mapping[str, Tensor]) -> Norm:
    x, residual = inputs["x"], inputs["residual"]
    return Norm(
        x,
        inputs["weight"],
        bias=None,
        residual=residual,
        gate=None,
        centred=False,
        eps=1e-5,
        groups=1,
        total_dtype=residual.dtype,
    )


def _inputs(dtype: torch.dtype, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    found = Case(shape=(batch, length, channels), residual=True).inputs(dtype)
    return {**found, "initial_state": torch.arange(1.0, batch + 1).unsqueeze(1).to(dtype)}


def _bound(dtype: torch.dtype, length: int) -> Bound:
    """As in cases; beyond the length of theirs the sum for the weight grows as random signs do."""
    stated = TOLERANCES[dtype]
    room = max(1.0, length / SHORT) ** 0.5 if dtype.itemsize >= 4 else 1.0
    return Bound(stated.rms, stated.worst, stated.why).grown(room)


SUBJECT = Subject(
    backends=BACKENDS,
    call=_call,
    step=_step,
    arguments=_arguments,
    inputs=_inputs,
    along=("x", "residual"),
    shared=("weight",),
    bound=_bound,
)
