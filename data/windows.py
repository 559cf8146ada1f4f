"""Windows of a genome as batches of tokens; batch k is a pure function of (seed, k).

One integer, the number of batches already seen, is the whole state: started at that batch, a
loader returns exactly the batches that an uninterrupted one would have returned next, with any
number of workers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dnassm.data.alphabet import PAD
from dnassm.data.batch import Batch, check_weight, weights_of
from dnassm.data.genome import Genome
from dnassm.data.sampler import Sampler, intervals_of_split
from dnassm.data.samplers.uniform import UniformSampler
from dnassm.data.tokenizer import Tokenizer, Tokens
from dnassm.errors import ConfigError

_PREFETCHED_BATCHES = 4
_SAMPLED_WINDOWS, _SAMPLED_BASES = 64, 4096


class WindowDataset(Dataset[torch.Tensor]):
    """Item `i` is window ``i % len(sampler)`` of epoch ``i // len(sampler)``, as int64 tokens (L,).

    The items never end: an index past the first epoch is a window of a later one. A window shorter
    than the sampler's length (see `TiledSampler`) is filled with padding at its right end. A window
    on the minus strand is reverse-complemented before it is cut into tokens.

    Args:
        store: the genome; pickles as its path, so that a worker opens it for itself.
        tokenizer: turns bases into tokens.
        sampler: says which window an index is.
        seed: of the sampler.
        length: L, tokens of every row: what a window has more is cut off, what it has less is
            padding. None: as many as the tokenizer makes of the sampler's windows.
        soft_masked_weight: weight of soft-masked bases in the loss; 1 leaves the weights out.

    Raises:
        ConfigError: the weight is out of range.
    """

    def __init__(
        self,
        store: Genome,
        tokenizer: Tokenizer,
        sampler: Sampler,
        *,
        seed: int,
        length: int | None = None,
        soft_masked_weight: float = 1.0,
    ) -> None:
        check_weight(soft_masked_weight)
        self.store = store
        self.tokenizer = tokenizer
        self.sampler = sampler
        self.seed = seed
        self.length = length
        self.soft_masked_weight = soft_masked_weight

    def __len__(self) -> int:
        """Windows of one epoch."""
        return len(self.sampler)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Return one window, int64 (L,)."""
        return self.rows([index]).tokens[0]

    def batch(self, first: int, stop: int) -> Batch:
        """Return the windows ``[first, stop)`` as rows (B, L)."""
        return self.rows(range(first, stop))

    def rows(self, indices: Collection[int]) -> Batch:
        """Return these windows as rows (B, L)."""
        windows = len(self.sampler)
        codes = np.full((len(indices), self.sampler.length), PAD, dtype=np.uint8)
        for row, index in zip(codes, indices, strict=True):
            epoch, number = divmod(index, windows)
            interval = self.sampler(self.seed, epoch, number)
            row[: len(interval)] = self.store.fetch(interval)
        tokens = self._fitted(self.tokenizer.encode_codes(codes))
        if self.soft_masked_weight == 1:
            return Batch(torch.from_numpy(tokens))
        weights = [
            weights_of(self.tokenizer, *row, self.soft_masked_weight)
            for row in zip(codes, tokens, strict=True)
        ]
        return Batch(torch.from_numpy(tokens), weights=torch.from_numpy(np.stack(weights)))

    def _fitted(self, tokens: Tokens) -> Tokens:
        """Rows (B, ..) of `length` tokens."""
        if self.length is None or tokens.shape[1] == self.length:
            return tokens
        rows = np.full((len(tokens), self.length), self.tokenizer.pad_id, dtype=np.int64)
        some = tokens[:, : self.length]
        rows[:, : some.shape[1]] = some
        return rows


