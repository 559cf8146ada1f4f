"""Cross entropy of a linear head over a small vocabulary; the (tokens, V) logits are never stored.

The public function checks shapes and calls an operator of torch, which hands it to a backend; every
one computes what `reference` computes, so that choosing one changes speed and never meaning.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dnassm.errors import ConfigError, ShapeError
from dnassm.kernels.linear_cross_entropy import op

BACKENDS = op.BACKENDS

Reduction = Literal["mean", "sum", "none"]


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    check: bool = True,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Compute -w log softmax(weight hidden + bias)[target] in nats, and how much was counted.

    Args:
        hidden: (..., D), any leading axes, any strides.
        weight: (V, D).
        targets: (...) int64, 0..V-1, or `ignore_index` where nothing is asked.
        bias: (V,).
        ignore_index: target of a token that has no loss and gives no gradient.
        weights: (...) floating, how much each token counts, 0 or more; None counts each as 1.
            What is ignored weighs nothing.
        label_smoothing: share of the target, in [0, 1], spread evenly over all V.
        reduction: "mean" divides the weighted sum by the sum of the weights of what is not
            ignored, and is 0, with gradients of 0, where that is 0; "sum"; or "none": (...), 0
            where ignored.
        check: look for targets that are out of range. On a GPU that waits for the device; without
            it, and while a CUDA graph is captured, their loss is NaN. On a CPU they are looked at.
        backend: "auto" or a name in ``BACKENDS.all()``.

    Returns:
        The loss in float32, float64 if hidden is, with gradients of hidden, weight, bias and
        weights; and by what "mean" divides: the number of targets, int64, or with `weights` the
        sum of theirs, in the dtype of the loss.

    Raises:
        ShapeError: a shape, dtype or device does not fit, or a target is out of range; the message
            names it.
        ConfigError: an option has no such value.
        BackendError: the backend asked for cannot run here.
    """
    _check(hidden, weight, targets, {"bias": bias, "weights": weights})
    if not 0 <= label_smoothing <= 1:
        raise ConfigError(
            f"linear_cross_entropy: label_smoothing must be in [0, 1], got {label_smoothing}"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ConfigError(
            f'linear_cross_entropy: reduction must be "mean", "sum" or "none", got {reduction!r}'
        )
    losses: Tensor
    given = (hidden, weight, bias, targets, ignore_index, label_smoothing)
    losses, _ = op.losses(*given, backend, check)
    counted = targets != ignore_index
    count = counted.sum()
    if weights is not None:
        weighed = weights.to(losses.dtype).where(counted, 0.0)
        losses, count = losses * weighed, weighed.sum()
    if reduction == "none":
        return losses, count
    total = losses.sum()
    return total / count.where(count != 0, 1) if reduction == "mean" else total, count


def _check(
    hidden: Tensor, weight: Tensor, targets: Tensor, others: dict[str, Tensor | None]
) -> None:
    if hidden.dim() == 0 or 0 in hidden.shape:
        raise _wrong("hidden must be (..., D), none of them 0", hidden)
    width, leading = hidden.shape[-1], hidden.shape[:-1]
    if weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0:
        raise _wrong(f"weight must be (V, D) = (V, {width})", weight)
    if targets.shape != leading:
        raise _wrong(f"targets must be {tuple(leading)}", targets)
    if targets.dtype != torch.int64:
        raise ShapeError(f"linear_cross_entropy: targets must be int64, got {targets.dtype}")
    shapes = {"bias": weight.shape[:1], "weights": leading}
    for name, tensor in {"hidden": hidden, "weight": weight, "targets": targets, **others}.items():
        if tensor is None:
            continue
        if name in shapes and tensor.shape != shapes[name]:
            raise _wrong(f"{name} must be {tuple(shapes[name])}", tensor)
        if tensor.device != hidden.device:
            raise ShapeError(
                f"linear_cross_entropy: {name} is on {tensor.device}, hidden on {hidden.device}"
            )
        if name != "targets" and not tensor.is_floating_point():
            raise ShapeError(
                f"linear_cross_entropy: {name} must be floating point, got {tensor.dtype}"
            )


def _wrong(expected: str, tensor: Tensor) -> ShapeError:
    return ShapeError(f"linear_cross_entropy: {expected}, got {tuple(tensor.shape)}")
