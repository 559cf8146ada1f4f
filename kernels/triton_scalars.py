"""Functions of one number that the Triton kernels of several ops share.

Their names begin with an underscore since kernels have variables called decay and softplus.
Imported by the first call that runs a kernel, not with dnassm.
"""

# Triton's language, not Python: it reads no annotations.
# ruff: noqa: ANN001, ANN202
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _decay(exponent):
    """exp; near 1, where errors add up over a long memory, rounded to nearest."""
    near = 1.0 + exponent * (1.0 + exponent * (0.5 + exponent * 0.16666667))
    return tl.where(tl.abs(exponent) < 0.015625, near, tl.exp(exponent))


@triton.jit
def _softplus(raw):
    """log(1 + exp(raw)); for a small u = exp(raw) as log(w) u / (w - 1), w = 1 + u rounded."""
    u = tl.exp(tl.where(raw > 20.0, 0.0, raw))
    w = 1.0 + u
    lost = w == 1.0
    log1p = tl.log(w) * (u / tl.where(lost, 1.0, w - 1.0))
    return tl.where(raw > 20.0, raw, tl.where(lost, u, log1p))


@triton.jit
def _softplus_slope(raw):
    u = tl.exp(tl.where(raw > 20.0, 0.0, raw))
    return tl.where(raw > 20.0, 1.0, u / (1.0 + u))


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))
