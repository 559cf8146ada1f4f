"""What is said of the choice of a backend."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from dnassm.kernels.backends import LOGGER, Backends, Elsewhere
from dnassm.kernels.selective_scan.arguments import Gradients, Scan
from dnassm.kernels.selective_scan.cases import Case


class _Fake:
    PRIORITY = 1

    def __init__(self, reason: str | None) -> None:
        self.reason = reason

    def supports(self, arguments: Any) -> str | None:
        return self.reason


def chosen(caplog: pytest.LogCaptureFixture, **reasons: str | None) -> list[tuple[int, str]]:
    backends = Backends("dnassm.kernels.some_op")
    backends._modules = {name: _Fake(reason) for name, reason in reasons.items()}
    inputs = Case().inputs(torch.float32)
    given = [inputs.get(name) for name in Scan.__dataclass_fields__ if name in Gradients._fields]
    asked = Scan(*given, None, True, False, False)
    caplog.set_level(logging.INFO, LOGGER.name)
    for _ in range(3):
        backends.choose("auto", asked)
        backends.choose(next(iter(reversed(reasons))), asked)
    return [(record.levelno, record.getMessage()) for record in caplog.records]


def test_the_choice_is_said_once_with_the_reasons(caplog):
    said = chosen(caplog, quick=Elsewhere("for GPUs"), plain=None, slow=None)
    assert said == [(logging.INFO, "some_op on cpu: backend plain (quick: for GPUs)")]


def test_a_choice_without_obstacles_is_said_plainly(caplog):
    assert chosen(caplog, quick=None) == [(logging.INFO, "some_op on cpu: backend quick")]


def test_a_fall_back_that_surprises_is_a_warning(caplog):
    said = chosen(caplog, quick=Elsewhere("for GPUs"), cpu="no compiler package", plain=None)
    message = "some_op on cpu: backend plain (quick: for GPUs; cpu: no compiler package)"
    assert said == [(logging.WARNING, message)]
