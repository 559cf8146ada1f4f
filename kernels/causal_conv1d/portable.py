"""Causal convolution in plain torch, for any device: one multiply-add per tap, no transposes.

Time is cut into chunks that fit a cache; the backward computes the sums before SiLU again. Packed
sequences are unpacked into one row with the K-1 inputs of the state before each of them: then no
sequence reaches another, and the gradients of the states lie beside those of the inputs.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.kernels.causal_conv1d.arguments import Conv, Gradients, of_parameters

PRIORITY = 10

# Numbers of one chunk. On CPU the few buffers of a chunk share the cache of a core.
_CHUNK = {"cpu": 1 << 17, "cuda": 1 << 26}


def supports(call: Conv) -> str | None:
    """Runs everywhere."""
    return None


def forward(call: Conv) -> tuple[Tensor, Tensor]:
    """Compute y and the final state; shapes as in `causal_conv1d`. Sums are `call.inner`."""
    if call.cu_seqlens is None:
        return _Rows(call).forward()
    layout = _Layout(call, call.cu_seqlens)
    y, _ = _Rows(layout.unpacked(call)).forward()
    state = layout.inputs(call)[0, layout.final]
    return call.placed(y[:, layout.positions].to(call.x.dtype)), state.to(call.x.dtype)


def backward(call: Conv, dy: Tensor, dfinal: Tensor) -> Gradients:
    """Gradients of every input."""
    if call.cu_seqlens is None:
        return _Rows(call).backward(dy, dfinal)
    layout = _Layout(call, call.cu_seqlens)
    apart = dy.new_zeros(1, layout.length, dy.shape[2])
    apart[:, layout.positions] = dy
    rows = _Rows(layout.unpacked(call))
    found = rows.backward(apart, dfinal.new_zeros(1, call.width - 1, dy.shape[2]))
    every = found.x[0].to(call.inner)
    # Two sequences never share a position, and the K-1 last of one are different positions.
    every[layout.final] += dfinal.to(call.inner)
    state = call.initial_state
    return Gradients(
        call.placed(every[layout.positions].unsqueeze(0).to(call.x.dtype)),
        found.weight,
        found.bias,
        None if state is None else every[layout.initial].to(state.dtype),
    )


class _Layout:
    """Where packed sequences lie on a row on which K-1 inputs of a state precede each of them."""

    def __init__(self, call: Conv, cu: Tensor) -> None:
        edges, past = cu.long(), call.width - 1
        starts, ends = edges[:-1], edges[1:]
        position = torch.arange(call.x.shape[1], device=cu.device)
        sequence = torch.searchsorted(ends, position, right=True)
        slots = torch.arange(past, device=cu.device)
        before = past * torch.arange(call.sequences, device=cu.device)  # of earlier states
        walked = starts[sequence] + ends[sequence] - 1 - position if call.reverse else position
        self.length = call.x.shape[1] + past * call.sequences
        self.positions = walked + before[sequence] + past
        """(L,): of position t of the packed row."""
        self.initial = (starts + before).unsqueeze(1) + slots
        """(S, K-1): of the initial states."""
        self.final = (ends + before).unsqueeze(1) + slots
        """(S, K-1): of the last K-1 inputs of each sequence."""

    def inputs(self, call: Conv) -> Tensor:
        """(1, length, D): states and inputs; wide enough for both dtypes."""
        state = call.initial_state
        dtype = call.x.dtype if state is None else torch.promote_types(call.x.dtype, state.dtype)
        every = call.x.new_zeros(1, self.length, call.x.shape[2], dtype=dtype)
        every[:, self.positions] = call.x.to(dtype)
        if state is not None:
            every[0, self.initial] = state.to(dtype)
        return every

    def unpacked(self, call: Conv) -> Conv:
        """The convolution over that row: one sequence, without a state."""
        inputs = self.inputs(call).to(call.inner)
        return dataclasses.replace(
            call, x=inputs, initial_state=None, cu_seqlens=None, reverse=False, into=None
        )


class _Rows:
    """The convolution where every row of the batch is one sequence, in the order of the walk."""

    def __init__(self, call: Conv) -> None:
        self.call = call
        self.taps = call.weight.to(call.inner).unbind(1)
        self.batch, self.length, self.channels = call.x.shape
        self.past = call.width - 1
        numbers = _CHUNK.get(call.x.device.type, _CHUNK["cuda"])
        self.steps = max(1, numbers // (self.batch * self.channels))

    def _state(self) -> Tensor:
        given = self.call.initial_state
        if given is not None:
            return given.to(self.call.inner)
        shape = (self.batch, self.past, self.channels)
        return self.call.x.new_zeros(shape, dtype=self.call.inner)

    def _walked(self, tensor: Tensor, begin: int, end: int) -> Tensor:
        """Positions [begin, end) of the walk, which reads `tensor` from its end if reversed."""
        if self.call.reverse:
            return tensor[:, self.length - end : self.length - begin].flip(1)
        return tensor[:, begin:end]

    def _place(self, tensor: Tensor, begin: int, end: int, values: Tensor) -> None:
        if self.call.reverse:
            tensor[:, self.length - end : self.length - begin] = values.flip(1)
        else:
            tensor[:, begin:end] = values

    def _inputs(self, begin: int, end: int) -> Tensor:
        """Inputs [begin - (K-1), end) of the walk, those before 0 from the state."""
        first = begin - self.past
        x = self._walked(self.call.x, max(first, 0), end).to(self.call.inner)
        return x if first >= 0 else torch.cat([self._state()[:, self.past + first :], x], dim=1)

    def _sums(self, inputs: Tensor, count: int) -> Tensor:
        """Before SiLU, at the last `count` positions of `inputs`."""
        bias = self.call.bias
        if bias is None:
            sums = inputs[:, :count] * self.taps[0]
        else:
            sums = torch.addcmul(bias.to(self.call.inner), inputs[:, :count], self.taps[0])
        for k, tap in enumerate(self.taps[1:], start=1):
            sums.addcmul_(inputs[:, k : k + count], tap)
        return sums

    def forward(self) -> tuple[Tensor, Tensor]:
        y = self.call.result()
        for begin in range(0, self.length, self.steps):
            end = min(begin + self.steps, self.length)
            sums = self._sums(self._inputs(begin, end), end - begin)
            self._place(y, begin, end, F.silu(sums, inplace=True) if self.call.silu else sums)
        last = self._inputs(self.length, self.length)
        state = torch.empty_like(last, dtype=y.dtype, memory_format=torch.contiguous_format)
        return y, state.copy_(last)  # a view would keep (B, L, D) alive

    def _before_silu(self, inputs: Tensor, dy: Tensor) -> Tensor:
        """Gradient of the sums from that of y, at the positions of dy."""
        if not self.call.silu:
            return dy
        sums = self._sums(inputs, dy.shape[1])
        gradient: Tensor = torch.ops.aten.silu_backward(dy, sums)
        return gradient

    def _spread(self, gradient: Tensor, count: int) -> Tensor:
        """Gradient of `count` inputs from that of the sums at their positions and K-1 later."""
        past = self.past
        found = gradient[:, past : past + count] * self.taps[0]
        for k, tap in enumerate(self.taps[1:], start=1):
            found.addcmul_(gradient[:, past - k : past - k + count], tap)
        return found

    def backward(self, dy: Tensor, dfinal: Tensor) -> Gradients:
        """Chunk by chunk; the K-1 positions behind a chunk are computed twice."""
        call, past = self.call, self.past
        dx = call.result()
        partial = []
        at_start = dy.new_empty(0)
        after = torch.zeros_like(self._state())
        for begin in range(0, self.length, self.steps):
            end = min(begin + self.steps, self.length)
            seen, count = min(end + past, self.length), end - begin
            inputs = self._inputs(begin, seen)
            gradient = self._before_silu(inputs, self._walked(dy, begin, seen).to(call.inner))
            partial.append(self._products(inputs, gradient[:, :count]))
            padded = torch.cat([gradient, after[:, : past - (seen - end)]], dim=1)
            if begin == 0:
                at_start = padded[:, :past]
            found = self._spread(padded, count)
            met = max(begin, self.length - past)  # from here on inputs are in the final state
            if met < end:
                slots = slice(met - self.length + past, end - self.length + past)
                found[:, met - begin :] += dfinal[:, slots].to(call.inner)
            self._place(dx, begin, end, found)
        dinitial = self._spread(torch.cat([after, at_start], dim=1), past)
        if self.length < past:
            dinitial[:, self.length :] += dfinal[:, : past - self.length].to(call.inner)
        given = call.initial_state
        return Gradients(
            dx,
            *of_parameters(call, torch.stack(partial).sum(0)),
            None if given is None else dinitial.to(given.dtype),
        )

    def _products(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        """(K+1, D): what these positions add to the gradients of the taps and of the bias."""
        count = gradient.shape[1]
        rows = [(gradient * inputs[:, k : k + count]).sum((0, 1)) for k in range(self.past + 1)]
        return torch.stack([*rows, gradient.sum((0, 1))])
