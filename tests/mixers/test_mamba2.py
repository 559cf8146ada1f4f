"""Facts about Mamba-2: sizes, initialisation, and the paper's equations written out again."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dnassm.block import build_mixer
from dnassm.config import MixerSpec, ModelConfig
from dnassm.errors import ConfigError
from dnassm.mixers.mamba2 import Mamba2, Mamba2Config
from dnassm.model import DNAModel


def make(d_model: int = 8, **options) -> Mamba2:
    torch.manual_seed(1)
    return Mamba2(d_model, Mamba2Config(**options))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def mamba2_of_the_paper(mixer: Mamba2, x: np.ndarray) -> np.ndarray:
    """Section 7 and equation 1 for one sequence (L, D), loops over position, head and channel."""
    w = {name: p.detach().double().numpy() for name, p in mixer.named_parameters()}
    config, inner, heads, width = mixer.config, mixer.d_inner, mixer.heads, mixer.head_dim
    groups, states, taps = config.groups, config.d_state, config.d_conv
    projected = x @ w["in_proj.weight"].T
    gate, before_conv = projected[:, :inner], projected[:, inner:-heads]
    h = np.zeros((heads, width, states))
    A = -np.exp(w["A_log"])
    out = np.zeros_like(x)
    for t in range(len(x)):
        u = w["conv_bias"].copy()
        for k in range(taps):
            source = t - (taps - 1) + k
            if source >= 0:
                u += w["conv_weight"][:, k] * before_conv[source]
        u = silu(u)
        B = u[inner : inner + groups * states].reshape(groups, states)
        C = u[inner + groups * states :].reshape(groups, states)
        delta = np.log1p(np.exp(projected[t, -heads:] + w["dt_bias"]))
        y = np.zeros((heads, width))
        for e in range(heads):
            g = e // (heads // groups)
            for p in range(width):
                channel = u[e * width + p]
                h[e, p] = np.exp(delta[e] * A[e]) * h[e, p] + delta[e] * channel * B[g]
                y[e, p] = h[e, p] @ C[g] + w["D"][e] * channel
        v = (y.reshape(-1) * silu(gate[t])).reshape(groups, -1)
        v = v / np.sqrt((v**2).mean(1, keepdims=True) + 1e-5)
        out[t] = w["out_proj.weight"] @ (v.reshape(-1) * w["norm_weight"])
    return out


@pytest.mark.parametrize(
    "options",
    [{}, {"d_state": 5, "d_conv": 2, "expand": 3, "head_dim": 3, "groups": 4}],
    ids=["defaults", "other"],
)
def test_it_computes_the_equations_of_the_paper(options):
    mixer = make(8, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    x = torch.randn(2, 25, 8, dtype=torch.float64)
    y, _ = mixer(x)
    for row in range(2):
        want = mamba2_of_the_paper(mixer, x[row].numpy())
        np.testing.assert_allclose(y[row].detach().numpy(), want, rtol=1e-10, atol=1e-12)


def test_mamba2_130m_has_the_published_number_of_parameters():
    """128,989,632 in state-spaces/mamba2-130m: d_model 768, 24 layers, 50288 tokens, tied head."""
    with torch.device("meta"):
        letters = {"m": MixerSpec(name="mamba2")}
        config = ModelConfig(d_model=768, pattern="m" * 24, vocab_size=50288, letters=letters)
        model = DNAModel(config)
    assert model.parameter_count() == 128_989_632


@pytest.mark.parametrize(
    ("d_model", "heads", "width"), [(768, 24, 64), (256, 8, 64), (8, 4, 4), (5, 5, 2), (1, 2, 1)]
)
def test_heads_have_64_channels_or_as_many_as_leave_four_heads(d_model, heads, width):
    mixer = make(d_model)
    assert (mixer.heads, mixer.head_dim) == (heads, width)


def test_decay_starts_uniform_from_1_to_16_and_the_skip_as_one():
    mixer = make(512, head_dim=1, d_state=2)
    decay = torch.exp(mixer.A_log.detach())
    assert 1 <= decay.min() < 1.1
    assert 15.9 < decay.max() <= 16
    assert (torch.histc(decay, bins=10, min=1, max=16) / 1024 - 0.1).abs().max() < 0.04
    assert torch.equal(mixer.D, torch.ones(1024))
    assert torch.equal(mixer.norm_weight, torch.ones(1024))


def test_steps_start_log_uniform_between_their_bounds():
    dt = torch.nn.functional.softplus(make(512, head_dim=1, d_state=2).dt_bias).detach()
    assert 1e-3 * 0.999 <= dt.min() < 1.05e-3
    assert 0.095 < dt.max() <= 0.1 * 1.001
    share = (dt.log() - math.log(1e-3)) / math.log(100)
    assert (torch.histc(share, bins=10, min=0, max=1) / 1024 - 0.1).abs().max() < 0.04


def test_a_floor_of_the_steps_makes_every_position_forget():
    free, floored = make(8), make(8, dt_floor=5.0)
    x = torch.randn(1, 6, 8)
    ends = []
    for mixer in (free, floored):
        start = mixer.init_state(1)
        moved = start._replace(ssm=start.ssm + 1)
        ends.append((mixer(x, moved)[1].ssm - mixer(x, start)[1].ssm).abs().max())
    assert ends[0] > 1e-3
    assert ends[1] < 1e-6


def test_what_sets_scales_is_not_decayed():
    marked = {n for n, p in make().named_parameters() if getattr(p, "no_weight_decay", False)}
    assert marked == {"A_log", "D", "dt_bias", "norm_weight"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_stat": 8}, r"no setting d_stat; have d_state, .*Did you mean 'd_state'\?"),
        ({"d_state": 0}, "d_state: .*greater than or equal to 1, got 0"),
        ({"d_conv": 1}, "d_conv: .*greater than or equal to 2"),
        ({"dt_min": 1.0}, "dt_min 1.0 is above dt_max 0.1"),
        ({"A_max": 0.5}, "A_min 1.0 is above A_max 0.5"),
        ({"head_dim": 3}, r"head_dim must divide expand \* d_model = 16 .*got 3"),
        ({"groups": 3}, "groups must divide the 4 heads .*got 3"),
    ],
)
def test_an_option_that_makes_no_sense_is_named(options, message):
    with pytest.raises(ConfigError, match=f"^mixer mamba2: .*{message}"):
        build_mixer(MixerSpec(name="mamba2", options=options), 8)


def test_a_model_in_bf16_keeps_its_long_memory_in_float32():
    mixer = make().bfloat16()
    y, state = mixer(torch.randn(1, 5, 8, dtype=torch.bfloat16))
    assert (y.dtype, state.ssm.dtype) == (torch.bfloat16, torch.float32)
    assert [part.dtype for part in mixer.init_state(1)] == [part.dtype for part in state]
