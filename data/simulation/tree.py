"""Phylogenetic trees: read from Newick, or drawn at random."""

from __future__ import annotations

import dataclasses
import io
import math

import numpy as np
from Bio.Phylo.Newick import Clade
from Bio.Phylo.NewickIO import NewickError, Parser

from dnassm.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A node of a tree.

    Attributes:
        name: of a species; empty at an inner node that has none.
        length: substitutions per neutral site on the branch above; 0 at the root.
        children: none at a leaf.
    """

    name: str
    length: float
    children: tuple[Node, ...] = ()

    def leaves(self) -> list[Node]:
        """Leaves in the order of the tree."""
        return [leaf for child in self.children for leaf in child.leaves()] or [self]

    def newick(self) -> str:
        """Write the tree, without the semicolon."""
        inner = f"({','.join(child.newick() for child in self.children)})" if self.children else ""
        return f"{inner}{self.name}:{self.length:.6g}"


def parse_newick(text: str) -> Node:
    """Read a tree with a name at every leaf and a length at every branch.

    Raises:
        ConfigError: it is no Newick, or a name or a length is missing or wrong.
    """
    try:
        trees = list(Parser(io.StringIO(text)).parse())
    except (NewickError, ValueError) as error:
        raise ConfigError(f"tree: expected Newick like (a:0.1,b:0.1); got {error}") from error
    if len(trees) != 1:
        raise ConfigError(f"tree: expected one tree in Newick, got {len(trees)}")
    root = _node(trees[0].root, at_root=True)
    # The reader takes what follows a closed bracket for more children.
    if any(root.newick().count(mark) != text.count(mark) for mark in "(),"):
        raise ConfigError(
            f"tree: expected brackets and commas as in ((a:0.1,b:0.1):0.2,c:0.3); got {text[:80]!r}"
        )
    names = [leaf.name for leaf in root.leaves()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(
            f"tree: expected at least 2 species with different names, got {', '.join(names)}"
        )
    return root


def random_tree(species: int, height: float, rng: np.random.Generator) -> Node:
    """Join lineages in pairs at random, back in time (Kingman 1982), to a tree of a given height.

    Args:
        species: number of leaves, named sp1, sp2, ...
        height: substitutions per neutral site from the root to every leaf.
        rng: source of every draw.

    Raises:
        ConfigError: fewer than 2 species, or a height that is no positive number.
    """
    if species < 2 or not (height > 0 and math.isfinite(height)):
        raise ConfigError(
            f"tree: expected at least 2 species and a height above 0, got {species} and {height}"
        )
    pairs = [k * (k - 1) / 2 for k in range(species, 1, -1)]
    times = np.cumsum([rng.exponential(1 / rate) for rate in pairs])
    times *= height / times[-1]
    lineages = [(Node(f"sp{i + 1}", 0.0), 0.0) for i in range(species)]
    for time in times.tolist():
        first, second = sorted(rng.choice(len(lineages), 2, replace=False).tolist())
        pair = [lineages.pop(second), lineages.pop(first)][::-1]
        grown = [dataclasses.replace(node, length=time - since) for node, since in pair]
        lineages.append((Node("", 0.0, tuple(grown)), time))
    return lineages[0][0]


def _node(clade: Clade, *, at_root: bool) -> Node:
    children = tuple(_node(child, at_root=False) for child in clade.clades)
    name = clade.name or ""
    if not children and not name:
        raise ConfigError("tree: expected a name at every leaf, got one without")
    if any(not (letter.isalnum() or letter in "_-") for letter in name):
        raise ConfigError(
            f"tree: expected names of letters, digits, '_' and '-', which name files; got {name!r}"
        )
    length = 0.0 if at_root else clade.branch_length
    if length is None or not (length >= 0 and math.isfinite(length)):
        raise ConfigError(f"tree: expected a length of at least 0 above {name!r}, got {length}")
    return Node(name, float(length), children)
