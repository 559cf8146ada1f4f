"""Windows drawn at random, those on features of an annotation more often than the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from dnassm.data.admissible import admissible_starts, max_unknown, no_window, unknown_runs
from dnassm.data.aliases import match_contigs
from dnassm.data.annotation import read_bed, read_gff
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.places import Choice, Places, common, stretches, without
from dnassm.data.runs import Runs
from dnassm.data.sampler import SAMPLERS, Sampler, intervals_of_split, splitmix64
from dnassm.errors import ConfigError, GenomeError
from dnassm.registry import did_you_mean

_BED_ENDINGS = (".bed", ".bed.gz")
_EVERY = "*"


@SAMPLERS.register("annotated")
class AnnotatedSampler(Sampler):
    """Draw a start by weight: what the middle base of its window lies in decides.

    The middle base is base ``length // 2`` of the window, 0-based, on the plus strand. Its weight
    is the largest of the weights of the features that it lies in, on either strand, or `background`
    when it lies in none: a start of weight 10 is drawn 10 times as often as one of weight 1. An
    epoch has as many windows as fit side by side.

    Args:
        store: the genome.
        split: name of the split whose intervals the windows come from.
        length: L, bases per window.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.
        annotation: file of features: BED when it ends in .bed or .bed.gz, otherwise GFF3 or GTF.
            ``chr1`` may be ``1`` in the store, see `match_contigs`; those on contigs that the
            store does not have are ignored.
        weights: type of a feature (column 3 of GFF, the name in column 4 of BED) -> weight; ``*``
            stands for every type that is not named. Other types are background.
        background: weight of a start that lies in no weighted feature.

    Raises:
        ConfigError: there is no annotation, or a number is out of range.
        GenomeError: no such split, no admissible window in it, or no feature of a type.
    """

    files: ClassVar[tuple[str, ...]] = ("annotation",)

    def __init__(
        self,
        store: Genome,
        *,
        split: str = "train",
        length: int,
        rc_probability: float = 0.5,
        max_n_fraction: float | None = None,
        annotation: Path | str | None = None,
        weights: Mapping[str, float] | None = None,
        background: float = 1.0,
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        if annotation is None:
            raise ConfigError(
                "sampler annotated: expected annotation=FILE (GFF3, GTF or BED), got none; "
                "name it, or take the sampler uniform"
            )
        intervals = intervals_of_split(store, split)
        weights = {_EVERY: 10.0} if weights is None else weights
        features = _by_weight(Path(annotation), weights, store)
        unknown = max_unknown(length, max_n_fraction)
        levels = [*features, background]
        self._places = [Places() for _ in levels]
        self._windows = 0
        for interval in intervals:
            found = admissible_starts(unknown_runs(store, interval), interval, length, unknown)
            self._windows += len(interval) // length if len(found) else 0
            rest = Runs.merge(found[:, 0], found[:, 1])
            for places, by_contig in zip(self._places, features.values(), strict=False):
                runs = _shifted(by_contig.get(interval.contig, []), length // 2)
                places.add(interval.contig, stretches(common(rest, runs)))
                rest = without(rest, runs)
            self._places[-1].add(interval.contig, stretches(rest))
        if not any(map(len, self._places)):
            raise no_window(store, split, intervals, f"{length} bp with few enough N")
        shares = [w * len(p) for w, p in zip(levels, self._places, strict=True)]
        self._choice = Choice(shares, of="weights and background of the windows that there are")

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        number, strand = self._draw(seed, epoch, index)
        places = self._places[self._choice.draw(splitmix64(number, 0))]
        contig, start = places.draw(splitmix64(number, 1))
        return Interval(contig, start, start + self.length, self._strand(strand))

    def __len__(self) -> int:
        return self._windows


def _by_weight(
    path: Path, weights: Mapping[str, float], store: Genome
) -> dict[float, dict[str, list[Interval]]]:
    """Features by weight, the largest first, and contig."""
    named: list[tuple[str, Interval]] = (
        [(record.name or "", record.interval) for record in read_bed(path)]
        if path.name.endswith(_BED_ENDINGS)
        else [(feature.type, feature.interval) for feature in read_gff(path)]
    )
    if not named:
        raise GenomeError(f"{path}: expected features, got none; take the sampler uniform")
    _check_types(path, weights, {kind for kind, _ in named})
    contigs = match_contigs((i.contig for _, i in named), store, source=str(path)).names
    found: dict[float, dict[str, list[Interval]]] = {
        weight: {} for weight in sorted(set(weights.values()), reverse=True)
    }
    for kind, interval in named:
        weight = weights.get(kind, weights.get(_EVERY))
        if weight is not None and interval.contig in contigs:
            found[weight].setdefault(contigs[interval.contig], []).append(interval)
    return found


def _check_types(path: Path, weights: Mapping[str, float], kinds: set[str]) -> None:
    for kind in weights:
        if kind != _EVERY and kind not in kinds:
            raise GenomeError(
                f"{path}: no feature of type {kind!r}; have {', '.join(sorted(kinds)[:8])}."
                f"{did_you_mean(kind, kinds)}"
            )


def _shifted(features: Iterable[Interval], by: int) -> Runs:
    """Starts whose window has its middle base, `by` bases on, in a feature."""
    edges = np.array([(f.start - by, f.end - by) for f in features], dtype=np.int64).reshape(-1, 2)
    return Runs.merge(edges[:, 0], edges[:, 1])
