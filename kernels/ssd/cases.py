"""On what every backend is tested and timed, and how near it must come to the reference."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.ssd import ssd

Results = dict[str, Tensor]
"""Values (``y``, ``state``) and gradients (``dx``, ``dA`` ...) by name."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest error of a tensor against float64, relative to that tensor."""

    rms: float
    """Root mean square of the error over that of the tensor."""
    worst: float
    """Largest error over the largest element; an error in one place does not drown in the mean."""
    why: str


TOLERANCES = {
    torch.float64: Tolerance(1e-12, 1e-12, "eps 2e-16, some thousand steps and sums"),
    torch.float32: Tolerance(5e-6, 1e-5, "eps 6e-8, products of 22 bits, sums of random signs"),
    torch.bfloat16: Tolerance(
        3e-3, 1e-2, "two roundings to 8 bits, of an operand and of the result; sums in float32"
    ),
    torch.float16: Tolerance(
        5e-4, 1.5e-3, "two roundings to 11 bits, of an operand and of the result; sums in float32"
    ),
}
# What is remembered is rounded once a chunk, by up to 6e-8, and the decay of a chunk as well: where
# d A does not change from step to step these add up.
LONG_MEMORY = Tolerance(3e-5, 6e-5, "1e-7 per chunk of 16 positions, in one direction, 4097 steps")

LENGTHS = (1, 2, 3, 15, 17, 31, 33, 63, 64, 65, 129, 1000, 4097)
"""Tiny, around the edges of chunks and segments, not a power of two, beyond a power of two."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and ranges of one input."""

    batch: int = 2
    length: int = 65
    heads: int = 2
    width: int = 3
    groups: int = 1
    states: int = 4
    step: tuple[float, float] = (1e-3, 1e-1)
    """Range of softplus(dt + dt_bias), log-uniform; Mamba's initial range."""
    decay: tuple[float, float] = (1.0, 16.0)
    """Range of -A, log-uniform; Mamba-2's initial range."""
    bare: bool = False
    """Without D, z, dt_bias, initial_state and softplus."""
    gated: bool = True
    skip_per_channel: bool = False
    """D is (H, P)."""
    strided: bool = False
    """Inputs are slices of wider tensors, as a projection leaves them."""

    def inputs(
        self, dtype: torch.dtype, *, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor]:
        """Tensor arguments of `ssd` by name; A, D, dt_bias and the state at least float32."""
        generator = torch.Generator().manual_seed(seed)
        wide = torch.promote_types(dtype, torch.float32)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        sequence = (self.batch, self.length, self.heads, self.width)
        maps = (self.batch, self.length, self.groups, self.states)
        step = _log_uniform(sequence[:3], self.step, generator)
        tensors = {
            "x": normal(*sequence).to(dtype),
            "B": normal(*maps).to(dtype),
            "C": normal(*maps).to(dtype),
            "A": -_log_uniform((self.heads,), self.decay, generator).to(wide),
        }
        if self.bare:
            tensors["dt"] = step.to(dtype)
        else:
            bias = normal(self.heads)
            skip = normal(self.heads, self.width) if self.skip_per_channel else normal(self.heads)
            before_softplus = step + torch.log(-torch.expm1(-step))
            tensors["dt"] = (before_softplus - bias).to(dtype)
            tensors["dt_bias"], tensors["D"] = bias.to(wide), skip.to(wide)
            state = normal(self.batch, self.heads, self.width, self.states)
            tensors["initial_state"] = state.to(wide)
        if self.gated and not self.bare:
            tensors["z"] = normal(*sequence).to(dtype)
        if self.strided:
            tensors = {name: _strided(tensor) for name, tensor in tensors.items()}
        return {name: tensor.to(device) for name, tensor in tensors.items()}


def _log_uniform(
    shape: tuple[int, ...], bounds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    low, high = (math.log(bound) for bound in bounds)
    share = torch.rand(shape, generator=generator, dtype=torch.float64)
    return torch.exp(low + (high - low) * share)


def _strided(tensor: Tensor) -> Tensor:
    """The same values as a slice of a tensor twice as wide, NaN in between."""
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), torch.nan, dtype=tensor.dtype)
    wide[..., ::2] = tensor
    return wide[..., ::2]


