"""Sequences from a causal model, token by token; on a GPU a whole step is one CUDA graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnassm.errors import ConfigError, ShapeError
from dnassm.mixer import SequenceMixer
from dnassm.model import DNAModel, ModelState

# Positions of a prompt that are read at once: it bounds memory and changes no result.
_PIECE = 1 << 16
# Steps whose random numbers are drawn at once: for the same seed the same numbers on any device.
_DRAWN = 256


class Stepper:
    """A model, and a state of it that moves on by one token per call.

    On a CUDA device the step is captured once into a graph, state and all, and replayed: its time
    is that of its kernels, not of Python. Elsewhere it is `DNAModel.step`. The weights may change
    between steps only where no graph holds what follows from them (`graph` False).

    >>> from dnassm.config import ModelConfig
    >>> stepper = Stepper(DNAModel(ModelConfig(d_model=16, pattern="m")), batch=2)
    >>> tuple(stepper.step(torch.tensor([0, 3])).shape)
    (2, 8)
    """

    def __init__(
        self,
        model: DNAModel,
        batch: int = 1,
        *,
        dtype: torch.dtype | None = None,
        graph: bool | None = None,
    ) -> None:
        """Set up the state before the first position.

        Args:
            model: a causal model whose mixers carry a state of fixed size.
            batch: sequences that move on together.
            dtype: bfloat16 or float16 computes as under autocast, on a copy of the model whose
                projections are in this dtype. None takes the model as it is.
            graph: whether to capture the step; None does on a CUDA device.

        Raises:
            ConfigError: the model cannot go step by step, or there is no device for a graph.
        """
        if not (model.causal and model.streaming):
            raise ConfigError(
                "Stepper: expected a causal model whose mixers carry a state, got one that sees "
                "the whole sequence at once; train a model without bidirectional blocks"
            )
        if batch < 1:
            raise ConfigError(f"Stepper: batch must be at least 1, got {batch}")
        self.device = next(model.parameters()).device
        on_gpu = self.device.type == "cuda"
        if graph and not on_gpu:
            raise ConfigError(f"Stepper: a graph needs a CUDA device, got {self.device}")
        self.dtype = dtype
        self.model = model if dtype is None else _narrowed(model, dtype)
        self.batch = batch
        self.state: ModelState = self.model.init_state(batch)
        self._first = _copied(self.state)
        self._graph = _Graph(self) if (on_gpu if graph is None else graph) else None

    def reset(self) -> None:
        """Go back to the state before the first position."""
        self.load(self._first)

    def load(self, state: ModelState) -> None:
        """Go on from `state`, which is copied where it is not that of the stepper."""
        _copy(state, self.state)

    @torch.no_grad()
    def read(self, tokens: Tensor) -> Tensor:
        """Move on by all of tokens (B, L): logits (B, V) of what follows them.

        Raises:
            ShapeError: tokens are not (B, L) integers with L > 0.
        """
        if tokens.dim() != 2 or tokens.shape[0] != self.batch or tokens.shape[1] == 0:
            raise ShapeError(
                f"Stepper: a prompt must be ({self.batch}, L) with L > 0, got {tuple(tokens.shape)}"
            )
        tokens = tokens.to(self.device)
        with self.precision():
            for piece in tokens[:, :-1].split(_PIECE, dim=1):
                if piece.shape[1]:
                    self.load(self.model.hidden(piece, self.state)[1])
        return self.step(tokens[:, -1])

    @torch.no_grad()
    def step(self, tokens: Tensor) -> Tensor:
        """Move on by one token each (B,): logits (B, V), float32.

        With a graph they lie where those of the next step will.

        Raises:
            ShapeError: tokens are not (B,) integers.
        """
        if tokens.shape != (self.batch,):
            raise ShapeError(
                f"Stepper: tokens must be ({self.batch},), one per sequence, got "
                f"{tuple(tokens.shape)}"
            )
        if self._graph is not None:
            return self._graph.replay(tokens)
        return self.advance(tokens.to(self.device))

    def advance(self, tokens: Tensor) -> Tensor:
        """`step` without a graph, of tokens on the device."""
        with self.precision():
            logits, after = self.model.step(tokens, self.state, in_place=True)
        self.load(after)
        return logits.float()

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Autocast in the dtype asked for."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


class _Graph:
    """The step of a stepper as a CUDA graph, with buffers that stay where they are."""

    _WARMUP = 3  # steps before the capture: they compile kernels and choose algorithms

    def __init__(self, stepper: Stepper) -> None:
        self.tokens = torch.zeros(stepper.batch, dtype=torch.int64, device=stepper.device)
        self.graph = torch.cuda.CUDAGraph()
        mixers = [m for m in stepper.model.modules() if isinstance(m, SequenceMixer)]
        with torch.no_grad(), torch.cuda.device(stepper.device), contextlib.ExitStack() as frozen:
            self.constants = [frozen.enter_context(mixer.frozen()) for mixer in mixers]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(self._WARMUP):
                    stepper.advance(self.tokens)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self.graph):
                self.logits = stepper.advance(self.tokens)
        stepper.reset()

    def replay(self, tokens: Tensor) -> Tensor:
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits


def generate(
    model: DNAModel | Stepper,
    prompt: Tensor,
    steps: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    allowed: Sequence[int] | None = None,
    seed: int = 0,
) -> Iterator[Tensor]:
    """Continue `prompt` by `steps` tokens, one position of all sequences after the other.

    Args:
        model: a causal model, or a stepper of it, which goes on from its state.
        prompt: (B, L) int64 token ids, L > 0.
        steps: number of tokens to yield.
        temperature: the logits are divided by it; 0 takes the likeliest token.
        top_k: sample among the k likeliest tokens only.
        allowed: ids of the tokens that may come; None allows all of the vocabulary.
        seed: the tokens are a function of model, prompt, options and seed.

    Yields:
        (B,) int64 on the device of the model.

    Raises:
        ConfigError: an option is out of range, or the model cannot go step by step.
        ShapeError: the prompt is not (B, L) integers with L > 0.
    """
    if prompt.dim() != 2:
        raise ShapeError(f"generate: prompt must be (B, L), got {tuple(prompt.shape)}")
    stepper = model if isinstance(model, Stepper) else Stepper(model, prompt.shape[0])
    vocabulary = stepper.model.config.vocab_size
    if steps < 0:
        raise ConfigError(f"generate: steps must be 0 or more, got {steps}")
    if not temperature >= 0:
        raise ConfigError(f"generate: temperature must be 0 or more, got {temperature}")
    if top_k is not None and not 1 <= top_k <= vocabulary:
        raise ConfigError(f"generate: top_k must be 1..{vocabulary}, got {top_k}")
    barred = torch.zeros(vocabulary, device=stepper.device)
    if allowed is not None:
        if not allowed or not all(0 <= token < vocabulary for token in allowed):
            raise ConfigError(
                f"generate: allowed must be token ids in 0..{vocabulary - 1}, got {list(allowed)}"
            )
        barred.fill_(-torch.inf)[list(allowed)] = 0
    logits = stepper.read(prompt)
    noise = _noise(seed, logits.shape, stepper.device)
    return _generated(stepper, logits, steps, temperature, top_k, barred, noise)


@torch.no_grad()
def _chosen(
    logits: Tensor, temperature: float, top_k: int | None, barred: Tensor, noise: Iterator[Tensor]
) -> Tensor:
    """One token per row: the largest of logits + Gumbel noise is a sample of their softmax."""
    logits = logits + barred
    if top_k is not None:
        least = logits.topk(top_k, dim=1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if temperature > 0:
        logits = logits / temperature + next(noise)
    return logits.argmax(dim=1)


def _generated(
    stepper: Stepper,
    logits: Tensor,
    steps: int,
    temperature: float,
    top_k: int | None,
    barred: Tensor,
    noise: Iterator[Tensor],
) -> Iterator[Tensor]:
    for left in range(steps, 0, -1):
        tokens = _chosen(logits, temperature, top_k, barred, noise)
        yield tokens
        if left > 1:
            logits = stepper.step(tokens)


def _noise(seed: int, shape: torch.Size, device: torch.device) -> Iterator[Tensor]:
    """Gumbel noise (B, V) for one step after the other, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        uniform = torch.rand(_DRAWN, *shape, generator=generator, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(uniform.clamp_(min=1e-300)))
        yield from gumbel.to(device, torch.float32)


