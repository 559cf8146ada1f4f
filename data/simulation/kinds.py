"""Every kind of simulation by its name, from settings to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnassm.data.simulate import KINDS as GENOMES
from dnassm.data.simulate import simulate_genome, write_simulation
from dnassm.data.simulation.long_range import simulate_long_range, write_long_range
from dnassm.data.simulation.species import simulate_species, write_species
from dnassm.errors import ArtifactError, ConfigError

KINDS = (*GENOMES, "species", "long-range")
"""What `dnassm simulate --kind` can make."""


def simulate_to(
    out: Path, kind: str, *, length: int, seed: int, force: bool = False, **settings: Any
) -> dict[str, Any]:
    """Simulate and write the folder `out`; returns what was planted, as JSON values.

    Args:
        out: the folder.
        kind: one of `KINDS`.
        length: bases in all; of the ancestor of species.
        seed: 0 or more.
        force: replace `out`.
        settings: contigs; of species also species and tree (Newick, or a file of it); of long-range
            also distance. None stands for the default.

    Raises:
        ConfigError: an unknown kind, a setting that the kind has not, or one out of range.
        ArtifactError: `out` is taken or cannot be written, or the file of a tree cannot be read.
    """
    known = {"species": {"contigs", "species", "tree"}, "long-range": {"contigs", "distance"}}
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
        if name not in known.get(kind, {"contigs"}):
            raise ConfigError(f"simulate: kind {kind!r} has no setting {name!r}; leave it away")
    if kind == "species":
        if "tree" in given:
            given["tree"] = _newick(given["tree"])
        species = simulate_species(length=length, seed=seed, **given)
        write_species(species, out, force=force)
        return species.summary()
    if kind == "long-range":
        made = simulate_long_range(length=length, seed=seed, **given)
        write_long_range(made, out, force=force)
        return made.summary()
    genome = simulate_genome(length=length, seed=seed, kind=kind, **given)
    write_simulation(genome, out, force=force)
    return genome.summary()


def _newick(tree: str) -> str:
    """Read the file of a tree; what has a bracket is the tree itself."""
    if "(" in tree:
        return tree
    try:
        return Path(tree).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"tree: {tree}: expected Newick such as (a:0.1,b:0.1); or a file of it, got {error}"
        ) from error
