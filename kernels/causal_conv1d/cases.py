"""On what every backend is tested and timed, and how near it must come to the reference."""

from __future__ import annotations

import dataclasses
import itertools
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
    torch.float64: Tolerance(1e-14, 1e-14, "eps 2e-16, a handful of taps"),
    torch.float32: Tolerance(1e-5, 1e-5, "eps 6e-8, times sqrt(B*L) = 90 for weight and bias"),
    torch.bfloat16: Tolerance(4e-3, 8e-3, "one rounding of the result to 8 bits; sums in float32"),
    torch.float16: Tolerance(6e-4, 1e-3, "one rounding of the result to 11 bits; sums in float32"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Sizes of one input."""

    batch: int = 2
    length: int = 65
    channels: int = 6
    width: int = 4
    bare: bool = False
    """Without bias and initial_state."""
    strided: bool = False
    """Inputs are slices of wider tensors, as a projection leaves them."""
    packed: tuple[int, ...] = ()
    """Lengths of the sequences packed on one row; then `batch` is 1 and `length` their sum."""
    reverse: bool = False

    @classmethod
    def of_sequences(cls, *lengths: int, **sizes: Any) -> Case:
        """A case of packed sequences."""
        return cls(batch=1, length=sum(lengths), packed=lengths, **sizes)

    def options(self, device: str = "cpu") -> dict[str, Any]:
        """Arguments of `causal_conv1d` that have no gradient."""
        edges = None
        if self.packed:
            edges = torch.tensor([0, *itertools.accumulate(self.packed)], device=device)
        return {"cu_seqlens": edges, "reverse": self.reverse}

    def inputs(
        self, dtype: torch.dtype, *, device: str = "cpu", seed: int = 0
    ) -> dict[str, Tensor]:
        """Tensor arguments of `causal_conv1d` by name; weight and bias at least float32."""
        generator = torch.Generator().manual_seed(seed)
        wide = torch.promote_types(dtype, torch.float32)
        shapes = {
            "x": ((self.batch, self.length, self.channels), dtype),
            "weight": ((self.channels, self.width), wide),
        }
        if not self.bare:
            shapes["bias"] = ((self.channels,), wide)
            states = len(self.packed) or self.batch
            shapes["initial_state"] = ((states, self.width - 1, self.channels), dtype)
        tensors = {}
        for name, (shape, kind) in shapes.items():
            values = torch.randn(shape, generator=generator, dtype=torch.float64).to(kind)
            if self.strided:
                wider = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan, dtype=kind)
                wider[..., 1::2] = values
                values = wider[..., 1::2]
            tensors[name] = values.to(device)
        return tensors


CASES = {
    **{f"length {n}": Case(length=n) for n in (1, 2, 3, 4, 31, 64, 65, 1000, 4097)},
    **{f"width {k}": Case(width=k) for k in (1, 2, 3, 5, 6, 7)},
    "wider than long": Case(length=3, width=9),
    "bare": Case(bare=True),
    "one channel": Case(channels=1),
    "33 channels": Case(channels=33),
    "64 channels": Case(channels=64, length=300),
    "strided": Case(strided=True),
    "strided, one row": Case(strided=True, batch=1),
    "reverse": Case(reverse=True),
    "reverse, length 1": Case(reverse=True, length=1),
    "reverse, wider than long": Case(reverse=True, length=3, width=9),
    "reverse, strided": Case(reverse=True, strided=True, length=100),
    "packed": Case.of_sequences(5, 1, 40, 2, 3, 17, 1, 1),
    "packed, one sequence": Case.of_sequences(65),
    "packed, all of one position": Case.of_sequences(*[1] * 9),
    "packed, wider than long": Case.of_sequences(1, 2, 7, 3, width=6),
    "packed, bare": Case.of_sequences(5, 60, bare=True),
    "packed, strided, 64 channels": Case.of_sequences(100, 7, 200, strided=True, channels=64),
    "packed, reverse": Case.of_sequences(5, 1, 40, 2, 3, 17, 1, 1, reverse=True),
    "packed, reverse, width 2": Case.of_sequences(100, 1, 33, width=2, reverse=True),
}
