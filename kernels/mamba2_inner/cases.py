"""On what the block is tested and timed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.mamba2_inner import mamba2_inner

Results = dict[str, Tensor]
"""Values (``y``, ``conv``, ``ssm``) and gradients (``dx``, ``dA`` ...) by name."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one input, and what it has."""

    batch: int = 2
    length: int = 37
    width: int = 8
    heads: int = 4
    head_dim: int = 3
    groups: int = 1
    states: int = 5
    taps: int = 4
    reverse: bool = False
    limit: tuple[float, float] | None = None
    """Of the step size."""
    eps: float = 1e-5
    packed: tuple[int, ...] = ()
    """Edges of the sequences packed on the one row."""
    skip_per_channel: bool = False
    """D is (H, P)."""
    bare: bool = False
    """Without biases, skip connection and states."""

    @property
    def inner(self) -> int:
        """E."""
        return self.heads * self.head_dim

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `mamba2_inner` that have no gradient."""
        found: dict[str, Any] = {
            "groups": self.groups,
            "reverse": self.reverse,
            "eps": self.eps,
        }
        if self.packed:
            found["cu_seqlens"] = torch.tensor(self.packed)
        if self.limit is not None:
            found["dt_limit"] = self.limit
        return found

    def inputs(
        self, dtype: torch.dtype, *, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor]:
        """Tensor arguments of `mamba2_inner` by name; what SSD has in float32 at least is so."""
        generator = torch.Generator().manual_seed(seed)
        wide = torch.promote_types(dtype, torch.float32)

        def normal(*shape: int, scale: float = 1.0, kind: torch.dtype = wide) -> Tensor:
            found = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return found.to(device, kind)

        inner, heads, width = self.inner, self.heads, self.width
        convolved = inner + 2 * self.groups * self.states
        found = {
            "x": normal(self.batch, self.length, width, kind=dtype),
            "in_weight": normal(inner + convolved + heads, width, scale=width**-0.5, kind=dtype),
            "conv_weight": normal(convolved, self.taps, scale=0.5),
            "A": -torch.exp(normal(heads)),
            "norm_weight": 1 + normal(inner, scale=0.2),
            "out_weight": normal(width, inner, scale=inner**-0.5, kind=dtype),
        }
        if self.bare:
            return found
        rows = len(self.packed) - 1 if self.packed else self.batch
        skip = (heads, self.head_dim) if self.skip_per_channel else (heads,)
        return found | {
            "conv_bias": normal(convolved),
            "dt_bias": normal(heads) - 2,
            "D": normal(*skip),
            "conv_state": normal(rows, self.taps - 1, convolved, kind=dtype),
            "ssm_state": normal(rows, heads, self.head_dim, self.states),
        }


def run(inputs: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """y, then the states."""
    given: dict[str, Any] = {**inputs, **options, "return_state": True}
    y, state = mamba2_inner(**given)
    return [y, *state]


def outcome(
    inputs: dict[str, Tensor], weights: list[Tensor] | None = None, **options: Any
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name, and the weights of the loss, which goes through all results."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.items()}
    results = run(leaves, **options)
    weights = weights or weights_of(results)
    torch.autograd.backward(results, [w.to(r) for w, r in zip(weights, results, strict=True)])
    named = zip(("y", "conv", "ssm"), results, strict=True)
    values = {name: result.detach() for name, result in named}
    gradients = {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {**values, **gradients}, weights


def weights_of(results: list[Tensor]) -> list[Tensor]:
    """Random weights of a loss that sees every element of every result."""
    generator = torch.Generator().manual_seed(99)
    return [torch.randn(r.shape, generator=generator, dtype=torch.float64) for r in results]


def furthest(got: Results, want: Results) -> tuple[float, str]:
    """Largest error relative to the largest number of a tensor, and the tensor's name."""
    assert got.keys() == want.keys(), (sorted(got), sorted(want))  # noqa: S101  for tests
    worst = (0.0, "none")
    for name, expected in want.items():
        assert got[name].shape == expected.shape, name  # noqa: S101
        if expected.numel() == 0:  # the state of a convolution of one tap
            continue
        exact = expected.detach().double().cpu()
        error = (got[name].detach().double().cpu() - exact).abs().max() / exact.abs().max()
        worst = max(worst, (float("inf") if error.isnan() else float(error), name))
    return worst