def window_bases(tokenizer: Tokenizer, length: int, store: Genome, *, split: str) -> int:
    """Bases of a window of `length` tokens.

    So many that every token of it is whole. Where tokens differ in size, as many as so many tokens
    have on average, in a sample of the split that is always the same.

    Raises:
        GenomeError: no such split, or nothing but unknown bases in it.
    """
    if tokenizer.fixed_size:
        return (length - 1) * tokenizer.bases_per_token + tokenizer.bases_of_word
    size = min(_SAMPLED_BASES, max(map(len, intervals_of_split(store, split))))
    sampler = UniformSampler(store, split=split, length=size, rc_probability=0.5)
    windows = [
        store.fetch(sampler(0, *divmod(index, len(sampler)))) for index in range(_SAMPLED_WINDOWS)
    ]
    tokens = sum(tokenizer.encode_codes(codes).size for codes in windows)
    return max(1, round(length * size * len(windows) / tokens))


class BatchSource(Protocol):
    """What `make_loader` reads: `WindowDataset`, `PackedDataset`."""

    tokenizer: Tokenizer

    def __len__(self) -> int:
        """Rows of one epoch."""

    def batch(self, first: int, stop: int) -> Batch:
        """Return the rows ``[first, stop)``, a pure function; the rows never end."""


class _Batches(Dataset[Batch]):
    """Item `i` is a whole batch: one call per batch instead of one per window."""

    def __init__(
        self, windows: BatchSource, batch_size: int, bounds: range, limit: int | None
    ) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.bounds = bounds
        self.limit = limit
        most = windows.tokenizer.vocab_size - 1
        sizes = (np.uint8, np.int16, np.int32)
        self.narrow = next(dtype for dtype in sizes if most <= np.iinfo(dtype).max)

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> Batch:
        first = self.bounds[index] * self.batch_size
        stop = first + self.batch_size
        batch = self.windows.batch(first, stop if self.limit is None else min(stop, self.limit))
        if get_worker_info() is None:
            return batch
        return _as(self.narrow, batch)


class _Loader(DataLoader[Batch]):
    """A loader whose worker processes hand over tokens in the fewest bytes; what it gives is int64.

    numpy converts them, not torch. The threads of ``Tensor.long`` wait for one another without
    sleeping and took the cores from the workers; the aligned blocks of ``Tensor.to`` left holes in
    a worker's heap, which grew by 1 MB per batch of 1 Mb, up to 130 MB.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            yield _as(np.int64, batch)


def _as(dtype: type[np.integer[Any]], batch: Batch) -> Batch:
    tokens = batch.tokens.numpy().astype(dtype, copy=False)
    return batch._replace(tokens=torch.from_numpy(tokens))


def make_loader(
    dataset: BatchSource,
    *,
    batch_size: int,
    start_batch: int = 0,
    batches: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Load batches `start_batch`, `start_batch` + 1, ...

    Batch k holds the windows ``[k B, (k + 1) B)`` of the dataset; it runs on over the ends of
    epochs, so that every batch is full. With several devices, batch k of rank r is batch
    ``k world_size + r`` of the one stream that they share.

    Args:
        dataset: the windows.
        batch_size: B, windows per batch.
        start_batch: first batch to load, which is the number of batches that were seen before.
        batches: how many to load. None: until the end of the first epoch, where the last batch is
            as short as it must be and every window comes once.
        workers: processes that prepare batches ahead; changes nothing else. 0 loads in this one.
        rank: which device of `world_size` loads.
        world_size: how many devices load together, each its own batches.

    Raises:
        ConfigError: a number is out of range.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("start_batch", start_batch, 0),
        ("batches", 0 if batches is None else batches, 0),
        ("workers", workers, 0),
    ):
        if value < least:
            raise ConfigError(f"{name}: expected at least {least}, got {value}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank: expected 0 <= rank < world_size, got {rank} of {world_size}")
    if batches is None:
        limit: int | None = len(dataset)
        end = -(-len(dataset) // batch_size)
    else:
        limit = None
        end = (start_batch + batches) * world_size
    bounds = range(start_batch * world_size + rank, end, world_size)
    return _Loader(
        _Batches(dataset, batch_size, bounds, limit),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCHED_BATCHES if workers else None,
        persistent_workers=workers > 0,
    )
