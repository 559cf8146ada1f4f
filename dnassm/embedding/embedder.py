"""Embedder: sequences of any length through a frozen model, in batches that change nothing."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dnassm.data.alphabet import reverse_complement
from dnassm.errors import ConfigError, ShapeError
from dnassm.pooling import RunningPool, check_pools

if TYPE_CHECKING:
    from dnassm.data.tokenizer import Tokenizer
    from dnassm.model import DNAModel

Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Report = Callable[[float], None]
Strands = Literal["plus", "both"]

CHUNK_TOKENS = 32_768
"""Tokens of one forward pass, all rows of the batch together; bounds the memory."""
_SHORTEST_CHUNK = 256
_LEAST_FILL = 0.5  # of a batch: a row shorter than this share of the longest starts a new batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """How a sequence becomes a vector.

    Attributes:
        pool: "mean", "last" or "max" over the tokens of a sequence, several joined by "+" to put
            them side by side, or "none" for one vector per token.
        layer: 0 for the token embedding, i for the output of block i, None for the end of the
            model, after its last norm.
        strand: "plus" reads every sequence as it is given; "both" also reads its reverse complement
            and takes the mean of the two embeddings (of the two vectors of the same base with
            pool "none").
        batch_size: sequences per forward pass.

    Raises:
        ConfigError: a value is unknown or out of range.
    """

    pool: str = "mean"
    layer: int | None = None
    strand: Strands = "plus"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.pool != "none":
            check_pools(self.pools)
        if self.strand not in get_args(Strands):
            raise ConfigError(f"strand: expected 'plus' or 'both', got {self.strand!r}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {self.batch_size}")

    @property
    def pools(self) -> tuple[str, ...]:
        """The poolings, in their order; empty for "none"."""
        return () if self.pool == "none" else tuple(self.pool.split("+"))


class Embedder:
    """Frozen model that turns store codes into vectors.

    Args:
        model: its weights stay as they are.
        tokenizer: the one that the model was trained with.
        options: pooling, layer, strand, batch size.
        chunk_tokens: tokens per forward pass; changes memory and speed, never the result.

    Raises:
        ConfigError: the model has no such layer, or the tokenizer knows no padding.
    """

    def __init__(
        self,
        model: DNAModel,
        tokenizer: Tokenizer,
        options: EmbedOptions,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        check_layer(model, options.layer)
        self.model = model
        self.tokenizer = tokenizer
        self.options = options
        self.chunk_tokens = chunk_tokens
        self.device = next(model.parameters()).device
        # A model that looks to the right has no state to carry: it must see its input at once.
        self.streams = model.causal and model.streaming

    def pooled(
        self,
        lengths: Sequence[int],
        fetch: Callable[[int], Codes],
        *,
        report: Report | None = None,
    ) -> Floats:
        """Embed the sequences fetch(0), fetch(1), ... as one vector each.

        Args:
            lengths: length of each sequence in bases, at least 1.
            fetch: index -> store codes (L,); called once per sequence, batch by batch.
            report: told the number of bases done so far after each forward pass.

        Returns:
            (n, number of poolings * D) float32, in the order of the indices.
        """
        width = len(self.options.pools) * self.model.config.d_model
        out = np.empty((len(lengths), width), dtype=np.float32)
        done = _Counter(report)
        with self._inference():
            for rows in batches(lengths, self.options.batch_size, mixed=self.model.causal):
                codes = [fetch(i) for i in rows]
                out[rows] = self._pool_batch(codes, done)
        return out

    def per_base(
        self,
        lengths: Sequence[int],
        fetch: Callable[[int], Codes],
        *,
        report: Report | None = None,
    ) -> Floats:
        """Embed sequences of one length L as one vector per token: (n, L, D) float32.

        Raises:
            ShapeError: the sequences are not all of one length.
        """
        if len(set(lengths)) > 1:
            raise ShapeError(
                f"pool 'none' needs sequences of one length, got {min(lengths)} and {max(lengths)} "
                "bases; cut windows of equal size, or pool"
            )
        L = lengths[0] // self.tokenizer.bases_per_token
        out = np.empty((len(lengths), L, self.model.config.d_model), dtype=np.float32)
        done = _Counter(report)
        with self._inference():
            for rows in batches(lengths, self.options.batch_size, mixed=self.model.causal):
                codes = [fetch(i) for i in rows]
                for start, hidden_BLD, _ in self._forward(codes, done):
                    out[rows, start : start + hidden_BLD.shape[1]] = hidden_BLD.cpu().numpy()
                if self.options.strand == "both":
                    self._add_reverse(out, rows, codes, done)
        return out

    def _pool_batch(self, codes: Sequence[Codes], done: _Counter) -> Floats:
        pooled = self._pool_strand(codes, done)
        if self.options.strand == "both":
            pooled = (pooled + self._pool_strand([reverse_complement(c) for c in codes], done)) / 2
        result: Floats = pooled.cpu().numpy()
        return result

    def _pool_strand(self, codes: Sequence[Codes], done: _Counter) -> Tensor:
        running = RunningPool(self.options.pools)
        for _, hidden_BLD, real_BL in self._forward(codes, done):
            running.add(hidden_BLD, real_BL)
        return running.result()

    def _add_reverse(
        self, out: Floats, rows: list[int], codes: Sequence[Codes], done: _Counter
    ) -> None:
        """Average with the reverse strand: its token i stands for our token L - 1 - i."""
        L = out.shape[1]
        reverse = [reverse_complement(c) for c in codes]
        for start, hidden_BLD, _ in self._forward(reverse, done):
            end = start + hidden_BLD.shape[1]
            out[rows, L - end : L - start] += hidden_BLD.flip(1).cpu().numpy()
        out[rows] /= 2

    def _forward(
        self, codes: Sequence[Codes], done: _Counter
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (position of the first token, hidden (B, L, D), real (B, L)) chunk by chunk."""
        tokens_BL, real_BL = pad_tokens(
            [self.tokenizer.encode_codes(c) for c in codes], self.tokenizer.pad_id
        )
        B, L = tokens_BL.shape
        step = max(_SHORTEST_CHUNK, self.chunk_tokens // B) if self.streams else L
        state = None
        for start in range(0, L, step):
            cut = slice(start, start + step)
            hidden_BLD, state = self.model.hidden(
                tokens_BL[:, cut].to(self.device), state, layer=self.options.layer
            )
            yield start, hidden_BLD, real_BL[:, cut].to(self.device)
            done.add(int(real_BL[:, cut].sum()) * self.tokenizer.bases_per_token)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """Evaluation mode without gradients; the model is left as it was found."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)


def default_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class _Counter:
    """Adds up the bases done and tells who wants to know."""

    def __init__(self, report: Report | None) -> None:
        self.total = 0
        self.report = report

    def add(self, bases: int) -> None:
        self.total += bases
        if self.report is not None:
            self.report(self.total)


def check_layer(model: DNAModel, layer: int | None) -> None:
    """Raise ConfigError unless `model` has that layer; None is the end of the model."""
    blocks = len(model.blocks)
    if layer is not None and not 0 <= layer <= blocks:
        raise ConfigError(
            f"layer {layer} is out of range: this model has 0 (the token embedding) and blocks 1 "
            f"to {blocks}; leave --layer away for the output after the last norm"
        )


def batches(lengths: Sequence[int], batch_size: int, *, mixed: bool) -> Iterator[list[int]]:
    """Yield the indices of each batch, longest sequences first, so that little is padding.

    Args:
        lengths: length of every sequence.
        batch_size: most sequences in a batch.
        mixed: whether lengths may differ inside a batch. A model that is not causal would see the
            padding behind a shorter row, so its batches hold one length only.

    >>> list(batches([10, 90, 100, 10], 2, mixed=True))
    [[2, 1], [0, 3]]
    >>> list(batches([10, 90, 100, 10], 2, mixed=False))
    [[2], [1], [0, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] if batch else lengths[i]
        least = longest * _LEAST_FILL if mixed else longest
        if batch and (len(batch) == batch_size or lengths[i] < least):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def pad_tokens(tokens: Sequence[npt.NDArray[np.int64]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Put sequences under each other, padded at the right: (B, L) tokens and (B, L) real or not."""
    longest = max(map(len, tokens))
    tokens_BL = torch.full((len(tokens), longest), pad_id, dtype=torch.int64)
    real_BL = torch.zeros((len(tokens), longest), dtype=torch.bool)
    for row, sequence in enumerate(tokens):
        tokens_BL[row, : len(sequence)] = torch.from_numpy(sequence)
        real_BL[row, : len(sequence)] = True
    return tokens_BL, real_BL
