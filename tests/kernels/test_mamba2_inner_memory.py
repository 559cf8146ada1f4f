"""What the Mamba-2 block takes on a GPU, counted without one: over tensors that have no data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dnassm.kernels.causal_conv1d import arguments as conv
from dnassm.kernels.mamba2_inner import arguments, fused
from dnassm.kernels.mamba2_inner.arguments import KEEP, STATES, Block, States
from dnassm.kernels.norm import arguments as norm
from dnassm.kernels.ssd import arguments as ssd

GIB = 1 << 30


def like(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.new_empty(tensor.shape)


# What the backends of a GPU allocate; sums of programs, below 50 MB, are left out


class Convolution:
    def forward(self, call):
        return call.result(), call.x.new_empty(call.state_shape)

    def backward(self, call, dy, dfinal):
        given = (call.weight, call.bias, call.initial_state)
        return conv.Gradients(call.result(), *map(like, given))


class GatedNorm:
    def forward(self, call):
        return like(call.x), None

    def backward(self, call, dy, dtotal, wanted, into):
        return norm.Gradients(into.x, None, into.gate, like(call.weight), None)


class StateSpace:
    """A state per 1024 positions is kept; the backward has two per 64 in bf16, in equal slabs."""

    def _marks(self, call):
        segments = call.x.shape[0] * -(-call.x.shape[1] // 1024)
        return call.A.new_empty(segments, *call.state_shape[1:])

    def forward(self, call):
        return like(call.x), call.A.new_empty(call.state_shape), self._marks(call)

    def backward(self, call, marks, dy, dfinal, into):
        segments, states = len(marks), 2 * 16 * marks[0].numel()
        slabs = -(-segments // ((512 << 19) // states))
        own = (like(marks), call.x.new_empty(-(-segments // slabs) * states))
        given = (call.A, call.D, call.dt_bias, call.initial_state)
        dA, dD, dbias, dstate = map(like, given)
        del own
        return ssd.Gradients(into.x, into.dt, dA, into.B, into.C, dD, None, dbias, dstate)


class Only:
    def __init__(self, backend) -> None:
        self.backend = backend

    def choose(self, name, call):
        return self.backend


@pytest.fixture(autouse=True)
def _of_a_gpu(monkeypatch):
    monkeypatch.setattr(fused, "CONV", Only(Convolution()))
    monkeypatch.setattr(fused, "NORM", Only(GatedNorm()))
    monkeypatch.setattr(fused, "SSD", Only(StateSpace()))


def block(batch: int, width: int, length: int, keep: tuple[str, ...]) -> Block:
    """As the mixer calls it, bf16 projections, N 128."""
    inner, heads = 2 * width, 2 * width // 64
    convolved = inner + 2 * 128

    def half(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    def wide(*shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    x, in_weight = half(batch, length, width), half(inner + convolved + heads, width)
    learned = (wide(convolved, 4), wide(heads), wide(inner), half(width, inner))
    biases = (wide(convolved), wide(heads), wide(heads))
    options = (None, None, None, 1, 0.0, math.inf, 1e-5, False, (STATES, *keep), "auto")
    return Block(x, in_weight, *learned, *biases, *options)


def peak(counter: type, batch: int, width: int, length: int, keep: tuple[str, ...]) -> float:
    """GiB at the worst moment of forward and backward: x, y, their gradients, all else."""
    with counter() as counted:
        call = block(batch, width, length, keep)
        forward = fused.Forward(call)
        forward.run()
        y, kept = forward.y, forward.kept
        del forward
        dy = torch.empty_like(y)
        conv_shape, ssm_shape = call.state_shapes
        ends = States(call.x.new_empty(conv_shape), call.A.new_empty(ssm_shape))
        fused.Backward(call, kept, dy, ends).run()
    return counted.most / GIB


BOTH = ("projected", "scan")


@pytest.mark.parametrize(
    ("keep", "mib", "want"),
    [
        (BOTH, 128, 6.82),
        (BOTH, 256, 7.35),
        (BOTH, 512, 8.42),
        (BOTH, 1024, 10.56),
        (("convolved", "scan", "normed"), 256, 7.96),
        (("scan",), 256, 5.46),
        ((), 256, 4.27),
        (tuple(KEEP), 256, 9.86),
    ],
)
def test_a_million_positions_take_what_the_readme_says(counter, keep, mib, want, monkeypatch):
    monkeypatch.setitem(arguments.PIECE_BYTES, "cuda", mib << 20)
    assert peak(counter, 1, 256, 1 << 20, keep) == pytest.approx(want, abs=0.006)


def test_the_default_fits_in_the_8_gib_that_were_asked_for(counter):
    x = torch.empty(1, 1 << 20, 256, dtype=torch.bfloat16, device="meta")
    keep = arguments.default_keep(x, 512, 768)
    assert keep == BOTH
    assert peak(counter, 1, 256, 1 << 20, keep) < 8


def test_a_small_call_keeps_all():
    x = torch.empty(8, 1 << 13, 768, dtype=torch.bfloat16, device="meta")
    assert arguments.default_keep(x, 1536, 1792) == tuple(KEEP)


@pytest.mark.parametrize(("keep", "want"), [(BOTH, 2.09), (tuple(KEEP), 2.49)])
def test_a_batch_of_wide_rows_takes_what_the_readme_says(counter, keep, want):
    assert peak(counter, 8, 768, 1 << 13, keep) == pytest.approx(want, abs=0.006)
