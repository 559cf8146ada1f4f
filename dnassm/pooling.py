"""From one vector per token to one vector per sequence; padding never counts.

A sequence may arrive whole or in chunks: RunningPool gives the same vector either way, so that the
memory for an embedding does not grow with the length of the sequence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dnassm.errors import ConfigError
from dnassm.registry import did_you_mean

POOLS = ("mean", "last", "max")


def check_pools(pools: Sequence[str]) -> tuple[str, ...]:
    """Return `pools` as a tuple; raises ConfigError for an unknown name or for none at all."""
    for name in pools:
        if name not in POOLS:
            raise ConfigError(
                f"no pooling named {name!r}; have {', '.join(POOLS)}.{did_you_mean(name, POOLS)}"
            )
    if not pools:
        raise ConfigError(f"no pooling given; choose at least one of {', '.join(POOLS)}")
    return tuple(pools)


def pool(hidden_BLD: Tensor, real_BL: Tensor, pools: Sequence[str] = ("mean",)) -> Tensor:
    """Pool every row over its real positions; several poolings are put side by side.

    Args:
        hidden_BLD: (B, L, D) one vector per token.
        real_BL: (B, L) bool, False at padding; every row has at least one True.
        pools: names out of POOLS.

    Returns:
        (B, len(pools) * D), differentiable.

    >>> pool(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    running = RunningPool(pools)
    running.add(hidden_BLD, real_BL)
    return running.result()


class RunningPool:
    """Pooled vectors of a batch whose sequences arrive chunk by chunk, from left to right."""

    def __init__(self, pools: Sequence[str]) -> None:
        self.pools = check_pools(pools)
        self._sums: dict[str, Tensor] = {}
        self._count = torch.zeros(0)

    def add(self, hidden_BLD: Tensor, real_BL: Tensor) -> None:
        """Take in the next chunk: (B, L, D) vectors and (B, L) which of them are no padding."""
        real_BL1 = real_BL[..., None]
        count_B1 = real_BL.sum(1, keepdim=True)
        first = not self._sums
        for name in self.pools:
            part_BD = _REDUCE[name](hidden_BLD, real_BL1)
            if first:
                self._sums[name] = part_BD
            else:
                self._sums[name] = _merge(name, self._sums[name], part_BD, count_B1)
        self._count = count_B1 if first else self._count + count_B1

    def result(self) -> Tensor:
        """(B, len(pools) * D) in the order of the names."""
        values = dict(self._sums)
        if "mean" in values:
            values["mean"] = values["mean"] / self._count
        return torch.cat([values[name] for name in self.pools], dim=-1)


def _sum(hidden_BLD: Tensor, real_BL1: Tensor) -> Tensor:
    # masked_fill, not a product: what stands at padding may be NaN and must not matter.
    return hidden_BLD.masked_fill(~real_BL1, 0.0).sum(1)


def _last(hidden_BLD: Tensor, real_BL1: Tensor) -> Tensor:
    """Vector at the last real position; of a row without one, any: _merge drops it."""
    L = hidden_BLD.shape[1]
    place_L = torch.arange(L, device=hidden_BLD.device)
    last_B = (place_L * real_BL1[..., 0]).argmax(1)
    return hidden_BLD[torch.arange(hidden_BLD.shape[0], device=hidden_BLD.device), last_B]


def _max(hidden_BLD: Tensor, real_BL1: Tensor) -> Tensor:
    return hidden_BLD.masked_fill(~real_BL1, float("-inf")).amax(1)


_REDUCE = {"mean": _sum, "last": _last, "max": _max}


def _merge(name: str, before_BD: Tensor, now_BD: Tensor, count_B1: Tensor) -> Tensor:
    if name == "mean":
        return before_BD + now_BD
    if name == "max":
        return torch.maximum(before_BD, now_BD)
    return torch.where(count_B1 > 0, now_BD, before_BD)
