"""Facts about S4D: initialisation, and its convolution against dense matrix exponentials."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from dnassm.block import build_mixer
from dnassm.config import MixerSpec
from dnassm.errors import ConfigError
from dnassm.mixers import s4d
from dnassm.mixers.s4d import S4D, S4DConfig


def make(d_model: int = 4, **options) -> S4D:
    torch.manual_seed(1)
    return S4D(d_model, S4DConfig(**options))


def dense_system(mixer: S4D, channel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One channel as a real system h' = A h + B x, y = C h: a rotation block per complex pair."""
    real = -np.exp(mixer.A_log_real.detach().numpy()[channel])
    imag = mixer.A_imag.detach().numpy()[channel]
    A = scipy.linalg.block_diag(*([[a, -b], [b, a]] for a, b in zip(real, imag, strict=True)))
    B = np.tile([1.0, 0.0], len(real))
    c = mixer.C.detach().numpy()[channel]
    C = 2 * np.stack([c[:, 0], -c[:, 1]], axis=1).ravel()  # 2 Re(c h)
    return A, B, C


def before_the_output_map(mixer: S4D, x: np.ndarray) -> np.ndarray:
    """y of h' = A h + B x held constant over a step, (L, D): expm of [[A, B], [0, 0]] dt."""
    y = np.zeros_like(x)
    for channel in range(x.shape[1]):
        A, B, C = dense_system(mixer, channel)
        size, dt = len(B), math.exp(mixer.log_dt[channel].item())
        augmented = np.zeros((size + 1, size + 1))
        augmented[:size, :size], augmented[:size, size] = A, B
        step = scipy.linalg.expm(augmented * dt)
        h = np.zeros(size)
        for t, value in enumerate(x[:, channel]):
            h = step[:size, :size] @ h + step[:size, size] * value
            y[t, channel] = C @ h + mixer.D[channel].item() * value
    return y


def gelu_and_glu(mixer: S4D, y: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf)
    activated = y * 0.5 * (1 + erf(y / math.sqrt(2)))
    weight, bias = (p.detach().numpy() for p in mixer.out_proj.parameters())
    value, gate = np.split(activated @ weight.T + bias, 2, axis=-1)
    return value / (1 + np.exp(-gate))


@pytest.mark.parametrize("states", [2, 16])
def test_it_computes_the_held_system_by_dense_matrix_exponentials(states):
    mixer = make(d_state=states, dt_min=0.01, dt_max=0.5).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(1, 60, 4, dtype=torch.float64)
    want = gelu_and_glu(mixer, before_the_output_map(mixer, x[0].numpy()))
    np.testing.assert_allclose(mixer(x)[0][0].detach().numpy(), want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("piece", [1, 7, 16, 33])
def test_the_pieces_a_long_input_is_cut_into_do_not_show(monkeypatch, piece):
    mixer = make().double()
    x = torch.randn(2, 33, 4, dtype=torch.float64)
    want, end = mixer(x)
    monkeypatch.setattr(s4d, "_PIECE", piece)
    y, state = mixer(x)
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state.ssm, end.ssm, rtol=1e-10, atol=1e-12)


def test_pieces_share_one_vandermonde_matrix(monkeypatch):
    """Training memory would otherwise grow by D*N/2 complex numbers per position."""
    monkeypatch.setattr(s4d, "_PIECE", 64)
    mixer = make(16)
    sizes = {}
    for length in (256, 512):
        saved = {}

        def keep(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y, _ = mixer(torch.randn(1, length, 16))
        sizes[length] = sum(saved.values())
        del y
    vandermonde = 16 * 32 * 256 * 8
    assert sizes[512] - sizes[256] < vandermonde / 2


def test_eigenvalues_start_at_minus_one_half_plus_i_pi_n():
    mixer = make(d_state=8)
    A = torch.complex(-torch.exp(mixer.A_log_real), mixer.A_imag).detach()
    want = torch.tensor([complex(-0.5, math.pi * n) for n in range(4)])
    torch.testing.assert_close(A, want.expand(4, 4))


def test_steps_start_between_their_bounds():
    dt = torch.exp(make(2048).log_dt)
    assert 1e-3 * 0.999 <= dt.min() < 1.1e-3
    assert 0.09 < dt.max() <= 0.1 * 1.001


def test_the_system_is_not_decayed_but_the_output_map_is():
    marked = {n for n, p in make().named_parameters() if getattr(p, "no_weight_decay", False)}
    assert marked == {"log_dt", "A_log_real", "A_imag", "C", "D"}


@pytest.mark.parametrize(("d_model", "states"), [(4, 64), (10, 6)])
def test_the_number_of_parameters_is_the_formula(d_model, states):
    want = d_model * (1 + states // 2 * 4 + 1) + d_model * 2 * d_model + 2 * d_model
    mixer = make(d_model, d_state=states)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == want


def test_small_steps_keep_their_digits_in_float32():
    """exp(dt A) - 1 at dt A = 5e-4 has four digits in float32 when computed as written."""
    mixer = make(d_state=2, dt_min=1e-3, dt_max=1e-3)
    _, C = mixer._discrete()
    _, want = mixer.double()._discrete()
    assert ((C - want).abs() / want.abs()).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 7}, "d_state: .*multiple of 2, got 7"),
        ({"states": 8}, "no setting states; have d_state"),
        ({"dt_max": 1e-4}, "dt_min 0.001 is above dt_max 0.0001"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options, message):
    with pytest.raises(ConfigError, match=f"^mixer s4d: .*{message}"):
        build_mixer(MixerSpec(name="s4d", options=options), 8)
