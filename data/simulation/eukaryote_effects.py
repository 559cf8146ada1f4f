"""Single-base variants of a eukaryotic genome whose effect is known from how it was made.

Motif-breaking: a base of GT or AG at the ends of an intron, the branching A, a base of a TATA box
or of the start codon is replaced, or a codon of the first 80 % of a protein becomes a stop codon.
Silent: a codon becomes a synonymous one of similar usage, or a background base between genes or
deep in an intron another one, where no motif is made or lost.
"""

from __future__ import annotations

import numpy as np

from dnassm.data.alphabet import Codes
from dnassm.data.simulation.effects import Change, Changes, Kinds, one_codon, substitutions
from dnassm.data.simulation.eukaryote_tables import BRANCH_A, STOP_CODONS, synonymous

_SIMILAR_CODONS = 1.3
_MARGIN_BP = 20  # of background that is left alone beside whatever is next to it

INFO = {
    "EFFECT": "motif_breaking or silent",
    "SITE": "donor, acceptor, branch_point, tata_box, start_codon or nonsense; synonymous, "
    "intronic or intergenic",
    "OF": "gene or transcript that the base belongs to",
}


def _any_base(first: int, last: int) -> Changes:
    """Every substitution in the bases [first, last) of a motif."""

    def changes(read: Codes, _rng: np.random.Generator) -> list[Change]:
        return substitutions(read[first:last], first)

    return changes


def _nonsense(read: Codes, rng: np.random.Generator) -> list[Change]:
    return one_codon(read, rng, lambda _old, new: new in STOP_CODONS)


def _synonymous(read: Codes, rng: np.random.Generator) -> list[Change]:
    return one_codon(read, rng, lambda old, new: synonymous(old, new, ratio=_SIMILAR_CODONS))


def _unremarkable(read: Codes, rng: np.random.Generator) -> list[Change]:
    """Change a base far from the ends that neither has nor makes CpG, AG, GT or a TATA box."""
    if len(read) < 2 * _MARGIN_BP + 1:
        return []
    offset = int(rng.integers(_MARGIN_BP, len(read) - _MARGIN_BP))
    around = read[offset - 6 : offset + 7].copy()
    accepted = []
    for change in substitutions(read[offset : offset + 1], offset):
        changed = around.copy()
        changed[6] = change.alt
        if not _motifs(changed) - _motifs(around) and not _motifs(around) - _motifs(changed):
            accepted.append(change)
    return accepted


def _motifs(codes: Codes) -> set[tuple[str, int]]:
    text = "".join("ACGT"[code] for code in codes)
    words = ("CG", "AG", "GT", "CT", "AC", "TATA", "AATAAA", "TTTATT")
    return {(word, at) for word in words for at in range(len(text)) if text.startswith(word, at)}


KINDS: Kinds = {
    "motif_breaking": {
        "donor": ("five_prime_cis_splice_site", _any_base(0, 2)),
        "acceptor": ("three_prime_cis_splice_site", _any_base(0, 2)),
        "branch_point": ("branch_site", _any_base(BRANCH_A, BRANCH_A + 1)),
        "tata_box": ("TATA_box", _any_base(0, 6)),
        "start_codon": ("start_codon", _any_base(0, 3)),
        "nonsense": ("early_frame", _nonsense),
    },
    "silent": {
        "synonymous": ("frame", _synonymous),
        "intronic": ("intronic_background", _unremarkable),
        "intergenic": ("background", _unremarkable),
    },
}
