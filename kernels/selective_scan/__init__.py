"""Selective scan (S6): the recurrence of Mamba, with states in and out.

The one public function checks its arguments and hands them to a backend; every backend computes
what `reference` computes, so that choosing one changes speed and never meaning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.backends import Backends, without_autocast

BACKENDS = Backends(__name__)


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute y[t] = (C[t] h[t] + D x[t]) silu(z[t]), h[t] = exp(d[t] A) h[t-1] + d[t] B[t] x[t].

    Here d = softplus(dt + dt_bias). B and C are shared by the D/G channels of a group.

    Args:
        x: (B, L, D) input.
        dt: (B, L, D) step size, before bias and softplus.
        A: (D, N) continuous-time decay, negative for a stable scan, float32 or float64.
        B: (B, L, G, N) input map, G divides D.
        C: (B, L, G, N) output map.
        D: (D,) skip connection.
        z: (B, L, D) gate.
        dt_bias: (D,) added to dt before the softplus.
        dt_softplus: False takes dt + dt_bias as it is.
        initial_state: (B, D, N) state before position 0; zeros when None.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        y (B, L, D) in the dtype of x, and the state (B, D, N) after position L-1 in the dtype of A.
        Both carry gradients to every tensor argument.

    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        BackendError: the backend asked for cannot run here.

    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2 and section 3.3.2.
    """
    _check_core(x, dt, A, B, C)
    batch, length, channels = x.shape
    optional = {
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "dt_bias": (dt_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, A.shape[1])),
    }
    for name, (tensor, shape) in optional.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"selective_scan: {name} must be {shape}, got {tuple(tensor.shape)}")
    given = {name: tensor for name, (tensor, _) in optional.items()}
    _check_kind(x.device, {"x": x, "dt": dt, "A": A, "B": B, "C": C, **given})
    chosen = BACKENDS.choose(backend, (x, dt, A, B, C))
    with without_autocast(x.device):
        result: tuple[Tensor, Tensor] = chosen.scan(
            x, dt, A, B, C, D, z, dt_bias, dt_softplus, initial_state
        )
    return result


def selective_scan_step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = True,
) -> tuple[Tensor, Tensor]:
    """Advance the scan by one position: the shapes of `selective_scan` without L.

    Args:
        x: (B, D) input.
        dt: (B, D) step size.
        A: (D, N) decay.
        B: (B, G, N) input map.
        C: (B, G, N) output map.
        state: (B, D, N) state before this position; not changed.
        D: (D,) skip connection.
        z: (B, D) gate.
        dt_bias: (D,) bias of dt.
        dt_softplus: as in `selective_scan`.

    Returns:
        y (B, D) and the next state (B, D, N).
    """
    y, following = selective_scan(
        x[:, None],
        dt[:, None],
        A,
        B[:, None],
        C[:, None],
        D=D,
        z=None if z is None else z[:, None],
        dt_bias=dt_bias,
        dt_softplus=dt_softplus,
        initial_state=state,
    )
    return y[:, 0], following


def _check_core(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    if x.dim() != 3 or 0 in x.shape:
        raise ShapeError(
            f"selective_scan: x must be (B, L, D), none of them 0, got {tuple(x.shape)}"
        )
    batch, length, channels = x.shape
    if dt.shape != x.shape:
        raise ShapeError(
            f"selective_scan: dt must be {tuple(x.shape)} like x, got {tuple(dt.shape)}"
        )
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] == 0:
        raise ShapeError(
            f"selective_scan: A must be (D, N) with D = {channels} and N > 0, got {tuple(A.shape)}"
        )
    if A.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"selective_scan: A must be float32 or float64, the dtype of the state, got {A.dtype}"
        )
    states = A.shape[1]
    for name, tensor in (("B", B), ("C", C)):
        fits = tensor.dim() == 4 and tensor.shape[:2] == x.shape[:2] and tensor.shape[3] == states
        if not fits or tensor.shape[2] == 0 or channels % tensor.shape[2]:
            raise ShapeError(
                f"selective_scan: {name} must be (B, L, G, N) = ({batch}, {length}, G, {states}) "
                f"with G a divisor of {channels}, got {tuple(tensor.shape)}"
            )
    if B.shape != C.shape:
        raise ShapeError(
            f"selective_scan: B and C must share a shape, got {tuple(B.shape)}, {tuple(C.shape)}"
        )


def _check_kind(device: torch.device, tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.device != device:
            raise ShapeError(f"selective_scan: {name} is on {tensor.device}, x on {device}")
        if not tensor.is_floating_point():
            raise ShapeError(f"selective_scan: {name} must be floating point, got {tensor.dtype}")
