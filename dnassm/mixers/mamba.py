"""Mamba: a gated selective state space model (S6) behind a short causal convolution."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from dnassm.kernels.mamba_inner import Walk, mamba_inner, mamba_inner_step
from dnassm.mixer import MIXERS, SequenceMixer, Streaming


class MambaConfig(BaseModel):
    """Sizes of a Mamba mixer; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    d_state: int = Field(16, ge=1, le=256, description="states N per channel")
    d_conv: int = Field(4, ge=2, le=64, description="taps of the causal convolution")
    expand: int = Field(2, ge=1, le=16, description="inner width over model width")
    dt_rank: int | None = Field(
        None, ge=1, le=1 << 16, description="rank of the step size; D/16 when None"
    )
    dt_min: float = Field(1e-3, gt=0, description="smallest initial step size")
    dt_max: float = Field(1e-1, gt=0, description="largest initial step size")

    @model_validator(mode="after")
    def _steps_are_a_range(self) -> MambaConfig:
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min {self.dt_min} is above dt_max {self.dt_max}")
        return self


class MambaState(NamedTuple):
    """What Mamba remembers between positions."""

    conv: Tensor
    """(B, K-1, E) last inputs of the convolution."""
    ssm: Tensor
    """(B, E, N) state of the scan."""


@MIXERS.register("mamba")
class Mamba(SequenceMixer):
    """y = W_out [scan(silu(conv(x'))) silu(z)], [x', z] = W_in x; dt, B, C depend on the input."""

    source: ClassVar[str] = "Gu and Dao 2023, arXiv:2312.00752, section 3.4 and figure 3"
    causal: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "exact"
    Config: ClassVar[type] = MambaConfig

    def __init__(self, d_model: int, config: MambaConfig) -> None:
        super().__init__()
        self.config = config
        self.d_inner = config.expand * d_model
        self.dt_rank = config.dt_rank or math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.d_inner, config.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(self.d_inner))
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * config.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.d_inner))
        self.A_log = nn.Parameter(torch.empty(self.d_inner, config.d_state))
        self.D = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as section 3.6 and appendix E.2 of the paper: S4D-Real A, dt log-uniform.

        The steps lie in ascending order along the channels.
        """
        bound = 1 / math.sqrt(self.config.d_conv)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        low, high = math.log(self.config.dt_min), math.log(self.config.dt_max)
        with torch.no_grad():
            # Channels are exchangeable. In order of their steps, those that a kernel walks side by
            # side forget at the same time, and what is forgotten is left (selective_scan, cuda).
            share = torch.rand(self.d_inner).sort().values
            dt = torch.exp(share * (high - low) + low).clamp(min=1e-4)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
            self.A_log.copy_(torch.log(torch.arange(1.0, self.config.d_state + 1)))
            self.D.fill_(1.0)
        for parameter in (self.A_log, self.D, self.dt_bias):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Tensor,
        state: MambaState | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, MambaState]:
        """(B, L, D) -> (B, L, D), and the state after the last position of every sequence."""
        y, ((conv_state, ssm_state),) = mamba_inner(
            x,
            self.in_proj.weight,
            self.out_proj.weight,
            self._walk(self.constants(), state),
            cu_seqlens=cu_seqlens,
            return_state=True,
        )
        return y, MambaState(conv_state, ssm_state)

    def _walk(self, A: Tensor, state: MambaState | None) -> Walk:
        """What lies between the projections in and out, and the state before it."""
        return Walk(
            conv_weight=self.conv_weight,
            x_weight=self.x_proj.weight,
            dt_weight=self.dt_proj.weight,
            A=A,
            conv_bias=self.conv_bias,
            dt_bias=self.dt_bias,
            D=self.D,
            conv_state=None if state is None else state.conv,
            ssm_state=None if state is None else state.ssm,
        )

    def step(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """(B, D) -> (B, D), and the next state."""
        return self._stepped(x, state, in_place=False)

    def advance(self, x: Tensor, state: MambaState) -> tuple[Tensor, MambaState]:
        """The same, the next state written over `state` where a kernel does so."""
        return self._stepped(x, state, in_place=True)

    def _stepped(
        self, x: Tensor, state: MambaState, *, in_place: bool
    ) -> tuple[Tensor, MambaState]:
        walk = self._walk(self._constants(), state)
        y, after = mamba_inner_step(
            x, self.in_proj.weight, self.out_proj.weight, walk, in_place=in_place
        )
        return y, MambaState(*after)

    def constants(self) -> Tensor:
        """A of the scan."""
        return -torch.exp(self.A_log.to(_at_least_float32(self.A_log)))

    def init_state(self, batch: int) -> MambaState:
        """All zeros."""
        weight = self.conv_weight
        return MambaState(
            weight.new_zeros(batch, self.config.d_conv - 1, self.d_inner),
            torch.zeros(
                (batch, *self.A_log.shape),
                dtype=_at_least_float32(self.A_log),
                device=self.A_log.device,
            ),
        )


def _at_least_float32(parameter: Tensor) -> torch.dtype:
    """Dtype of A and of the state: they lose long memory when a model is cast to bf16."""
    return torch.promote_types(parameter.dtype, torch.float32)
