"""Causal depthwise convolution over (B, L, D), with the last inputs carried as its state."""

from __future__ import annotations

from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.backends import Backends, without_autocast

BACKENDS = Backends(__name__)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    silu: bool = False,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute y[t] = bias + sum_k weight[k] x[t - K + 1 + k] per channel, then SiLU if asked for.

    Args:
        x: (B, L, D) input.
        weight: (D, K); the last column meets the present position.
        bias: (D,).
        silu: apply y * sigmoid(y) to the result.
        initial_state: (B, K-1, D) the inputs before position 0; zeros when None.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        y (B, L, D), and the state (B, K-1, D): the last K-1 inputs. Both carry gradients.

    Raises:
        ShapeError: a shape, dtype or device does not fit; the message names the argument.
        BackendError: the backend asked for cannot run here.
    """
    if x.dim() != 3 or 0 in x.shape:
        raise ShapeError(
            f"causal_conv1d: x must be (B, L, D), none of them 0, got {tuple(x.shape)}"
        )
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ShapeError(
            f"causal_conv1d: weight must be (D, K) = ({channels}, K), got {tuple(weight.shape)}"
        )
    optional = {
        "bias": (bias, (channels,)),
        "initial_state": (initial_state, (batch, weight.shape[1] - 1, channels)),
    }
    for name, (tensor, shape) in optional.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeError(f"causal_conv1d: {name} must be {shape}, got {tuple(tensor.shape)}")
    tensors = {"x": x, "weight": weight, "bias": bias, "initial_state": initial_state}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            raise ShapeError(f"causal_conv1d: {name} is on {tensor.device}, x on {x.device}")
        if tensor is not None and not tensor.is_floating_point():
            raise ShapeError(f"causal_conv1d: {name} must be floating point, got {tensor.dtype}")
    chosen = BACKENDS.choose(backend, (x, weight))
    with without_autocast(x.device):
        result: tuple[Tensor, Tensor] = chosen.conv(x, weight, bias, silu, initial_state)
    return result


def causal_conv1d_step(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, *, silu: bool = False
) -> tuple[Tensor, Tensor]:
    """Advance by one position: x (B, D), state (B, K-1, D) -> y (B, D) and the next state."""
    y, following = causal_conv1d(x[:, None], weight, bias, silu=silu, initial_state=state)
    return y[:, 0], following
