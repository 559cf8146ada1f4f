"""Mixers made of mixers: any mixer in, a mixer out."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.mixer import SequenceMixer, Streaming


class Bidirectional(SequenceMixer):
    """y = forward(x) + reverse(backward(reverse(x))), with a mixer of its own for each direction.

    The two do not share weights: a tied pair would give reverse(y) for reverse(x) and could not
    tell a sequence from the same letters read backwards.
    """

    source: ClassVar[str] = "Schiff et al. 2024, arXiv:2403.03234, section 3.1 (untied)"
    causal: ClassVar[bool] = False
    streaming: ClassVar[Streaming] = "none"
    Config: ClassVar[type] = type(None)

    def __init__(self, onward: SequenceMixer, backward: SequenceMixer) -> None:
        super().__init__()
        self.onward = onward
        self.backward_mixer = backward

    def forward(
        self, x: Tensor, state: Any = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """(B, L, D) -> (B, L, D), packed or not; there is no state.

        Raises:
            ShapeError: a state is given: the past alone does not determine the output.
        """
        if state is not None:
            raise ShapeError(
                "a bidirectional mixer sees the whole sequence at once: state must be None"
            )
        y, _ = self.onward(x, None, cu_seqlens)
        # Reversed as a whole, a packed row has its last sequence first, each one reversed.
        mirrored = None if cu_seqlens is None else cu_seqlens[-1] - cu_seqlens.flip(0)
        reverse, _ = self.backward_mixer(x.flip(1), None, mirrored)
        return y + reverse.flip(1), None

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Raise: a bidirectional mixer cannot go step by step."""
        raise ShapeError("a bidirectional mixer cannot go step by step; use a causal model")

    def init_state(self, batch: int) -> Any:
        """None: there is no state."""
        return None
