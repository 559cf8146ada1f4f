"""The definition of the selective scan: a float64 loop over time, to which backends are held."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PRIORITY = 0


def supports(tensors: Sequence[Tensor]) -> str | None:
    """Runs everywhere."""
    return None


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,  # noqa: FBT001  positional as in every backend
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute `selective_scan` in float64, one line per equation; shapes as there."""
    batch, _, channels = x.shape
    shared_by = channels // B.shape[2]
    u, delta, decay = x.double(), dt.double(), A.double()
    B_BLDN = B.double().repeat_interleave(shared_by, dim=2)
    C_BLDN = C.double().repeat_interleave(shared_by, dim=2)
    if dt_bias is not None:
        delta = delta + dt_bias.double()
    if dt_softplus:
        delta = F.softplus(delta)
    h = u.new_zeros(batch, channels, A.shape[1])
    if initial_state is not None:
        h = initial_state.double()
    outputs = []
    along_time = (delta.unbind(1), u.unbind(1), B_BLDN.unbind(1), C_BLDN.unbind(1))
    for d, u_t, B_t, C_t in zip(*along_time, strict=True):
        h = torch.exp(d[..., None] * decay) * h + (d * u_t)[..., None] * B_t
        outputs.append((h * C_t).sum(-1))
    y = torch.stack(outputs, dim=1)
    if D is not None:
        y = y + D.double() * u
    if z is not None:
        y = y * F.silu(z.double())
    return y.to(x.dtype), h.to(A.dtype)
