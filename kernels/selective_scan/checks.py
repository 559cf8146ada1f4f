"""The selective scan as the laws of every op see it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.laws import SHORT, Bound, Subject
from dnassm.kernels.selective_scan import BACKENDS, selective_scan, selective_scan_step
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cases import LONG, LONG_MEMORY, TOLERANCES, Case

_STATES = 16


def _call(inputs: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {**inputs, **options, "return_state": True}
    y, state = selective_scan(**given)
    return y, state


def _step(inputs: Mapping[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {**inputs}
    return selective_scan_step(**given, state=state)


def _arguments(inputs: Mapping[str, Tensor]) -> Scan:
    given: dict[str, Any] = {name: inputs.get(name) for name in Gradients._fields}
    return Scan(**given, cu_seqlens=None, dt_softplus=True, reverse=False, exact=False)


def _inputs(dtype: torch.dtype, batch: int, length: int, channels: int) -> dict[str, Tensor]:
    case = Case(batch=batch, length=length, channels=channels, groups=2, states=_STATES)
    return case.inputs(dtype)


def _bound(dtype: torch.dtype, length: int) -> Bound:
    """As in cases; beyond its length rounding errors of wide numbers add up as random signs do."""
    stated = TOLERANCES[dtype]
    room = max(1.0, length / SHORT) ** 0.5 if dtype.itemsize >= 4 else 1.0
    return Bound(stated.rms, stated.worst, stated.why).grown(room)


def _memory(length: int) -> Bound:
    """As in cases; every step rounds in one direction, so the error grows with L."""
    stated = Bound(LONG_MEMORY.rms, LONG_MEMORY.worst, LONG_MEMORY.why)
    return stated.grown(max(1.0, length / SHORT))


def _remembered(length: int, case: Case) -> dict[str, Tensor]:
    return dataclasses.replace(case, length=length, states=4).inputs(torch.float32)


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
