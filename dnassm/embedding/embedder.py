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
Tokens = npt.NDArray[np.int64]
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
            them side by side, or "none" for one vector per base.
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
            for rows in self._batches(lengths):
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
        """Embed sequences of one length L as one vector per base: (n, L, D) float32.

        A base gets the vector of the token that holds it, so the bases of one token share theirs;
        where words overlap it is the one that begins with the base.

        Raises:
            ShapeError: the sequences are not all of one length.
        """
        if len(set(lengths)) > 1:
            raise ShapeError(
                f"pool 'none' needs sequences of one length, got {min(lengths)} and {max(lengths)} "
                "bases; cut windows of equal size, or pool"
            )
        shape = (len(lengths), lengths[0], self.model.config.d_model)
        out = np.empty(shape, dtype=np.float32)
        done = _Counter(report)
        with self._inference():
            for rows in self._batches(lengths):
                codes = [fetch(i) for i in rows]
                for row, bases, vectors in self._spread(codes, done):
                    out[rows[row], bases] = vectors
                if self.options.strand == "both":
                    self._add_reverse(out, rows, codes, done)
        return out

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of each batch; a model that sees padding gets rows of one number of tokens."""
        alike = self.model.causal or self.tokenizer.fixed_size
        size = self.options.batch_size if alike else 1
        return batches(lengths, size, mixed=self.model.causal)

    def _pool_batch(self, codes: Sequence[Codes], done: _Counter) -> Floats:
        pooled = self._pool_strand(codes, done)
        if self.options.strand == "both":
            pooled = (pooled + self._pool_strand([reverse_complement(c) for c in codes], done)) / 2
        result: Floats = pooled.cpu().numpy()
        return result

    def _pool_strand(self, codes: Sequence[Codes], done: _Counter) -> Tensor:
        running = RunningPool(self.options.pools)
        for _, hidden_BLD, real_BL in self._forward(codes, self._encoded(codes), done):
            running.add(hidden_BLD, real_BL)
        return running.result()

    def _add_reverse(
        self, out: Floats, rows: list[int], codes: Sequence[Codes], done: _Counter
    ) -> None:
        """Average with the reverse strand: its base i is our base L - 1 - i."""
        L = out.shape[1]
        reverse = [reverse_complement(c) for c in codes]
        for row, bases, vectors in self._spread(reverse, done):
            out[rows[row], L - bases.stop : L - bases.start] += vectors[::-1]
        out[rows] /= 2

    def _spread(
        self, codes: Sequence[Codes], done: _Counter
    ) -> Iterator[tuple[int, slice, Floats]]:
        """Yield (row of the batch, its next bases, their vectors) chunk by chunk."""
        tokens = self._encoded(codes)
        token_of_base = [self._token_of_base(*row) for row in zip(codes, tokens, strict=True)]
        for start, hidden_BLD, _ in self._forward(codes, tokens, done):
            hidden = hidden_BLD.cpu().numpy()
            for row, token_L in enumerate(token_of_base):
                first, stop = np.searchsorted(token_L, [start, start + hidden.shape[1]]).tolist()
                yield row, slice(first, stop), hidden[row, token_L[first:stop] - start]

    def _token_of_base(self, codes: Codes, tokens: Tokens) -> Tokens:
        """Index (L,) of the token of each base: the last that begins with it or before it."""
        starts = self.tokenizer.spans(tokens, codes.size)[:, 0]
        return np.searchsorted(starts, np.arange(codes.size), side="right") - 1

    def _encoded(self, codes: Sequence[Codes]) -> list[Tokens]:
        return [self.tokenizer.encode_codes(c) for c in codes]

    def _forward(
        self, codes: Sequence[Codes], tokens: Sequence[Tokens], done: _Counter
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (position of the first token, hidden (B, L, D), real (B, L)) chunk by chunk."""
        tokens_BL, real_BL = pad_tokens(tokens, self.tokenizer.pad_id)
        B, L = tokens_BL.shape
        step = max(_SHORTEST_CHUNK, self.chunk_tokens // B) if self.streams else L
        state = None
        for start in range(0, L, step):
            cut = slice(start, start + step)
            hidden_BLD, state = self.model.hidden(
                tokens_BL[:, cut].to(self.device), state, layer=self.options.layer
            )
            yield start, hidden_BLD, real_BL[:, cut].to(self.device)
            shares = (real_BL[:, : start + step].sum(1) / real_BL.sum(1)).tolist()
            done.to(sum(round(c.size * share) for c, share in zip(codes, shares, strict=True)))
        done.next()

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
        self.before = 0
        """Bases of the batches that are done."""
        self.here = 0
        self.report = report

    def to(self, bases: int) -> None:
        """So many bases of this batch are done."""
        self.here = bases
        if self.report is not None:
            self.report(self.before + bases)

    def next(self) -> None:
        """The next batch begins."""
        self.before += self.here


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
