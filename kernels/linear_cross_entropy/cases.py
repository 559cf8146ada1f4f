"""On what every backend is tested and timed, and how near it must come to the reference."""

from __future__ import annotations

import dataclasses
import math
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
    torch.float64: Tolerance(1e-14, 1e-14, "eps 2e-16, sums of D and V terms"),
    torch.float32: Tolerance(2e-6, 4e-6, "eps 6e-8, sums of D and V terms; T for the weight"),
    torch.bfloat16: Tolerance(4e-3, 8e-3, "p - 1 and the result are rounded to 8 bits, once each"),
    torch.float16: Tolerance(6e-4, 1e-3, "p - 1 and the result are rounded to 11 bits, once each"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes and options of one call."""

    leading: tuple[int, ...] = (2, 7)
    width: int = 24
    vocabulary: int = 8
    bias: bool = False
    weighted: bool = False
    smoothing: float = 0.0
    reduction: str = "mean"
    ignored: float = 0.3
    """Share of the tokens without a target."""
    strided: bool = False
    """Inputs are slices of wider tensors, as a projection leaves them."""

    def options(self, device: str = "cpu") -> dict[str, Any]:
        """Arguments of `linear_cross_entropy` that have no gradient."""
        generator = torch.Generator().manual_seed(7)
        targets = torch.randint(self.vocabulary, self.leading, generator=generator)
        without = torch.rand(self.leading, generator=generator) < self.ignored
        return {
            "targets": targets.masked_fill(without, -100).to(device),
            "label_smoothing": self.smoothing,
            "reduction": self.reduction,
        }

    def inputs(
        self, dtype: torch.dtype, *, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor]:
        """Tensor arguments with a gradient by name; bias and weights at least float32."""
        generator = torch.Generator().manual_seed(seed)
        wide = torch.promote_types(dtype, torch.float32)
        shapes = {
            "hidden": ((*self.leading, self.width), dtype),
            "weight": ((self.vocabulary, self.width), dtype),
        }
        if self.bias:
            shapes["bias"] = ((self.vocabulary,), wide)
        if self.weighted:
            shapes["weights"] = (self.leading, wide)
        tensors = {}
        for name, (shape, kind) in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float64)
            if name == "weight":
                values /= math.sqrt(self.width)  # logits of about 1
            if name == "weights":
                values = values.abs() * (values > -0.5)  # some of them 0
            values = values.to(kind)
            if self.strided and values.dim() > 1:
                wider = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=kind)
                wider[..., 1::2] = values
                values = wider[..., 1::2]
            tensors[name] = values.to(device)
        return tensors


CASES = {
    **{f"vocabulary {v}": Case(vocabulary=v) for v in (2, 5, 16, 17, 100)},
    **{f"width {d}": Case(width=d) for d in (1, 3, 64, 65, 300)},
    "vocabulary 1000": Case(vocabulary=1000, bias=True, smoothing=0.1),
    "one token": Case(leading=(1,), ignored=0.0),
    "no axis": Case(leading=(), ignored=0.0),
    "three axes": Case(leading=(2, 3, 5)),
    "many tokens": Case(leading=(3, 201), bias=True, reduction="sum"),
    "bias": Case(bias=True),
    "weights": Case(weighted=True, bias=True),
    "weights, sum": Case(weighted=True, reduction="sum"),
    "weights, none": Case(weighted=True, reduction="none", smoothing=0.3),
    "smoothing": Case(smoothing=0.1, bias=True),
    "smoothing of all": Case(smoothing=1.0),
    "none": Case(reduction="none"),
    "all count": Case(ignored=0.0),
    "strided": Case(strided=True, weighted=True, bias=True),
}
