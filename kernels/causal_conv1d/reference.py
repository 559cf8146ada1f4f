"""The definition of the causal convolution: a float64 loop over positions and taps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dnassm.kernels.causal_conv1d.arguments import Conv, Gradients

PRIORITY = 0


def supports(call: Conv) -> str | None:
    """Runs everywhere."""
    return None


def forward(call: Conv) -> tuple[Tensor, Tensor]:
    """Compute y and the final state in float64; shapes as in `causal_conv1d`."""
    y = torch.empty_like(call.x, dtype=torch.float64, memory_format=torch.contiguous_format)
    final = y.new_empty(call.state_shape)
    for rows, positions, states in _sequences(call):
        inputs = _inputs(call, rows, positions, states)
        for t in range(positions.stop - positions.start):
            value = _value(call, inputs, t)
            y[rows, _position(call, positions, t)] = (
                value * torch.sigmoid(value) if call.silu else value
            )
        final[states] = inputs[:, inputs.shape[1] - (call.width - 1) :]
    return call.placed(y.to(call.x.dtype)), final.to(call.x.dtype)


def backward(call: Conv, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of every input, by the chain rule at one position after the other."""
    dx = torch.empty_like(call.x, dtype=torch.float64, memory_format=torch.contiguous_format)
    dinitial = dx.new_empty(call.state_shape)
    dweight = torch.zeros_like(call.weight, dtype=torch.float64)
    dbias = dweight.new_zeros(call.weight.shape[0])
    weight = call.weight.double()
    for rows, positions, states in _sequences(call):
        inputs = _inputs(call, rows, positions, states)
        gradient = torch.zeros_like(inputs)
        past = call.width - 1
        gradient[:, inputs.shape[1] - past :] += dfinal[states].double()
        for t in range(positions.stop - positions.start):
            g = dy[rows, _position(call, positions, t)].double()
            if call.silu:
                value = _value(call, inputs, t)
                s = torch.sigmoid(value)
                g = g * s * (1 + value * (1 - s))
            dbias += g.sum(0)
            for k in range(call.width):
                dweight[:, k] += (g * inputs[:, t + k]).sum(0)
                gradient[:, t + k] += g * weight[:, k]
        dinitial[states] = gradient[:, :past]
        walked = gradient[:, past:]
        dx[rows, positions] = walked.flip(1) if call.reverse else walked
    return Gradients(
        call.placed(dx.to(call.x.dtype)),
        dweight.to(call.weight.dtype),
        None if call.bias is None else dbias.to(call.bias.dtype),
        None if call.initial_state is None else dinitial.to(call.initial_state.dtype),
    )


def _sequences(call: Conv) -> Iterator[tuple[slice, slice, slice]]:
    """Rows of the batch, positions and rows of the states of what is walked together."""
    everything = slice(0, call.x.shape[0])
    if call.cu_seqlens is None:
        yield everything, slice(0, call.x.shape[1]), everything
        return
    edges = call.cu_seqlens.tolist()
    for s in range(call.sequences):
        yield everything, slice(edges[s], edges[s + 1]), slice(s, s + 1)


def _inputs(call: Conv, rows: slice, positions: slice, states: slice) -> Tensor:
    """(rows, K-1 + length, D): the inputs in the order of the walk, behind the initial state."""
    x = call.x[rows, positions].double()
    if call.initial_state is None:
        past = x.new_zeros(x.shape[0], call.width - 1, x.shape[2])
    else:
        past = call.initial_state[states].double()
    return torch.cat([past, x.flip(1) if call.reverse else x], dim=1)


def _position(call: Conv, positions: slice, t: int) -> int:
    """Where step t of the walk stands."""
    found: int = positions.stop - 1 - t if call.reverse else positions.start + t
    return found


def _value(call: Conv, inputs: Tensor, t: int) -> Tensor:
    """(rows, D): the sum over the taps at step t of the walk."""
    weight = call.weight.double()
    value = torch.zeros_like(inputs[:, 0])
    if call.bias is not None:
        value += call.bias.double()
    for k in range(call.width):
        value += weight[:, k] * inputs[:, t + k]
    return value