CASES = {
    **{f"length {length}": Case(length=length) for length in LENGTHS},
    "bare": Case(bare=True),
    "bare, long": Case(bare=True, length=1000),
    "no gate, a skip per channel": Case(gated=False, skip_per_channel=True),
    "one head, one channel, one state": Case(heads=1, width=1, states=1),
    "two groups": Case(heads=4, groups=2, length=130),
    "a group per head": Case(heads=3, groups=3),
    "many states": Case(batch=1, heads=1, width=2, states=256, length=33),
    "wide heads": Case(batch=1, heads=1, width=130, states=5, length=33),
    "steps from 1e-4 to 10, decay from 1e-3 to 64": Case(
        step=(1e-4, 10.0), decay=(1e-3, 64.0), length=1000
    ),
    "everything forgotten at once": Case(step=(10.0, 10.0), decay=(64.0, 64.0)),
    "strided": Case(strided=True, heads=4, groups=2),
    "strided, one row": Case(strided=True, batch=1, length=200),
    "wide": Case(batch=1, heads=4, width=32, states=16, length=300),
}

LONG = {
    "random small steps": Case(batch=1, length=4097, step=(1e-4, 1e-3), decay=(1e-3, 1e-2)),
    "the same small step": Case(batch=1, length=4097, step=(1e-4, 1e-4), decay=(1e-3, 1e-3)),
}
"""d A so small that the state at the start is still there at the end; for float32."""


def weights_of(results: tuple[Tensor, ...]) -> list[Tensor]:
    """Random weights of a loss that sees every element of every result."""
    generator = torch.Generator().manual_seed(99)
    wide = [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]
    return [w.to(r.device, r.dtype) for w, r in zip(wide, results, strict=True)]


def outcome(
    inputs: dict[str, Tensor],
    weights: list[Tensor] | None = None,
    *,
    backend: str = "auto",
    **options: Any,
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name, and the weights of the loss, which goes through y and state.

    `options` are further keyword arguments of `ssd`; softplus is on where a bias is.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    softplus = {"dt_softplus": "dt_bias" in inputs}
    given: dict[str, Any] = {**leaves, **softplus, **options, "return_state": True}
    results: Any = ssd(**given, backend=backend)
    weights = weights or weights_of(results)
    torch.autograd.backward(results, [w.to(r) for w, r in zip(weights, results, strict=True)])
    gradients = {f"d{n}": leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}
    return {"y": results[0].detach(), "state": results[1].detach(), **gradients}, weights


def truth(inputs: dict[str, Tensor], weights: list[Tensor], **options: Any) -> Results:
    """The same by the reference, from the same numbers in float64 on the CPU."""
    exact = {name: tensor.double().cpu() for name, tensor in inputs.items()}
    edges = options.get("cu_seqlens")
    if edges is not None:
        options["cu_seqlens"] = edges.cpu()
    wide = [weight.double().cpu() for weight in weights]
    return outcome(exact, wide, backend="reference", **options)[0]


def errors(got: Results, want: Results) -> dict[str, tuple[float, float]]:
    """By name the error relative to `want`: root mean square and worst, as in `Tolerance`."""
    found = {}
    for name, expected in want.items():
        error = got[name].double().to(expected.device) - expected
        # 1e-30: what is forgotten at once, exp(-640), is nothing in float32.
        rms = error.square().mean().sqrt() / (expected.square().mean().sqrt() + 1e-30)
        worst = error.abs().max() / (expected.abs().max() + 1e-30)
        found[name] = (float(rms), float(worst))
    return found


def faults(got: Results, want: Results, tolerance: Tolerance) -> list[str]:
    """What is missing, of another shape or further from `want` than allowed; NaN is far."""
    if got.keys() != want.keys():
        return [f"have {sorted(got)}, expected {sorted(want)}"]
    shapes = [
        f"{name} is {tuple(got[name].shape)}, expected {tuple(expected.shape)}"
        for name, expected in want.items()
        if got[name].shape != expected.shape
    ]
    return shapes or [
        f"{name}: rms {rms:.2g}, worst {worst:.2g}, allowed {tolerance.rms} and {tolerance.worst} "
        f"({tolerance.why})"
        for name, (rms, worst) in errors(got, want).items()
        if not (rms <= tolerance.rms and worst <= tolerance.worst)
    ]
