"""Sampler: which window is number `index` of an epoch, as a pure function."""

from __future__ import annotations

import abc
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from dnassm.data.genome import Genome
from dnassm.data.interval import Interval, Strand
from dnassm.data.options import built
from dnassm.errors import ConfigError, GenomeError
from dnassm.registry import Registry, did_you_mean

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def mix64(value: int) -> int:
    """Scramble 64 bits: the output function of SplitMix64.

    Source: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195, with the constants of
    Vigna's splitmix64.c (2015).
    """
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def splitmix64(state: int, number: int) -> int:
    """Output `number`, from 0, of the SplitMix64 stream begun at `state`, at once."""
    return mix64((state + (number + 1) * _GAMMA) & _MASK)


def stream_of(seed: int, epoch: int) -> int:
    """Return the state that begins the stream of an epoch.

    Scrambled twice: in a plain sum, epoch 1 of seed 0 would be epoch 0 of seed 1.
    """
    return splitmix64(splitmix64(seed & _MASK, 0) ^ (epoch & _MASK), 0)


def permuted(index: int, count: int, stream: int) -> int:
    """Place of `index` in the permutation of ``range(count)`` that `stream` stands for.

    A Feistel network over the next even number of bits, walked until it falls inside the range:
    at most 4 steps on average, no table of `count` numbers. A Feistel network is a bijection
    whatever its round function is (Luby and Rackoff 1988, doi:10.1137/0217022); four rounds mix.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    key = mix64(stream ^ _GAMMA)  # else the rounds would use the numbers that windows are drawn by
    while True:
        left, right = index >> half, index & low
        for number in range(4):
            left, right = right, left ^ (mix64(splitmix64(key, number) ^ right) & low)
        index = (left << half) | right
        if index < count:
            return index


class Sampler(abc.ABC):
    """Maps (seed, epoch, index) to the Interval of a window.

    A pure function: it keeps no position, so that the state of a data loader is one integer and
    a resumed run sees exactly the windows that it would have seen. Built from a store, it keeps
    only where windows may start, and is cheap to send to a worker. The laws in
    tests/contracts/test_samplers.py hold for every registered one, built as
    ``SamplerClass(store, split=..., length=..., rc_probability=...)``.

    Args:
        store: the genome.
        split: name of the split whose intervals the windows come from.
        length: L, bases per window.
        rc_probability: share of windows that are read on the minus strand.
    """

    files: ClassVar[tuple[str, ...]] = ()
    """Options that may name a file."""

    def __init__(self, store: Genome, *, split: str, length: int, rc_probability: float) -> None:
        check_window(length, rc_probability)
        self.split = split
        self.length = length
        self.rc_probability = rc_probability
        self._minus_below = round(rc_probability * (1 << 64))

    @abc.abstractmethod
    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return window `index` of `epoch`, 0-based, half-open; 0 <= index < len(self).

        Raises:
            ConfigError: `index` lies outside of the epoch.
        """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Windows per epoch."""

    def _draw(self, seed: int, epoch: int, index: int) -> tuple[int, int]:
        """Two independent 64-bit numbers of (seed, epoch, index)."""
        check_index(index, len(self))
        stream = stream_of(seed, epoch)
        return splitmix64(stream, 2 * index), splitmix64(stream, 2 * index + 1)

    def _strand(self, number: int) -> Strand:
        """Strand that a 64-bit number stands for."""
        return "-" if number < self._minus_below else "+"


def check_window(length: int, rc_probability: float) -> None:
    """Refuse a window that is empty and a share of minus strands that is none.

    Raises:
        ConfigError: names the argument.
    """
    if length < 1:
        raise ConfigError(f"length: expected at least 1 base, got {length}")
    if not 0.0 <= rc_probability <= 1.0:
        raise ConfigError(f"rc_probability: expected a number in [0, 1], got {rc_probability}")


def check_index(index: int, count: int) -> None:
    """Refuse an index outside of an epoch of `count`.

    Raises:
        ConfigError: names the index and the range.
    """
    if not 0 <= operator.index(index) < count:
        raise ConfigError(f"sampler: expected an index in [0, {count}), got {index}")


def intervals_of_split(store: Genome, split: str) -> Sequence[Interval]:
    """Intervals of a split of the store.

    Raises:
        GenomeError: the store has no such split, or it is empty.
    """
    if split not in store.splits:
        raise GenomeError(
            f"{store.path}: no split named {split!r}; have {', '.join(store.splits)}."
            f"{did_you_mean(split, store.splits)}"
        )
    if not store.splits[split]:
        raise GenomeError(
            f"{store.path}: split {split!r} is empty; build the store with another --split"
        )
    return store.splits[split]


def build_sampler(
    name: str,
    options: Mapping[str, Any],
    store: Genome,
    *,
    split: str,
    length: int,
    rc_probability: float,
) -> Sampler:
    """Make the sampler that is called `name`, of windows of `length` bases.

    Raises:
        UnknownNameError: no such sampler.
        ConfigError: an option is unknown or wrong.
        GenomeError: it finds no window in the genome.
    """
    kind = SAMPLERS[name]
    given = {"split": split, "length": length, "rc_probability": rc_probability}
    return built(f"sampler {name}", kind, options, store, **given)


SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "dnassm.data.samplers")
