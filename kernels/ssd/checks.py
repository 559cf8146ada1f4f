"""The SSD as the laws of every op see it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.laws import SHORT, Bound, Subject
from dnassm.kernels.ssd import BACKENDS, ssd, ssd_step
from dnassm.kernels.ssd.arguments import Gradients, Ssd
from dnassm.kernels.ssd.cases import LONG, LONG_MEMORY, TOLERANCES, Case

_STATES, _WIDEST = 16, 64


def _call(inputs: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {**inputs, **options, "return_state": True}
    y, state = ssd(**given)
    return y, state


def _step(inputs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {**inputs}
    return ssd_step(**given, state=state)


def _arguments(inputs: Mapping[str, Tensor]) -> Ssd:
    given: dict[str, Any] = {name: inputs.get(name) for name in Gradients._fields}
    options: dict[str, Any] = {"dt_softplus": True, "dt_min": 0.0, "dt_max": math.inf}
    return Ssd(**given, **options, cu_seqlens=None, reverse=False, chunk=None)


def _inputs(dtype: torch.dtype, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    width = min(_WIDEST, max(1, channels // 4))
    case = Case(
        batch=batch,
        length=length,
        heads=channels // width,
        width=width,
        groups=2,
        states=_STATES,
    )
    return case.inputs(dtype)


def _bound(dtype: torch.dtype, length: int) -> Bound:
    """As in cases; beyond its length rounding errors of wide numbers add up as random signs do."""
    stated = TOLERANCES[dtype]
    room = max(1.0, length / SHORT) ** 0.5 if dtype.itemsize >= 4 else 1.0
    return Bound(stated.rms, stated.worst, stated.why).grown(room)


def _memory(length: int) -> Bound:
    """As in cases; every chunk rounds in one direction, so the error grows with L."""
    stated = Bound(LONG_MEMORY.rms, LONG_MEMORY.worst, LONG_MEMORY.why)
    return stated.grown(max(1.0, length / SHORT))


def _remembered(length: int, case: Case) -> dict[str, Tensor]:
    return dataclasses.replace(case, length=length).inputs(torch.float32)


SUBJECT = Subject(
    backends=BACKENDS,
    call=_call,
    step=_step,
    arguments=_arguments,
    inputs=_inputs,
    along=("x", "dt", "B", "C", "z"),
    shared=("A", "D", "dt_bias"),
    bound=_bound,
    remembered={name: functools.partial(_remembered, case=case) for name, case in LONG.items()},
    memory=_memory,
)
