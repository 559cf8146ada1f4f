"""Facts about Mamba: sizes, initialisation, and the paper's equations written out a second time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dnassm.block import build_mixer
from dnassm.config import MixerSpec, ModelConfig
from dnassm.errors import ConfigError
from dnassm.mixers.mamba import Mamba, MambaConfig
from dnassm.model import DNAModel


def make(d_model: int = 8, **options) -> Mamba:
    torch.manual_seed(1)
    return Mamba(d_model, MambaConfig(**options))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mamba_of_the_paper(mixer: Mamba, x: np.ndarray) -> np.ndarray:
    """Figure 3 and algorithm 2 for one sequence (L, D), loops over position, channel and state."""
    w = {name: p.detach().double().numpy() for name, p in mixer.named_parameters()}
    length, inner, states = len(x), mixer.d_inner, mixer.config.d_state
    rank, taps = mixer.dt_rank, mixer.config.d_conv
    projected = x @ w["in_proj.weight"].T
    before_conv, gate = projected[:, :inner], projected[:, inner:]
    h = np.zeros((inner, states))
    A = -np.exp(w["A_log"])
    out = np.zeros_like(x)
    for t in range(length):
        u = w["conv_bias"].copy()
        for k in range(taps):
            source = t - (taps - 1) + k
            if source >= 0:
                u += w["conv_weight"][:, k] * before_conv[source]
        u = silu(u)
        selected = w["x_proj.weight"] @ u
        low_rank, B, C = selected[:rank], selected[rank : rank + states], selected[rank + states :]
        delta = np.log1p(np.exp(w["dt_proj.weight"] @ low_rank + w["dt_bias"]))
        y = np.zeros(inner)
        for e in range(inner):
            for n in range(states):
                h[e, n] = np.exp(delta[e] * A[e, n]) * h[e, n] + delta[e] * B[n] * u[e]
                y[e] += C[n] * h[e, n]
            y[e] += w["D"][e] * u[e]
        out[t] = w["out_proj.weight"] @ (y * silu(gate[t]))
    return out


@pytest.mark.parametrize(
    "options", [{}, {"d_state": 5, "d_conv": 2, "expand": 3, "dt_rank": 3}], ids=["paper", "other"]
)
def test_it_computes_the_equations_of_the_paper(options):
    mixer = make(8, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 25, 8, dtype=torch.float64)
    y, _ = mixer(x)
    for row in range(2):
        want = mamba_of_the_paper(mixer, x[row].numpy())
        np.testing.assert_allclose(y[row].detach().numpy(), want, rtol=1e-10, atol=1e-12)


def test_mamba_130m_has_the_published_number_of_parameters():
    """129,135,360 in state-spaces/mamba-130m: d_model 768, 24 layers, 50280 tokens, tied head."""
    with torch.device("meta"):
        model = DNAModel(ModelConfig(d_model=768, pattern="m" * 24, vocab_size=50280))
    assert model.parameter_count() == 129_135_360


@pytest.mark.parametrize(("d_model", "states", "taps", "expand"), [(8, 16, 4, 2), (20, 3, 2, 3)])
def test_the_number_of_parameters_is_the_formula(d_model, states, taps, expand):
    inner, rank = expand * d_model, math.ceil(d_model / 16)
    want = (
        d_model * 2 * inner  # in_proj
        + inner * taps
        + inner  # convolution
        + inner * (rank + 2 * states)  # x_proj
        + rank * inner
        + inner  # dt
        + inner * states  # A
        + inner  # D
        + inner * d_model  # out_proj
    )
    mixer = make(d_model, d_state=states, d_conv=taps, expand=expand)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == want


def test_decay_starts_as_minus_one_to_minus_n_and_the_skip_as_one():
    mixer = make(d_state=16)
    torch.testing.assert_close(-torch.exp(mixer.A_log)[3], -torch.arange(1.0, 17))
    assert torch.equal(mixer.D, torch.ones(16))


def test_steps_start_log_uniform_between_their_bounds():
    mixer = make(2048)
    dt = torch.nn.functional.softplus(mixer.dt_bias).detach()
    assert 1e-3 * 0.999 <= dt.min() < 1.02e-3
    assert 0.1 * 0.98 < dt.max() <= 0.1 * 1.001
    share = (dt.log() - math.log(1e-3)) / math.log(100)
    histogram = torch.histc(share, bins=10, min=0, max=1) / len(dt)
    # 4096 draws: a tenth of them is 410 +- 19.
    assert (histogram - 0.1).abs().max() < 0.025
    assert torch.equal(dt, dt.sort().values)


def test_steps_follow_their_options():
    dt = torch.nn.functional.softplus(make(64, dt_min=0.5, dt_max=0.5).dt_bias)
    torch.testing.assert_close(dt, torch.full_like(dt, 0.5))


def test_decay_skip_and_step_bias_are_not_decayed():
    marked = {n for n, p in make().named_parameters() if getattr(p, "no_weight_decay", False)}
    assert marked == {"A_log", "D", "dt_bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_stat": 8}, r"no setting d_stat; have d_state, .*Did you mean 'd_state'\?"),
        ({"d_state": 0}, "d_state: .*greater than or equal to 1, got 0"),
        ({"d_state": 257}, "d_state: .*less than or equal to 256, got 257"),
        ({"d_conv": 1}, "d_conv: .*greater than or equal to 2"),
        ({"expand": "two"}, "expand: .*integer.*got 'two'"),
        ({"dt_min": float("nan")}, "dt_min: "),
        ({"dt_min": 1.0}, "dt_min 1.0 is above dt_max 0.1"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options, message):
    with pytest.raises(ConfigError, match=f"^mixer mamba: .*{message}"):
        build_mixer(MixerSpec(name="mamba", options=options), 8)


def test_a_model_in_bf16_keeps_its_long_memory_in_float32():
    mixer = make().bfloat16()
    y, state = mixer(torch.randn(1, 5, 8, dtype=torch.bfloat16))
    assert (y.dtype, state.ssm.dtype) == (torch.bfloat16, torch.float32)
    assert [part.dtype for part in mixer.init_state(1)] == [part.dtype for part in state]
