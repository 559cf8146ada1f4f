"""On what every backend is tested and timed, and how near it must come to the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """Largest error of a tensor against float64, relative to that tensor."""

    rms: float
    """Root mean square of the error over that of the tensor."""
    worst: float
    """Largest error over the largest element."""
    why: str


TOLERANCES = {
    torch.float64: Tolerance(1e-14, 1e-14, "eps 2e-16, sums of D terms"),
    torch.float32: Tolerance(2e-6, 4e-6, "eps 6e-8, sums of D terms; R terms for the weight"),
    torch.bfloat16: Tolerance(4e-3, 8e-3, "one rounding of the result to 8 bits; sums in float32"),
    torch.float16: Tolerance(6e-4, 1e-3, "one rounding of the result to 11 bits; sums in float32"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and options of one call."""

    shape: tuple[int, ...] = (2, 5, 24)
    kind: str = "rms"
    eps: float = 1e-5
    bias: bool = False
    residual: bool = False
    gate: bool = False
    groups: int = 1
    strided: bool = False
    """Inputs are slices of wider tensors, as a projection leaves them."""
    wide: bool = True
    """The residual is float32 at least, as a residual stream is kept; else in the dtype of x."""

    def options(self) -> dict[str, Any]:
        """Arguments of `norm` or `add_norm` that are no tensors."""
        options = {"kind": self.kind, "eps": self.eps}
        return options if self.residual else {**options, "groups": self.groups}

    def inputs(
        self, dtype: torch.dtype, *, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor]:
        """Tensor arguments of `norm` or `add_norm` by name; weight and bias at least float32."""
        generator = torch.Generator().manual_seed(seed)
        wide = torch.promote_types(dtype, torch.float32)
        shapes = {"x": (self.shape, dtype), "weight": (self.shape[-1:], wide)}
        if self.bias:
            shapes["bias"] = (self.shape[-1:], wide)
        if self.residual:
            shapes["residual"] = (self.shape, wide if self.wide else dtype)
        if self.gate:
            shapes["gate"] = (self.shape, dtype)
        tensors = {}
        for name, (shape, kind) in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            values = (values + (0.5 if name == "x" else 0)).to(kind)  # with a mean to take off
            if self.strided:
                wider = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=kind)
                wider[..., 1::2] = values
                values = wider[..., 1::2]
            tensors[name] = values.to(device)
        return tensors


CASES = {
    **{f"width {d}": Case(shape=(3, 7, d)) for d in (2, 3, 16, 33, 255, 1024)},
    # Of width 1 the norm is a sign where eps is small, and its gradient nothing but rounding.
    "width 1": Case(shape=(3, 7, 1), eps=0.5, bias=True),
    "layer, width 1": Case(shape=(3, 7, 1), kind="layer", bias=True),
    "width 4097": Case(shape=(3, 4097), kind="layer", bias=True),
    "many rows": Case(shape=(700, 8), bias=True),
    "one row": Case(shape=(24,), bias=True),
    "four axes": Case(shape=(2, 1, 3, 10), residual=True),
    "layer": Case(kind="layer"),
    "layer, bias": Case(kind="layer", bias=True),
    "residual": Case(residual=True),
    "residual, many rows": Case(shape=(3, 150, 20), residual=True),
    "residual, layer, bias": Case(residual=True, kind="layer", bias=True),
    "residual of the dtype of x": Case(residual=True, wide=False),
    "gate": Case(gate=True),
    "gate, groups": Case(gate=True, groups=3),
    "gate, many rows": Case(shape=(2, 100, 12), gate=True, groups=2),
    "gate, layer, bias": Case(gate=True, kind="layer", bias=True),
    "groups": Case(groups=4, bias=True),
    "strided": Case(strided=True, bias=True),
    "strided, residual": Case(strided=True, residual=True),
    "strided, gate": Case(strided=True, gate=True, groups=2),
}
