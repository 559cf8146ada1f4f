"""S4D: a diagonal state space model with input-independent dynamics, run as a convolution."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from dnassm.errors import ShapeError
from dnassm.mixer import MIXERS, SequenceMixer, Streaming, packed_bounds

# Longer input is cut into pieces of this length and the state is carried: the Vandermonde matrix
# (D, N/2, L) then stays small and memory linear in L, with the same result.
_PIECE = 2048


class S4DConfig(BaseModel):
    """Sizes of an S4D mixer; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    d_state: int = Field(
        64, ge=2, le=4096, multiple_of=2, description="real states N; N/2 complex pairs"
    )
    dt_min: float = Field(1e-3, gt=0, description="smallest initial step size")
    dt_max: float = Field(1e-1, gt=0, description="largest initial step size")

    @model_validator(mode="after")
    def _steps_are_a_range(self) -> S4DConfig:
        if self.dt_min > self.dt_max:
            raise ValueError(f"dt_min {self.dt_min} is above dt_max {self.dt_max}")
        return self


class S4DState(NamedTuple):
    """What S4D remembers between positions."""

    ssm: Tensor
    """(B, D, N/2) complex state."""


@MIXERS.register("s4d")
class S4D(SequenceMixer):
    """h' = A h + x, y = 2 Re(C h) + D x, complex diagonal A, zero-order hold; then GELU and GLU."""

    source: ClassVar[str] = (
        "Gu et al. 2022, arXiv:2206.11893, equations 2-5 and S4D-Lin (section 4)"
    )
    causal: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "exact"
    Config: ClassVar[type] = S4DConfig

    def __init__(self, d_model: int, config: S4DConfig) -> None:
        super().__init__()
        pairs = config.d_state // 2
        self.log_dt = nn.Parameter(torch.empty(d_model))
        self.A_log_real = nn.Parameter(torch.empty(d_model, pairs))
        self.A_imag = nn.Parameter(torch.empty(d_model, pairs))
        self.C = nn.Parameter(torch.empty(d_model, pairs, 2))
        self.D = nn.Parameter(torch.empty(d_model))
        self.out_proj = nn.Linear(d_model, 2 * d_model)
        self.config = config
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """S4D-Lin: A[n] = -1/2 + i pi n; dt log-uniform; C standard complex normal."""
        low, high = math.log(self.config.dt_min), math.log(self.config.dt_max)
        with torch.no_grad():
            self.log_dt.uniform_(low, high)
            self.A_log_real.fill_(math.log(0.5))
            self.A_imag.copy_(math.pi * torch.arange(self.A_imag.shape[1]).expand_as(self.A_imag))
            self.C.normal_(std=math.sqrt(0.5))
            self.D.normal_()
        for parameter in (self.log_dt, self.A_log_real, self.A_imag, self.C, self.D):
            parameter.no_weight_decay = True  # type: ignore[attr-defined]

    def forward(
        self,
        x: Tensor,
        state: S4DState | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> tuple[Tensor, S4DState]:
        """(B, L, D) -> (B, L, D), and the state after the last position of every sequence.

        Packed sequences are convolved one after the other: an FFT does not know of their edges.
        """
        if x.dim() != 3 or x.shape[1] == 0:
            raise ShapeError(f"S4D: x must be (B, L, D) with L > 0, got {tuple(x.shape)}")
        bounds = [(0, x.shape[1])]
        if cu_seqlens is not None:
            bounds = packed_bounds("S4D", x, cu_seqlens)
        rows = x.shape[0] if cu_seqlens is None else len(bounds)
        starts = self._start(rows, state).chunk(len(bounds))
        step, C = self._discrete()
        longest = min(max(stop - start for start, stop in bounds), _PIECE)
        times = torch.arange(longest, device=x.device)
        powers = torch.exp(step.unsqueeze(-1) * times)  # (D, N/2, L), shared by all pieces
        inner = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        outputs, states = [], []
        for (start, stop), h in zip(bounds, starts, strict=True):
            for piece in inner[:, start:stop].split(_PIECE, dim=1):
                y, h = self._convolve(piece, h, powers[..., : piece.shape[1]], step, C)
                outputs.append(y)
            states.append(h)
        y = F.gelu(torch.cat(outputs, dim=1)).to(x.dtype)
        return F.glu(self.out_proj(y), dim=-1), S4DState(torch.cat(states))

    def step(self, x: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        """(B, D) -> (B, D), and the next state: the recurrence itself, equation 2 discretised."""
        decay, C = self._constants()
        h = decay * self._start(x.shape[0], state) + x.unsqueeze(-1)
        return self._out(h, x, C), S4DState(h)

    @torch.no_grad()
    def advance(self, x: Tensor, state: S4DState) -> tuple[Tensor, S4DState]:
        """The same, the next state written over `state`."""
        decay, C = self._constants()
        h = self._start(x.shape[0], state).mul_(decay).add_(x.unsqueeze(-1))
        return self._out(h, x, C), S4DState(h)

    def _out(self, h: Tensor, x: Tensor, C: Tensor) -> Tensor:
        """(B, D) of the state h after x (B, D)."""
        y = 2 * (C * h).sum(-1).real + self.D * x
        return F.glu(self.out_proj(F.gelu(y).to(x.dtype)), dim=-1)

    def constants(self) -> tuple[Tensor, Tensor]:
        """exp(dt A) and the discrete C, each (D, N/2) complex."""
        step, C = self._discrete()
        return torch.exp(step), C

    def init_state(self, batch: int) -> S4DState:
        """All zeros."""
        shape = (batch, *self.A_imag.shape)
        inner = torch.promote_types(self.C.dtype, torch.float32)
        return S4DState(torch.zeros(shape, dtype=inner.to_complex(), device=self.C.device))

    def _start(self, rows: int, state: S4DState | None) -> Tensor:
        expected = (rows, *self.A_imag.shape)
        if state is None:
            return self.init_state(rows).ssm
        if tuple(state.ssm.shape) != expected:
            raise ShapeError(f"S4D: state must be {expected}, got {tuple(state.ssm.shape)}")
        return state.ssm

    def _discrete(self) -> tuple[Tensor, Tensor]:
        """dt A and the discrete C (B folded in, B = 1): each (D, N/2) complex."""
        inner = torch.promote_types(self.C.dtype, torch.float32)
        A = torch.complex(-torch.exp(self.A_log_real.to(inner)), self.A_imag.to(inner))
        step = A * torch.exp(self.log_dt.to(inner)).unsqueeze(-1)
        C = torch.view_as_complex(self.C.to(inner)) * torch.expm1(step) / A  # ZOH, equation 3
        return step, C

    def _convolve(
        self, x: Tensor, h: Tensor, powers: Tensor, step: Tensor, C: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One piece (B, L, D) after the state h (B, D, N/2); powers exp(step t) (D, N/2, L)."""
        length = x.shape[1]
        kernel = 2 * torch.einsum("dn,dnl->dl", C, powers).real
        size = 2 * length  # twice the length: the circular convolution must not wrap
        spectrum = torch.fft.rfft(x, n=size, dim=1) * torch.fft.rfft(kernel, n=size).transpose(0, 1)
        y = torch.fft.irfft(spectrum, n=size, dim=1)[:, :length]
        decayed = torch.einsum("bdn,dnl->bld", h * C * torch.exp(step), powers)
        final = torch.exp(step * length) * h + torch.einsum(
            "dnl,bld->bdn", powers.flip(-1), x.to(powers.dtype)
        )
        return y + 2 * decayed.real + self.D * x, final
