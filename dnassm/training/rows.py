"""The rows that a run trains on, as its settings describe them."""

from __future__ import annotations

from dnassm.config import DataConfig
from dnassm.data.packing import PackedDataset, PackedRows
from dnassm.data.sampler import build_sampler
from dnassm.data.store import GenomeStore
from dnassm.data.tokenizer import Tokenizer
from dnassm.data.windows import WindowDataset, window_bases


def training_rows(
    data: DataConfig, tokenizer: Tokenizer, store: GenomeStore, *, seed: int
) -> WindowDataset | PackedDataset:
    """Rows of ``data.length`` tokens of the split "train", a pure function of (seed, index).

    Raises:
        UnknownNameError: no such sampler.
        ConfigError: an option of the sampler is wrong, or the tokenizer's words cannot be packed.
        GenomeError: the genome has no window of that length to train on.
    """
    if data.packing is not None:
        return _packed(data, tokenizer, store, seed=seed)
    sampler = build_sampler(
        data.sampler.name,
        data.sampler.options,
        store,
        split="train",
        length=window_bases(tokenizer, data.length, store, split="train"),
        rc_probability=data.rc_probability,
    )
    return WindowDataset(
        store,
        tokenizer,
        sampler,
        seed=seed,
        length=data.length,
        soft_masked_weight=data.soft_masked_weight,
    )


def _packed(
    data: DataConfig, tokenizer: Tokenizer, store: GenomeStore, *, seed: int
) -> PackedDataset:
    options = {} if data.packing is None else data.packing.model_dump()
    rows = PackedRows(
        store,
        length=data.length * tokenizer.bases_per_token,
        rc_probability=data.rc_probability,
        multiple=tokenizer.bases_per_token,
        **options,
    )
    return PackedDataset(
        store, tokenizer, rows, seed=seed, soft_masked_weight=data.soft_masked_weight
    )
