"""Mamba-2: state space duality, one decay per head, behind a short causal convolution."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from dnassm.errors import ConfigError
from dnassm.kernels.causal_conv1d import causal_conv1d_step
from dnassm.kernels.mamba2_inner import mamba2_inner
from dnassm.kernels.norm import norm
from dnassm.kernels.ssd import ssd_step
from dnassm.mixer import MIXERS, SequenceMixer, Streaming


class Mamba2Config(BaseModel):
    """Sizes of a Mamba-2 mixer; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    d_state: int = Field(128, ge=1, le=1024, description="states N per channel")
    d_conv: int = Field(4, ge=2, le=64, description="taps of the causal convolution")
    expand: int = Field(2, ge=1, le=16, description="inner width over model width")
    head_dim: int | None = Field(
        None, ge=1, le=4096, description="channels P of a head; None: 64, fewer for 4 heads"
    )
    groups: int = Field(1, ge=1, le=4096, description="groups of heads that share B and C")
    dt_min: float = Field(1e-3, gt=0, description="smallest initial step size")
    dt_max: float = Field(1e-1, gt=0, description="largest initial step size")
    dt_floor: float = Field(0.0, ge=0, description="smallest step size at any time")
    A_min: float = Field(1.0, gt=0, description="smallest initial decay rate")
    A_max: float = Field(16.0, gt=0, description="largest initial decay rate")

    @model_validator(mode="after")
    def _limits_are_ranges(self) -> Mamba2Config:
        for name in ("dt", "A"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ValueError(f"{name}_min {low} is above {name}_max {high}")
        return self


class Mamba2State(NamedTuple):
    """What Mamba-2 remembers between positions."""

    conv: Tensor
    """(B, K-1, E + 2GN) last inputs of the convolution."""
    ssm: Tensor
    """(B, H, P, N) state of the recurrence."""


@MIXERS.register("mamba2")
class Mamba2(SequenceMixer):
    """y = W_out norm(ssd(x', dt, B, C) silu(z)), [z, (x', B, C), dt] = W_in x, () convolved."""

    source: ClassVar[str] = "Dao and Gu 2024, arXiv:2405.21060, section 7 and figure 6"
    causal: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "exact"
    Config: ClassVar[type] = Mamba2Config

    def __init__(self, d_model: int, config: Mamba2Config) -> None:
        super().__init__()
        self.config = config
        self.d_inner = config.expand * d_model
        self.head_dim = config.head_dim or _head_dim(self.d_inner)
        self.heads = self.d_inner // self.head_dim
        self._check_sizes(d_model)
        self.d_conv = self.d_inner + 2 * config.groups * config.d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + self.d_conv + self.heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.d_conv, config.d_conv))
        self.conv_bias = nn.Parameter(torch.empty(self.d_conv))
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm_weight = nn.Parameter(torch.empty(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)
        self.reset_parameters()

    def _check_sizes(self, d_model: int) -> None:
        if self.d_inner % self.head_dim:
            raise ConfigError(
                f"mixer mamba2: head_dim must divide expand * d_model = {self.d_inner} "
                f"(d_model {d_model}), got {self.head_dim}"
            )
        if self.heads % self.config.groups:
            raise ConfigError(
                f"mixer mamba2: groups must divide the {self.heads} heads (expand * d_model = "
                f"{self.d_inner}, head_dim {self.head_dim}), got {self.config.groups}"
            )

    def reset_parameters(self) -> None:
        """Initialise as the paper's code: A uniform, dt log-uniform, D and the norm's weight 1."""
        bound = 1 / math.sqrt(self.config.d_conv)
        nn.init.uniform_(self.conv_weight, -bound, bound)
        nn.init.uniform_(self.conv_bias, -bound, bound)
        low, high = math.log(self.config.dt_min), math.log(self.config.dt_max)
        with torch.no_grad():
            dt = torch.exp(torch.rand(self.heads) * (high - low) + low).clamp(min=1e-4)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse of softplus
            self.A_log.uniform_(self.config.A_min, self.config.A_max).log_()
            self.D.fill_(1.0)
            self.norm_weight.fill_(1.0)
        for parameter in (self.A_log, self.D, self.dt_bias, self.norm_weight):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Tensor,
        state: Mamba2State | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, Mamba2State]:
        """(B, L, D) -> (B, L, D), and the state after the last position of every sequence."""
        y, (conv_state, ssm_state) = mamba2_inner(
            x,
            self.in_proj.weight,
            self.conv_weight,
            self.constants(),
            self.norm_weight,
            self.out_proj.weight,
            conv_bias=self.conv_bias,
            dt_bias=self.dt_bias,
            D=self.D,
            conv_state=None if state is None else state.conv,
            ssm_state=None if state is None else state.ssm,
            cu_seqlens=cu_seqlens,
            groups=self.config.groups,
            dt_limit=(self.config.dt_floor, math.inf),
            return_state=True,
        )
        return y, Mamba2State(conv_state, ssm_state)

    def step(self, x: Tensor, state: Mamba2State) -> tuple[Tensor, Mamba2State]:
        """(B, D) -> (B, D), and the next state."""
        z, u, dt = self._projected(x)
        u, conv_state = causal_conv1d_step(
            u, self.conv_weight, self.conv_bias, state.conv, silu=True
        )
        heads, B, C = self._split(u)
        y, ssm_state = ssd_step(
            heads,
            dt,
            self._constants(),
            B,
            C,
            state.ssm,
            D=self.D,
            dt_bias=self.dt_bias,
            dt_limit=(self.config.dt_floor, math.inf),
        )
        return self._out(y, z), Mamba2State(conv_state, ssm_state)

    def _projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """z (.., E), what is convolved (.., E + 2GN) and dt (.., H), as slices of one tensor."""
        sizes = [self.d_inner, self.d_conv, self.heads]
        parts: tuple[Tensor, ...] = self.in_proj(x).split(sizes, dim=-1)
        return parts

    def _split(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (.., H, P), B and C (.., G, N), as slices of the output of the convolution."""
        groups, states = self.config.groups, self.config.d_state
        x, B, C = u.split([self.d_inner, groups * states, groups * states], dim=-1)
        maps = (tensor.unflatten(-1, (groups, states)) for tensor in (B, C))
        return x.unflatten(-1, (self.heads, self.head_dim)), *maps

    def constants(self) -> Tensor:
        """A, (H,)."""
        return -torch.exp(self.A_log.to(_at_least_float32(self.A_log)))

    def _out(self, y: Tensor, z: Tensor) -> Tensor:
        """The gated norm over all heads of a group of maps, and the projection."""
        normed = norm(y.flatten(-2), self.norm_weight, gate=z, groups=self.config.groups)
        projected: Tensor = self.out_proj(normed)
        return projected

    def init_state(self, batch: int) -> Mamba2State:
        """All zeros."""
        weight = self.conv_weight
        return Mamba2State(
            weight.new_zeros(batch, self.config.d_conv - 1, self.d_conv),
            torch.zeros(
                (batch, self.heads, self.head_dim, self.config.d_state),
                dtype=_at_least_float32(self.A_log),
                device=self.A_log.device,
            ),
        )


def _head_dim(width: int) -> int:
    """Largest divisor up to the paper's 64 that leaves four heads, each with a decay of its own."""
    most = max(1, min(64, width // 4))
    return next(size for size in range(most, 0, -1) if width % size == 0)


def _at_least_float32(parameter: Tensor) -> torch.dtype:
    """Dtype of A and of the state: they lose long memory when a model is cast to bf16."""
    return torch.promote_types(parameter.dtype, torch.float32)
