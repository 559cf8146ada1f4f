"""On what the block is tested and timed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from dnassm.kernels.mamba_inner import Walk, mamba_inner
from dnassm.kernels.mamba_inner.arguments import TENSORS

Results = dict[str, Tensor]
"""Values (``y``, ``conv 0``, ``ssm 0`` ...) and gradients (``dx``, ``dA 0`` ...) by name."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one input, and what it has."""

    batch: int = 2
    length: int = 37
    width: int = 8
    inner: int = 16
    states: int = 4
    rank: int = 3
    taps: int = 4
    reverse: tuple[bool, ...] = (False,)
    """Of each walk."""
    packed: tuple[int, ...] = ()
    """Edges of the sequences packed on the one row."""
    bare: bool = False
    """Without biases, skip connection and states."""

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `mamba_inner`."""
        return {"cu_seqlens": torch.tensor(self.packed)} if self.packed else {}

    def inputs(self, dtype: torch.dtype, *, device: str = "cpu", seed: int = 0) -> Inputs:
        """Random tensors; what the scan keeps in float32 at least is so."""
        generator = torch.Generator().manual_seed(seed)
        wide = torch.promote_types(dtype, torch.float32)

        def normal(*shape: int, scale: float = 1.0, kind: torch.dtype = dtype) -> Tensor:
            found = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return found.to(device, kind)

        inner, width = self.inner, self.width
        x = normal(self.batch, self.length, width)
        in_weight = normal(2 * inner, width, scale=width**-0.5)
        out_weight = normal(width, inner, scale=inner**-0.5)
        walks = [self._walk(normal, wide, reverse=reverse) for reverse in self.reverse]
        return Inputs(x, in_weight, out_weight, tuple(walks))

    def _walk(self, normal: Any, wide: torch.dtype, *, reverse: bool) -> Walk:
        inner, states, rank, taps = self.inner, self.states, self.rank, self.taps
        rows = len(self.packed) - 1 if self.packed else self.batch
        walk = Walk(
            conv_weight=normal(inner, taps, scale=0.5, kind=wide),
            x_weight=normal(rank + 2 * states, inner, scale=inner**-0.5),
            dt_weight=normal(inner, rank, scale=rank**-0.5),
            A=-torch.exp(normal(inner, states, kind=wide)),
            reverse=reverse,
        )
        if self.bare:
            return walk
        return walk._replace(
            conv_bias=normal(inner, kind=wide),
            dt_bias=normal(inner, kind=wide) - 2,
            D=normal(inner, kind=wide),
            conv_state=normal(rows, taps - 1, inner),
            ssm_state=normal(rows, inner, states, kind=wide),
        )


BOTH = (False, True)
"""Of `Case.reverse`: a walk in either direction."""
CASES = {
    "plain": Case(),
    "bare": Case(bare=True),
    "reverse": Case(reverse=(True,)),
    "both directions": Case(reverse=BOTH),
    "both directions, bare": Case(reverse=BOTH, bare=True),
    "two onwards": Case(reverse=(False, False)),
    "packed": Case(batch=1, packed=(0, 1, 20, 37)),
    "packed, reverse": Case(batch=1, packed=(0, 5, 36, 37), reverse=(True,)),
    "packed, both directions": Case(batch=1, packed=(0, 2, 19, 37), reverse=BOTH),
    "one position": Case(length=1),
    "one tap": Case(taps=1),
    "wide": Case(width=48, inner=96, states=16, rank=3, length=70),
}
"""Small ones with every option."""
# Dx and the products over cut pieces are sums in another order than autograd's.
ROUNDING = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2e-2}
"""Largest error against the composition of the public operators, see `furthest`."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Tensors of one call."""

    x: Tensor
    in_weight: Tensor
    out_weight: Tensor
    walks: tuple[Walk, ...]

    def named(self) -> dict[str, Tensor]:
        """By name; those of walk i end in i."""
        found = {name: getattr(self, name) for name in ("x", "in_weight", "out_weight")}
        for index, walk in enumerate(self.walks):
            given = walk.tensors().items()
            found |= {f"{name} {index}": tensor for name, tensor in given if tensor is not None}
        return found

    def replaced(self, named: dict[str, Tensor]) -> Inputs:
        """The same with other tensors under these names."""
        mine = self.named() | named

        def tensors(index: int) -> list[Any]:
            return [mine.get(f"{name} {index}") for name in TENSORS]

        walks = [
            Walk(*tensors(index))._replace(reverse=walk.reverse)
            for index, walk in enumerate(self.walks)
        ]
        return Inputs(mine["x"], mine["in_weight"], mine["out_weight"], tuple(walks))

    def run(self, **options: Any) -> list[Tensor]:
        """y, then the states of every walk."""
        given: dict[str, Any] = {**options, "return_state": True}
        y, states = mamba_inner(self.x, self.in_weight, self.out_weight, *self.walks, **given)
        return [y, *(tensor for state in states for tensor in state)]


def outcome(
    inputs: Inputs, weights: list[Tensor] | None = None, **options: Any
) -> tuple[Results, list[Tensor]]:
    """Values and gradients by name, and the weights of the loss, which goes through all results."""
    leaves = {name: t.detach().clone().requires_grad_() for name, t in inputs.named().items()}
    results = inputs.replaced(leaves).run(**options)
    weights = weights or weights_of(results)
    torch.autograd.backward(results, [w.to(r) for w, r in zip(weights, results, strict=True)])
    names = ["y", *(f"{n} {i}" for i in range(len(inputs.walks)) for n in ("conv", "ssm"))]
    values = {name: result.detach() for name, result in zip(names, results, strict=True)}
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
