"""The causal convolution as the laws of every op see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.causal_conv1d import BACKENDS, causal_conv1d, causal_conv1d_step
from dnassm.kernels.causal_conv1d.arguments import Conv
from dnassm.kernels.causal_conv1d.cases import TOLERANCES, Case
from dnassm.kernels.laws import SHORT, Bound, Subject


def _call(inputs: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {**inputs, **options, "silu": True, "return_state": True}
    y, state = causal_conv1d(**given)
    return y, state


def _step(inputs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {**inputs}
    return causal_conv1d_step(**given, state=state, silu=True)


def _arguments(inputs: Mapping[str, Tensor]) -> Conv:
    given: dict[str, Any] = dict(inputs)
    return Conv(**given, cu_seqlens=None, silu=True, reverse=False)


def _inputs(dtype: torch.dtype, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    return Case(batch=batch, length=length, channels=channels).inputs(dtype)


def _bound(dtype: torch.dtype, length: int) -> Bound:
    """As in cases; beyond its length the sums for weight and bias grow as random signs do."""
    stated = TOLERANCES[dtype]
    room = max(1.0, length / SHORT) ** 0.5 if dtype.itemsize >= 4 else 1.0
    return Bound(stated.rms, stated.worst, stated.why).grown(room)


SUBJECT = Subject(
    backends=BACKENDS,
    call=_call,
    step=_step,
    arguments=_arguments,
    inputs=_inputs,
    along=("x",),
    shared=("weight", "bias"),
    bound=_bound,
)
