"""What must hold for every backend of every op, and how near it holds; `dnassm doctor` asks.

An op joins by a module ``checks`` in its folder with a `Subject`; nothing here knows an op.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnassm.kernels.backends import Arguments, Backends

Results = dict[str, Tensor]
"""Values (``y``, ``state``) and gradients (``dx``, ``dinitial_state`` ...) by name."""

SHORT = 4097
"""Longest L for which the reference, a loop, is the truth; tolerances are stated for it."""
STEPS = 256
"""Positions walked one by one."""
BATCH = 2


class Bound(NamedTuple):
    """Largest error of a tensor, relative to that tensor."""

    rms: float
    """Root mean square of the error over that of the tensor."""
    worst: float
    """Largest error over the largest element."""
    why: str
    wider: Mapping[str, float] = types.MappingProxyType({})
    """Tensors that are allowed so many times as much."""

    def grown(self, factor: float) -> Bound:
        """The bound times `factor`, as at a length at which errors have so much more room."""
        return self._replace(rms=self.rms * factor, worst=self.worst * factor)

    def of(self, tensor: str) -> Bound:
        """The bound of one tensor."""
        return self.grown(self.wider.get(tensor, 1.0))


SAME_BITS = Bound(0.0, 0.0, "the same bits")


class Error(NamedTuple):
    """How far a tensor is from another, relative to that one."""

    rms: float
    worst: float

    def within(self, bound: Bound) -> bool:
        """Whether both are (`Bound.of` the tensor); NaN is not."""
        return self.rms <= bound.rms and self.worst <= bound.worst


@dataclasses.dataclass(frozen=True)
class Subject:
    """An op as the laws see it.

    Its arguments are tensors by name; ``initial_state`` has one row per sequence.
    """

    backends: Backends
    call: Callable[..., Sequence[Tensor]]
    """(tensors by name, *, backend, cu_seqlens, reverse) -> y (B, L, D) and the final state."""
    step: Callable[[Mapping[str, Tensor], Tensor], tuple[Tensor, Tensor]]
    """(tensors of one position by name, state) -> y (B, D) and the next state."""
    arguments: Callable[[Mapping[str, Tensor]], Arguments]
    """Tensors by name -> what a backend is asked about."""
    inputs: Callable[[torch.dtype, int, int, int], dict[str, Tensor]]
    """(dtype, B, L, D) -> tensors by name, on the CPU."""
    along: tuple[str, ...]
    """Arguments with an axis of time, (B, L, ...)."""
    shared: tuple[str, ...]
    """Arguments that all rows share."""
    bound: Callable[[torch.dtype, int], Bound]
    """(dtype, L) -> how near values and gradients must be."""
    remembered: Mapping[str, Callable[[int], dict[str, Tensor]]] = dataclasses.field(
        default_factory=dict
    )
    """L -> float32 tensors with which what was at the start is still there at the end, by name."""
    memory: Callable[[int], Bound] | None = None
    """L -> the bound for these."""


class Probe:
    """One op in one dtype at one length on one device, and what several laws look at."""

    def __init__(
        self, subject: Subject, dtype: torch.dtype, length: int, channels: int, device: torch.device
    ) -> None:
        self.subject, self.dtype, self.length = subject, dtype, length
        self.channels, self.device = channels, device

    @functools.cached_property
    def inputs(self) -> dict[str, Tensor]:
        """Two rows of the length asked for."""
        return self.made(BATCH, self.length)

    def made(self, batch: int, length: int) -> dict[str, Tensor]:
        """Random arguments of that size."""
        found = self.subject.inputs(self.dtype, batch, min(length, SHORT), self.channels)
        return self.laid_out(found, length)

    def laid_out(self, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
        """The same on the device of the probe; what is shorter than `length` drawn out to it.

        Each position of a row is one of those given for that row, at random and in each tensor
        another: on a CPU a million positions take longer to draw than all kernels to run.
        """
        found = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        generator = torch.Generator(self.device).manual_seed(7)
        for name in self.subject.along:
            rows, given = found[name].shape[:2]
            if given < length:
                drawn = torch.randint(
                    given, (rows, length), generator=generator, device=self.device
                )
                drawn += given * torch.arange(rows, device=self.device)[:, None]
                positions = found[name].flatten(0, 1).index_select(0, drawn.flatten())
                found[name] = positions.unflatten(0, (rows, length))
        return found

    def reasons(self) -> dict[str, str | None]:
        """Backend -> None if it can run these arguments, or why not; the preferred first."""
        short, along = self.made(BATCH, 1), self.subject.along
        # Only sizes are looked at: one position stands for all.
        whole = {
            name: t.expand(BATCH, self.length, *t.shape[2:]) if name in along else t
            for name, t in short.items()
        }
        asked = self.subject.arguments(whole)
        return {n: module.supports(asked) for n, module in self.subject.backends.all().items()}

    @functools.cached_property
    def backend(self) -> str:
        """What ``"auto"`` chooses: the preferred one that can run."""
        return next(name for name, reason in self.reasons().items() if reason is None)

    def run(
        self, inputs: Mapping[str, Tensor], weights: Sequence[Tensor], **options: Any
    ) -> Results:
        """Values and gradients of one call of the backend that is checked."""
        return outcome(self.subject, inputs, weights, **{"backend": self.backend, **options})

    @functools.cached_property
    def weights(self) -> list[Tensor]:
        """Of the loss, for `inputs`."""
        return self.weights_for(self.inputs)

    def weights_for(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Random weights of a loss that sees every element of y and of the final state."""
        generator = torch.Generator(self.device).manual_seed(99)
        like = (inputs["x"], inputs["initial_state"])  # of the shapes and dtypes of the results
        return [
            torch.randn(t.shape, generator=generator, device=self.device).to(t.dtype) for t in like
        ]

    @functools.cached_property
    def whole(self) -> Results:
        """Values and gradients of one call on `inputs`."""
        return self.run(self.inputs, self.weights)

    @functools.cached_property
    def true(self) -> Results:
        """The same in float64."""
        return truth(self.subject, self.inputs, self.weights)

    def forget(self) -> None:
        """Let go of the tensors that were kept for several laws."""
        for name in ("inputs", "weights", "whole", "true"):
            self.__dict__.pop(name, None)


