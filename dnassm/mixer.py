"""The contract of all that mixes along the sequence: attention, scans, convolutions, RNNs."""

from __future__ import annotations

import abc
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dnassm.errors import ShapeError
from dnassm.kernels.sequences import check_data
from dnassm.registry import Registry

Streaming = Literal["exact", "history", "none"]


class SequenceMixer(nn.Module, abc.ABC):
    """A map from (B, L, D) to (B, L, D) that can be cut anywhere along L.

    The state is a NamedTuple of tensors with the batch first. It is returned and carries gradients;
    only `advance` may change it in place. For a mixer with ``streaming == "exact"`` these hold
    (tests/contracts): forward over any cut equals forward over the whole, values and gradients;
    steps equal forward; rows of a batch do not see each other; a causal mixer does not see the
    future.

    S sequences of different lengths may be packed end to end on the one row of a batch of 1. None
    sees another: outputs, gradients and states are those of S calls, one for each sequence.
    """

    source: ClassVar[str]
    """Paper with equation or section."""
    causal: ClassVar[bool]
    streaming: ClassVar[Streaming]
    """How a sequence may be cut: "exact" carries a state of fixed size, "history" one that grows,
    "none" has to see the whole at once."""
    Config: ClassVar[type]
    """Pydantic model of the options; ``Mixer(d_model, Config())`` is a valid mixer."""

    @abc.abstractmethod
    def forward(
        self, x: Tensor, state: Any = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Mix x (B, L, D) after `state`: y (B, L, D) and the end state.

        Args:
            x: (B, L, D); (1, L, D) if packed.
            state: of the positions before, B rows, S if packed; None starts every sequence anew.
            cu_seqlens: (S+1,) int32 or int64, the edges of the packed sequences: sequence s is the
                positions cu_seqlens[s] to cu_seqlens[s+1], 0-based half-open.

        Raises:
            ShapeError: a shape does not fit, or the edges do not rise from 0 to L.
        """

    @abc.abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advance by one position: x (B, D) to y (B, D) and the next state."""

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """`step` without gradients, after which `state` is used up.

        The same values; the next state may lie where `state` did. A mixer whose step has something
        to gain from that writes it there, the others need no `advance` of their own.
        """
        return self.step(x, state)

    @abc.abstractmethod
    def init_state(self, batch: int) -> Any:
        """The state before the first position."""

    def constants(self) -> Any:
        """What `step` needs and the parameters alone decide; a mixer may have none."""
        return None

    _held: Any = None

    def _constants(self) -> Any:
        """`constants`, computed once within `frozen`."""
        return self.constants() if self._held is None else self._held

    @contextlib.contextmanager
    def frozen(self) -> Iterator[Any]:
        """While it lasts the parameters must not change: `step` finds its constants as they are.

        Yields the constants, which a captured graph of steps goes on reading.
        """
        with torch.no_grad():
            self._held = self.constants()
        try:
            yield self._held
        finally:
            self._held = None


def check_packed(name: str, row: Tensor, cu_seqlens: Tensor) -> None:
    """Refuse `cu_seqlens` (S+1,) that cannot be the edges of sequences on `row` (1, L, ..).

    Only what shapes tell: nothing here waits for the device.

    Raises:
        ShapeError: names the argument of `name`.
    """
    if row.shape[0] != 1:
        raise ShapeError(
            f"{name}: cu_seqlens packs sequences on one row, so B must be 1, got {tuple(row.shape)}"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ShapeError(
            f"{name}: cu_seqlens must be (S+1,) with S > 0, got {tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise ShapeError(f"{name}: cu_seqlens must be int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.device != row.device:
        raise ShapeError(
            f"{name}: cu_seqlens is on {cu_seqlens.device}, the sequences on {row.device}"
        )


def packed_bounds(name: str, x: Tensor, cu_seqlens: Tensor) -> list[tuple[int, int]]:
    """Start and end of each sequence on x (1, L, D), for a mixer that takes one after the other.

    Raises:
        ShapeError: see `check_packed`; or the edges do not rise from 0 to L.
    """
    check_packed(name, x, cu_seqlens)
    check_data(name, x, cu_seqlens, None)
    return list(itertools.pairwise(cu_seqlens.tolist()))


MIXERS: Registry[type[SequenceMixer]] = Registry("mixer", "dnassm.mixers")
