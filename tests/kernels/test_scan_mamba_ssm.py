"""`selective_scan_fn` is the mathematics that mamba_ssm's function of that name stands for."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dnassm.errors import ShapeError
from dnassm.kernels.selective_scan import mamba_ssm, selective_scan_fn

BATCH, CHANNELS, STATES, LENGTH = 2, 4, 3, 11
FORMS = {"constant": 0, "one map": 1, "groups": 2, "a group per channel": 4}


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def maps(form: str, seed: int, *, is_complex: bool) -> Tensor:
    if form == "constant":
        kind = torch.complex128 if is_complex else torch.float64
        return random(CHANNELS, STATES, seed=seed, dtype=kind)
    last = LENGTH * (2 if is_complex else 1)
    if form == "one map":
        return random(BATCH, STATES, last, seed=seed)
    return random(BATCH, FORMS[form], STATES, last, seed=seed)


def inputs(B: str, C: str, *, is_complex: bool, bare: bool = False) -> dict[str, Tensor]:
    kind = torch.complex128 if is_complex else torch.float64
    A = random(CHANNELS, STATES, seed=3, dtype=kind)
    A = -A.abs() if not is_complex else torch.complex(-A.real.abs(), A.imag)
    given = {
        "u": random(BATCH, CHANNELS, LENGTH, seed=1),
        "delta": random(BATCH, CHANNELS, LENGTH, seed=2) * 0.3,
        "A": A,
        "B": maps(B, 4, is_complex=is_complex),
        "C": maps(C, 5, is_complex=is_complex),
    }
    if not bare:
        given["D"], given["delta_bias"] = random(2, CHANNELS, seed=6)
        given["z"] = random(BATCH, CHANNELS, LENGTH, seed=7)
    return given


def everywhere(values: Tensor, *, is_complex: bool) -> Tensor:
    """B or C for every row, channel, state and position, whatever its form."""
    if values.dim() == 2:
        return values[None, :, :, None].expand(BATCH, -1, -1, LENGTH)
    if is_complex:
        values = torch.complex(values[..., 0::2], values[..., 1::2])
    if values.dim() == 3:
        return values[:, None].expand(-1, CHANNELS, -1, -1)
    group_of = torch.arange(CHANNELS) * values.shape[1] // CHANNELS
    return values[:, group_of]


def expected(given: dict[str, Tensor], *, softplus: bool) -> tuple[Tensor, Tensor]:
    """Term by term: a state is the sum of all inputs so far, each times the decay since then."""
    is_complex = given["A"].is_complex()
    B, C = (everywhere(given[name], is_complex=is_complex) for name in ("B", "C"))
    step = given["delta"]
    if "delta_bias" in given:
        step = step + given["delta_bias"][:, None]
    if softplus:
        step = torch.log1p(torch.exp(step))
    passed = step.cumsum(-1)
    since = (passed[..., :, None] - passed[..., None, :])[:, :, None]  # (B, D, 1, now, then)
    weight = torch.exp(since * given["A"][:, :, None, None]).tril()
    states = weight @ (B * (step * given["u"])[:, :, None]).unsqueeze(-1)
    states = states.squeeze(-1)
    y = (C * states).sum(2)
    out = 2 * y.real if is_complex else y
    if "D" in given:
        out = out + given["D"][:, None] * given["u"]
    if "z" in given:
        out = out * given["z"] / (1 + torch.exp(-given["z"]))
    return out, states[..., -1]


PAIRS = list(itertools.product(FORMS, FORMS))


def compared(given: dict[str, Tensor], *, softplus: bool) -> None:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    want = expected(leaves, softplus=softplus)
    weights = [random(*w.shape, seed=8, dtype=w.dtype) for w in want]
    torch.autograd.backward(want, weights)
    others = {name: tensor.clone().requires_grad_() for name, tensor in given.items()}
    got = selective_scan_fn(**others, delta_softplus=softplus, return_last_state=True)
    torch.autograd.backward(got, weights)
    for found, right in zip(got, want, strict=True):
        assert found.dtype == right.dtype
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    for name in given:
        torch.testing.assert_close(
            others[name].grad, leaves[name].grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize(("B", "C"), PAIRS)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_results_and_gradients_are_those_of_the_sums(B, C, is_complex):
    compared(inputs(B, C, is_complex=is_complex), softplus=True)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_optional_arguments_may_be_missing(is_complex, softplus):
    compared(inputs("one map", "groups", is_complex=is_complex, bare=True), softplus=softplus)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_constant_maps_are_scanned_piece_by_piece(monkeypatch, is_complex, steps):
    monkeypatch.setattr(mamba_ssm, "_PIECE", steps * BATCH * CHANNELS * STATES)
    compared(inputs("constant", "groups", is_complex=is_complex), softplus=True)


@pytest.mark.parametrize("backend_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_complex", [False, True], ids=["real", "complex"])
def test_narrow_input_keeps_its_dtype_and_a_wide_state(is_complex, backend_dtype):
    given = inputs("one map", "one map", is_complex=is_complex)
    narrow = {n: t.to(backend_dtype) for n, t in given.items() if n not in ("A", "D", "delta_bias")}
    narrow["A"] = given["A"].to(torch.complex64 if is_complex else torch.float32)
    narrow |= {n: given[n].float() for n in ("D", "delta_bias")}
    out, state = selective_scan_fn(**narrow, delta_softplus=True, return_last_state=True)
    assert out.dtype == backend_dtype
    assert state.dtype == narrow["A"].dtype
    exact = {
        n: t.to(torch.complex128 if t.is_complex() else torch.float64) for n, t in narrow.items()
    }
    want, end = expected(exact, softplus=True)
    rounding = 4e-3 if backend_dtype == torch.bfloat16 else 1e-6
    assert (out - want).norm() <= rounding * want.norm()
    assert (state - end).norm() <= 1e-6 * end.norm()


def test_only_what_is_asked_for_is_returned():
    given = inputs("one map", "one map", is_complex=False)
    out = selective_scan_fn(**given)
    assert isinstance(out, Tensor)
    assert out.shape == given["u"].shape


def test_positional_arguments_are_in_the_order_of_mamba_ssm():
    given = inputs("groups", "groups", is_complex=False)
    order = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    by_place = selective_scan_fn(*[given[name] for name in order], True, True)
    by_name = selective_scan_fn(**given, delta_softplus=True, return_last_state=True)
    assert all(torch.equal(a, b) for a, b in zip(by_place, by_name, strict=True))


def test_a_layer_of_constant_maps_is_a_convolution():
    """With constant steps the scan is a convolution with sum_n C exp(t d A) d B: another road."""
    A, B, C = (random(CHANNELS, STATES, seed=s) for s in (1, 2, 3))
    u, d = random(1, CHANNELS, LENGTH, seed=4), 0.2
    time = torch.arange(LENGTH, dtype=torch.float64)
    kernel = (torch.exp(-A.abs()[..., None] * d * time) * (d * B * C)[..., None]).sum(1)
    want = F.conv1d(F.pad(u, (LENGTH - 1, 0)), kernel.flip(1)[:, None], groups=CHANNELS)
    got = selective_scan_fn(u, torch.full_like(u, d), -A.abs(), B, C)
    torch.testing.assert_close(got, want)


BAD = {
    "u": [r"u must be \(B, D, L\)", lambda t: t[0]],
    "u of nothing": [r"u must be \(B, D, L\), none of them 0", lambda t: t[..., :0]],
    "delta": [r"delta must be \(2, 4, 11\), got \(2, 4, 10\)", lambda t: t[..., 1:]],
    "A": [r"A must be \(D, N\) with D = 4", lambda t: t[1:]],
    "A of integers": ["A must be floating point or complex", lambda t: t.long()],
    "B": [r"B must be \(D, N\) = \(4, 3\), \(2, 3, 11\) or \(2, G, 3, 11\)", lambda t: t[:, :, 1:]],
    "B of integers": ["B must be floating point", lambda t: t.long()],
    "C": [r"C must be .*with G a divisor of 4, got \(2, 3, 3, 11\)", lambda t: t[:, [0, 1, 1]]],
    "C complex": ["C must be floating point", lambda t: t.to(torch.complex128)],
    "D": [r"D must be \(4,\), got \(3,\)", lambda t: t[1:]],
    "z": [r"z must be \(2, 4, 11\)", lambda t: t[:1]],
    "z elsewhere": ["z must be floating point on cpu, got .* on meta", lambda t: t.to("meta")],
    "delta_bias": [r"delta_bias must be \(4,\)", lambda t: t[None]],
}


@pytest.mark.parametrize(("message", "spoil"), BAD.values(), ids=BAD)
def test_a_bad_argument_is_named(request, message, spoil):
    name = request.node.callspec.id.split(" ")[0]
    given = inputs("groups", "groups", is_complex=False)
    given[name] = spoil(given[name])
    with pytest.raises(ShapeError, match=f"^selective_scan_fn: {message}"):
        selective_scan_fn(**given)
