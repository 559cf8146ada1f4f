"""Windows of many genomes: a species is drawn first, then a contig of it, then the window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from dnassm.data.admissible import admissible_starts, max_unknown, no_window, unknown_runs
from dnassm.data.genome import Genome
from dnassm.data.interval import Interval
from dnassm.data.lines import read_lines
from dnassm.data.places import Choice, Places
from dnassm.data.sampler import SAMPLERS, Sampler, intervals_of_split, splitmix64
from dnassm.errors import ConfigError, FormatError
from dnassm.registry import did_you_mean

Weights = Literal["equal", "bases"]


@SAMPLERS.register("species")
class SpeciesSampler(Sampler):
    """Draw a species, then a contig of it, then an admissible start on that contig.

    With the default weights a small genome is seen as often as a large one, and a contig as often
    as every other of its species: the sampling of HyenaDNA's and Mamba's species tasks (Nguyen et
    al. 2023, arXiv:2306.15794; Gu and Dao 2023, arXiv:2312.00752, E.3.4). A contig without an
    admissible window is never drawn. An epoch has as many windows as fit side by side.

    Args:
        store: the genomes, in one store.
        split: name of the split whose intervals the windows come from.
        length: L, bases per window.
        rc_probability: share of windows that are read on the minus strand.
        max_n_fraction: most unknown bases in a window, as a share of `length`; None refuses only
            windows of nothing else.
        species: contig -> species, or a file of two columns with it, for every contig of the
            split. None takes what stands before the first ``#`` of a contig's name, as PanSN
            writes it (``sample#haplotype#contig``); those without one are the species ``unnamed``.
        species_weights: species -> weight, 0 leaves it out; or "equal", or "bases": by the number
            of admissible starts.
        contig_weights: "equal", or "bases": by the number of admissible starts.

    Raises:
        ConfigError: a number is out of range, or a contig has no species.
        GenomeError: no such split, or no admissible window in it.
    """

    files: ClassVar[tuple[str, ...]] = ("species",)

    def __init__(
        self,
        store: Genome,
        *,
        split: str = "train",
        length: int,
        rc_probability: float = 0.5,
        max_n_fraction: float | None = None,
        species: Mapping[str, str] | Path | str | None = None,
        species_weights: Mapping[str, float] | Weights = "equal",
        contig_weights: Weights = "equal",
    ) -> None:
        super().__init__(store, split=split, length=length, rc_probability=rc_probability)
        intervals = intervals_of_split(store, split)
        unknown = max_unknown(length, max_n_fraction)
        places: dict[str, Places] = {}
        self._windows = 0
        for interval in intervals:
            starts = admissible_starts(unknown_runs(store, interval), interval, length, unknown)
            if len(starts):
                places.setdefault(interval.contig, Places()).add(interval.contig, starts)
                self._windows += len(interval) // length
        if not places:
            raise no_window(store, split, intervals, f"{length} bp with few enough N")
        self._group(places, _species_of(species, list(places)))
        self._species_choice = Choice(self._species_weights(species_weights), of="species_weights")
        self._contig_choices = [
            Choice(_weights(contig_weights, contigs), of="contig_weights")
            for contigs in self._contigs
        ]

    def __call__(self, seed: int, epoch: int, index: int) -> Interval:
        """Return the window; see `Sampler.__call__`."""
        number, strand = self._draw(seed, epoch, index)
        species = self._species_choice.draw(splitmix64(number, 0))
        contig = self._contig_choices[species].draw(splitmix64(number, 1))
        name, start = self._contigs[species][contig].draw(splitmix64(number, 2))
        return Interval(name, start, start + self.length, self._strand(strand))

    def __len__(self) -> int:
        return self._windows

    def _group(self, places: Mapping[str, Places], species_of: Mapping[str, str]) -> None:
        grouped: dict[str, list[Places]] = {}
        for contig, starts in places.items():
            grouped.setdefault(species_of[contig], []).append(starts)
        self.species = tuple(grouped)
        """Names of the species, in the order of the store."""
        self._contigs = list(grouped.values())

    def _species_weights(self, weights: Mapping[str, float] | Weights) -> list[float]:
        if isinstance(weights, str):
            sizes = [sum(map(len, contigs)) for contigs in self._contigs]
            return _checked("species_weights", weights, sizes)
        for name in weights:
            if name not in self.species:
                raise ConfigError(
                    f"species_weights: no species {name!r} with a window; have "
                    f"{', '.join(self.species)}.{did_you_mean(name, self.species)}"
                )
        missing = [name for name in self.species if name not in weights]
        if missing:
            raise ConfigError(
                f"species_weights: expected a weight for every species, none for {missing[0]!r}; "
                "write 0 to leave it out"
            )
        return [weights[name] for name in self.species]


def _weights(weights: str, places: list[Places]) -> list[float]:
    return _checked("contig_weights", weights, [len(starts) for starts in places])


def _checked(name: str, weights: str, sizes: list[int]) -> list[float]:
    if weights == "equal":
        return [1.0] * len(sizes)
    if weights == "bases":
        return [float(size) for size in sizes]
    raise ConfigError(f"{name}: expected 'equal' or 'bases', got {weights!r}")


def _species_of(
    species: Mapping[str, str] | Path | str | None, contigs: list[str]
) -> Mapping[str, str]:
    if species is None:
        return {c: c.partition("#")[0] if "#" in c else "unnamed" for c in contigs}
    table = species if isinstance(species, Mapping) else read_species(Path(species))
    for contig in contigs:
        if contig not in table:
            raise ConfigError(
                f"species: expected the species of every contig, none for {contig!r}."
                f"{did_you_mean(contig, table)}"
            )
    return table


def read_species(path: Path) -> dict[str, str]:
    """Read contig -> species from a file of two columns; lines that begin with ``#`` are skipped.

    Columns are separated by a tab, or by spaces in a line without any tab.

    Raises:
        ArtifactError: the file is missing or cannot be read.
        FormatError: a line has other than two columns, or a contig two species.
    """
    found: dict[str, str] = {}
    for number, line in read_lines(path):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [f.strip() for f in (line.split("\t") if "\t" in line else line.split())]
        if len(fields) != 2 or not all(fields):
            raise FormatError(
                f"{path}:{number}: expected two columns, contig and species, got {line[:60]!r}"
            )
        if found.setdefault(fields[0], fields[1]) != fields[1]:
            raise FormatError(
                f"{path}:{number}: contig {fields[0]!r} is of {found[fields[0]]!r} in an earlier "
                f"line and of {fields[1]!r} here; a contig has one species"
            )
    return found
