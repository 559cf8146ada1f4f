"""The contract of all that mixes along the sequence: attention, scans, convolutions, RNNs."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from dnassm.registry import Registry

Streaming = Literal["exact", "history", "none"]


class SequenceMixer(nn.Module, abc.ABC):
    """A map from (B, L, D) to (B, L, D) that can be cut anywhere along L.

    The state is a NamedTuple of tensors with the batch first. It is returned, never changed in
    place, and carries gradients. For a mixer with ``streaming == "exact"`` these hold
    (tests/contracts): forward over any cut equals forward over the whole, values and gradients;
    steps equal forward; rows of a batch do not see each other; a causal mixer does not see the
    future.
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
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Mix x (B, L, D) after `state` (None: from the start): y (B, L, D) and the end state."""

    @abc.abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advance by one position: x (B, D) to y (B, D) and the next state."""

    @abc.abstractmethod
    def init_state(self, batch: int) -> Any:
        """The state before the first position."""


MIXERS: Registry[type[SequenceMixer]] = Registry("mixer", "dnassm.mixers")
