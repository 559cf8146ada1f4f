"""The scan under the name, in the layouts and with the results that users of mamba_ssm know."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.selective_scan import op

# Maps that do not change in time have a value per channel. Written out for every position they are
# as large as all states, so such a call is made in pieces of about this many numbers of state.
_PIECE = 1 << 22


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,  # noqa: FBT001, FBT002  mamba_ssm's signature
    return_last_state: bool = False,  # noqa: FBT001, FBT002
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute the scan of `selective_scan` with time last; with a complex A, y = 2 Re(sum_n C h).

    Args:
        u: (B, D, L) input.
        delta: (B, D, L) step size.
        A: (D, N) decay, real or complex.
        B: input map: (D, N) the same at every position, (B, N, L), or (B, G, N, L) in groups. For a
            complex A the first is complex, the others are (.., N, 2L) pairs (real, imaginary).
        C: output map, one of the shapes of B.
        D: (D,) skip connection.
        z: (B, D, L) gate.
        delta_bias: (D,) added to delta.
        delta_softplus: apply softplus to delta + delta_bias.
        return_last_state: also return the state after position L-1.

    Returns:
        out (B, D, L) in the dtype of u, a view of memory in the order (B, L, D); with
        `return_last_state` also the state (B, D, N) in the dtype of A. Both carry gradients.

    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
    """
    _check(u, delta, A, {"D": D, "z": z, "delta_bias": delta_bias})
    A = A if A.dtype in _STATE_DTYPES else A.float()
    B, C = _map("B", B, u, A), _map("C", C, u, A)
    steps = u.shape[2]
    if B.dim() == 2 or C.dim() == 2:
        steps = max(1, _PIECE // (u.shape[0] * A.numel()))
    outputs: list[Tensor] = []
    state: Tensor | None = None
    for start in range(0, u.shape[2], steps):
        along = (None if t is None else t[:, :, start : start + steps].mT for t in (u, delta, z))
        x, dt, gate = along
        maps = _same_groups(*(_at(m, start, u[:, :, start : start + steps]) for m in (B, C)))
        options = (delta_softplus, False, False, "auto")
        y, state, _ = op.scan(x, dt, A, *maps, D, gate, delta_bias, state, None, *options)
        outputs.append(y)
    out = (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)).mT
    return (out, state) if return_last_state and state is not None else out


_STATE_DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def _check(u: Tensor, delta: Tensor, A: Tensor, optional: dict[str, Tensor | None]) -> None:
    if u.dim() != 3 or 0 in u.shape:
        raise ShapeError(
            f"selective_scan_fn: u must be (B, D, L), none of them 0, got {tuple(u.shape)}"
        )
    channels = u.shape[1]
    if A.dim() != 2 or A.shape[0] != channels or not 1 <= A.shape[1] <= 256:
        raise ShapeError(
            f"selective_scan_fn: A must be (D, N) with D = {channels} and N 1 to 256, "
            f"got {tuple(A.shape)}"
        )
    if not (A.is_floating_point() or A.is_complex()) or A.device != u.device:
        raise ShapeError(
            f"selective_scan_fn: A must be floating point or complex on {u.device}, "
            f"got {A.dtype} on {A.device}"
        )
    shapes = {"u": tuple(u.shape), "delta": tuple(u.shape), "z": tuple(u.shape)}
    for name, tensor in {"u": u, "delta": delta, **optional}.items():
        shape = shapes.get(name, (channels,))
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ShapeError(
                f"selective_scan_fn: {name} must be {shape}, got {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point() or tensor.device != u.device:
            raise ShapeError(
                f"selective_scan_fn: {name} must be floating point on {u.device}, "
                f"got {tensor.dtype} on {tensor.device}"
            )


def _map(name: str, given: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """B or C as (D, N) or (B, G, N, L), complex if A is."""
    (batch, channels, length), states = u.shape, A.shape[1]
    last = 2 * length if A.is_complex() else length
    constant = tuple(given.shape) == (channels, states)
    grouped = given.unsqueeze(1) if given.dim() == 3 else given
    varies = (
        grouped.dim() == 4
        and (grouped.shape[0], *grouped.shape[2:]) == (batch, states, last)
        and grouped.shape[1] > 0
        and channels % grouped.shape[1] == 0
    )
    if not (constant or varies):
        raise ShapeError(
            f"selective_scan_fn: {name} must be (D, N) = ({channels}, {states}), "
            f"({batch}, {states}, {last}) or ({batch}, G, {states}, {last}) with G a divisor of "
            f"{channels}, got {tuple(given.shape)}"
        )
    fits = given.is_floating_point() or (constant and A.is_complex() and given.is_complex())
    if not fits or given.device != u.device:
        raise ShapeError(
            f"selective_scan_fn: {name} must be floating point, or complex with (D, N) where A is "
            f"complex, on {u.device}, got {given.dtype} on {given.device}"
        )
    if not A.is_complex():
        return given if constant else grouped
    if constant:
        return given.to(A.dtype)
    pairs = grouped.to(torch.promote_types(given.dtype, torch.float32)).unflatten(-1, (-1, 2))
    return torch.view_as_complex(pairs.contiguous())


def _at(given: Tensor, start: int, u: Tensor) -> Tensor:
    """(B, T, G, N) from `start` on, for the positions of u (B, D, T)."""
    batch, _, steps = u.shape
    if given.dim() == 2:
        return given.expand(batch, steps, *given.shape)
    return given[..., start : start + steps].permute(0, 3, 1, 2)


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Groups split into as many as the other map has."""
    groups = math.lcm(B.shape[2], C.shape[2])
    B, C = (
        m.repeat_interleave(groups // m.shape[2], 2) if m.shape[2] < groups else m for m in (B, C)
    )
    return B, C