def outcome(
    subject: Subject, inputs: Mapping[str, Tensor], weights: Sequence[Tensor], **options: Any
) -> Results:
    """Values and gradients of one call; the loss goes through y and through the final state."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    results = subject.call(leaves, **options)
    return _differentiated(leaves, results, weights)


def _differentiated(
    leaves: Mapping[str, Tensor], results: Sequence[Tensor], weights: Sequence[Tensor]
) -> Results:
    torch.autograd.backward(results, [w.to(r) for w, r in zip(weights, results, strict=True)])
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {"y": results[0].detach(), "state": results[1].detach(), **gradients}


def truth(subject: Subject, inputs: Mapping[str, Tensor], weights: Sequence[Tensor]) -> Results:
    """The same in float64: up to `SHORT` by the reference, beyond by the portable backend.

    The reference is a loop over L that runs on the CPU; a million steps of it take minutes.
    """
    short = inputs["x"].shape[1] <= SHORT
    device = torch.device("cpu") if short else inputs["x"].device
    wide = {name: tensor.to(device, torch.float64) for name, tensor in inputs.items()}
    backend = "reference" if short else "portable"
    exact_weights = [weight.to(device, torch.float64) for weight in weights]
    return outcome(subject, wide, exact_weights, backend=backend)


def errors(got: Results, want: Results) -> dict[str, Error]:
    """By name how far `got` is from `want`; NaN where it has another shape or is missing."""
    nothing = Error(float("nan"), float("nan"))
    found = {}
    for name, expected in want.items():
        tensor = got.get(name)
        if tensor is None or tensor.shape != expected.shape:
            found[name] = nothing
            continue
        exact = expected.double()
        error = tensor.to(exact.device, torch.float64) - exact
        # 1e-30: what is forgotten at once is nothing in float32.
        rms, worst = (
            torch.linalg.vector_norm(error, order)
            / (torch.linalg.vector_norm(exact, order) + 1e-30)
            for order in (2, math.inf)
        )
        found[name] = Error(float(rms), float(worst))
    return found


# The laws


@dataclasses.dataclass(frozen=True)
class Law:
    """Two things that must be one."""

    name: str
    compare: Callable[[Probe], tuple[Results, Results]]
    """What was computed, and what it must be."""
    bound: Callable[[Probe], Bound]


def laws(probe: Probe) -> list[Law]:
    """What is checked of `probe`, the cheapest to understand first."""

    def bound(probe: Probe) -> Bound:
        return probe.subject.bound(probe.dtype, probe.length)

    found = [
        Law("values against float64", _values, bound),
        Law("gradients against float64", _gradients, bound),
        Law("a chain of calls through the state is one call", _split, _chain_bound),
        Law("step by step is one call", _steps, bound),
        Law("a row alone is that row of a batch", _row, bound),
        Law("packed sequences are those sequences apart", _packed, bound),
        Law("reverse is the flip of the flipped", _reverse, bound),
        Law("the same bits on every run", _repeat, lambda _: SAME_BITS),
    ]
    if probe.dtype != torch.float32:
        return found
    memory = probe.subject.memory
    if memory is not None:
        for name, make in probe.subject.remembered.items():
            compare = functools.partial(_remembered, make=make)
            limit = functools.partial(_memory_bound, memory=memory)
            found.append(Law(f"long memory, {name}", compare, limit))
    if probe.length > SHORT:
        found.insert(0, Law(f"the truth is the reference at length {SHORT}", _truth, _exact_bound))
    return found


def _memory_bound(probe: Probe, memory: Callable[[int], Bound]) -> Bound:
    return memory(probe.length)


def _chain_bound(probe: Probe) -> Bound:
    """A gradient that enters a state of 16 bits is rounded at every cut."""
    bound = probe.subject.bound(probe.dtype, probe.length)
    return bound if probe.dtype.itemsize >= 4 else bound.grown(2)


def _exact_bound(probe: Probe) -> Bound:
    """Room for sums in another order, and still far below what is measured with this truth."""
    return probe.subject.bound(torch.float64, SHORT).grown(100)


def _values(probe: Probe) -> tuple[Results, Results]:
    return _some(probe.whole, gradients=False), _some(probe.true, gradients=False)


def _gradients(probe: Probe) -> tuple[Results, Results]:
    return _some(probe.whole, gradients=True), _some(probe.true, gradients=True)


def _some(results: Results, *, gradients: bool) -> Results:
    return {n: t for n, t in results.items() if (n not in ("y", "state")) == gradients}


def _edges(length: int) -> list[int]:
    """Four pieces, one of them of one position and none of a round number."""
    return [0, 1, length * 3 // 8 + 1, length - 1, length]


def _split(probe: Probe) -> tuple[Results, Results]:
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in probe.inputs.items()}
    state, outputs = leaves["initial_state"], []
    for start, end in itertools.pairwise(_edges(probe.length)):
        part = _cut(probe, leaves, start, end) | {"initial_state": state}
        y, state = probe.subject.call(part, backend=probe.backend)
        outputs.append(y)
    got = _differentiated(leaves, (torch.cat(outputs, 1), state), probe.weights)
    return got, probe.whole


def _cut(probe: Probe, inputs: Mapping[str, Tensor], start: int, end: int) -> dict[str, Tensor]:
    """The positions [start, end), 0-based half-open, of what has an axis of time."""
    along = probe.subject.along
    return {name: t[:, start:end] if name in along else t for name, t in inputs.items()}


@torch.no_grad()
def _steps(probe: Probe) -> tuple[Results, Results]:
    count = min(STEPS, probe.length // 2)
    border = probe.length - count
    part = _cut(probe, probe.inputs, 0, border)
    state = probe.subject.call(part, backend=probe.backend)[1]
    tail = _cut(probe, probe.inputs, border, probe.length)
    del tail["initial_state"]
    outputs = []
    for t in range(count):
        along = probe.subject.along
        now = {name: tensor[:, t] if name in along else tensor for name, tensor in tail.items()}
        y, state = probe.subject.step(now, state)
        outputs.append(y)
    got = {"y": torch.stack(outputs, 1), "state": state}
    return got, {"y": probe.whole["y"][:, border:], "state": probe.whole["state"]}


def _row(probe: Probe) -> tuple[Results, Results]:
    row, shared = slice(BATCH - 1, BATCH), probe.subject.shared
    alone = {name: t if name in shared else t[row] for name, t in probe.inputs.items()}
    got = probe.run(alone, [weight[row] for weight in probe.weights])
    own = {name for name in got if name[1:] not in shared}
    want = {name: tensor[row] for name, tensor in probe.whole.items() if name in own}
    return {name: got[name] for name in own}, want


def _packed(probe: Probe) -> tuple[Results, Results]:
    edges, shared = _edges(probe.length), probe.subject.shared
    pairs = list(itertools.pairwise(edges))
    inputs = {name: t if name in shared else t[:1] for name, t in probe.inputs.items()}
    inputs["initial_state"] = probe.made(len(pairs), 1)["initial_state"]
    weights = probe.weights_for(inputs)
    got = probe.run(inputs, weights, cu_seqlens=torch.tensor(edges, device=probe.device))
    apart = []
    for row, (start, end) in enumerate(pairs):
        part = _cut(probe, inputs, start, end)
        part["initial_state"] = inputs["initial_state"][row : row + 1]
        apart.append(probe.run(part, [weights[0][:, start:end], weights[1][row : row + 1]]))
    return got, {name: _together(probe, name, apart) for name in apart[0]}


def _together(probe: Probe, name: str, parts: Sequence[Results]) -> Tensor:
    """A result of the pack from those of its sequences; gradients of what is shared are added."""
    of_each = [part[name] for part in parts]
    if name[1:] in probe.subject.shared:
        return torch.stack(of_each).sum(0)
    return torch.cat(of_each, 1 if name == "y" or name[1:] in probe.subject.along else 0)


def _reverse(probe: Probe) -> tuple[Results, Results]:
    along = probe.subject.along
    turned = {name: t.flip(1) if name in along else t for name, t in probe.inputs.items()}
    got = probe.run(turned, [probe.weights[0].flip(1), probe.weights[1]], reverse=True)
    back = {n: t.flip(1) if n == "y" or n[1:] in along else t for n, t in got.items()}
    return back, probe.whole


def _repeat(probe: Probe) -> tuple[Results, Results]:
    return probe.run(probe.inputs, probe.weights), probe.whole


def _remembered(probe: Probe, make: Callable[[int], dict[str, Tensor]]) -> tuple[Results, Results]:
    inputs = probe.laid_out(make(min(probe.length, SHORT)), probe.length)
    weights = probe.weights_for(inputs)
    return probe.run(inputs, weights), truth(probe.subject, inputs, weights)


def _truth(probe: Probe) -> tuple[Results, Results]:
    inputs = {name: tensor.double() for name, tensor in probe.made(BATCH, SHORT).items()}
    weights = probe.weights_for(inputs)
    got = outcome(probe.subject, inputs, weights, backend="portable")
    return got, truth(probe.subject, inputs, weights)