def _narrowed(model: DNAModel, dtype: torch.dtype) -> DNAModel:
    """A copy whose projections are in `dtype`: under autocast they would be cast in every step.

    A head that is the embedding gets a weight of its own: the embedding stays as it is.
    """
    narrowed = copy.deepcopy(model)
    if narrowed.head is None:
        weight = narrowed.embedding.weight.detach().clone()
        narrowed.head = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        narrowed.head.weight = nn.Parameter(weight)
    for module in narrowed.modules():
        if isinstance(module, nn.Linear):
            module.to(dtype)
    return narrowed


def _flat(state: ModelState) -> list[Tensor]:
    return [tensor for of_block in state for tensor in of_block]


def _copied(state: ModelState) -> ModelState:
    return tuple(type(of_block)(*(tensor.clone() for tensor in of_block)) for of_block in state)


def _copy(source: ModelState, target: ModelState) -> None:
    """In place, tensors of one dtype in one launch; what lies there already is left alone."""
    pairs: dict[tuple[torch.dtype, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
    for into, tensor in zip(_flat(target), _flat(source), strict=True):
        if into.shape != tensor.shape:
            raise ShapeError(
                f"Stepper: state must be {tuple(into.shape)}, got {tuple(tensor.shape)}"
            )
        if into is tensor:
            continue
        kinds = pairs.setdefault((into.dtype, tensor.dtype), ([], []))
        kinds[0].append(into)
        kinds[1].append(tensor)
    for targets, sources in pairs.values():
        torch._foreach_copy_(targets, sources)
