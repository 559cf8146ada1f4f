"""Frequencies of human genes that the eukaryotic simulator draws from.

Bases are in the order A C G T throughout.
"""

from __future__ import annotations

import itertools

import numpy as np

from dnassm.data.simulation.tables import AMINO_ACID, CODONS, Table

# Codons per 1000 in 93,487 human coding sequences: codon usage database (Nakamura, Gojobori and
# Ikemura 2000, doi:10.1093/nar/28.1.292). Rows: first and second base; columns: third base A C G T.
_PER_THOUSAND = {
    "AA": (24.4, 19.1, 31.9, 17.0), "AC": (15.1, 18.9, 6.1, 13.1), "AG": (12.2, 19.5, 12.0, 12.1),
    "AT": (7.5, 20.8, 22.0, 16.0), "CA": (12.3, 15.1, 34.2, 10.9), "CC": (16.9, 19.8, 6.9, 17.5),
    "CG": (6.2, 10.4, 11.4, 4.5), "CT": (7.2, 19.6, 39.6, 13.2), "GA": (29.0, 25.1, 39.6, 21.8),
    "GC": (15.8, 27.7, 7.4, 18.4), "GG": (16.5, 22.2, 16.5, 10.8), "GT": (7.1, 14.5, 28.1, 11.0),
    "TA": (0.0, 15.3, 0.0, 12.2), "TC": (12.2, 17.7, 4.4, 15.2), "TG": (0.0, 12.6, 13.2, 10.6),
    "TT": (7.7, 20.3, 12.9, 17.6),
}  # fmt: skip

START_CODON = "ATG"
STOP_CODONS = {"TGA": 0.47, "TAA": 0.29, "TAG": 0.24}  # 1.6, 1.0 and 0.8 per 1000, ibid.

# Percent of each base around human splice sites and start codons, rounded. Donor, acceptor follow
# Shapiro and Senapathy 1987, doi:10.1093/nar/15.17.7155, the branch point yUnAy of Gao et al. 2008,
# doi:10.1093/nar/gkn073, and the six bases before the start codon Kozak 1987,
# doi:10.1093/nar/15.20.8125. GT and AG are invariant here: introns of the minor spliceosome and GC
# donors, 1 % together, are left out.
DONOR: Table = np.array(
    [[0, 0, 100, 0], [0, 0, 0, 100], [58, 3, 36, 3], [71, 8, 12, 9], [6, 5, 84, 5],
     [15, 16, 21, 48]]
) / 100  # fmt: skip
BRANCH: Table = np.array(
    [[5, 60, 5, 30], [4, 6, 4, 86], [30, 20, 30, 20], [100, 0, 0, 0], [6, 56, 6, 32]]
) / 100  # fmt: skip
BRANCH_A = 3
"""Place of the branching A in the five bases."""
ACCEPTOR: Table = np.array([[4, 66, 1, 29], [100, 0, 0, 0], [0, 0, 100, 0]]) / 100
TRACT: Table = np.array([8, 33, 7, 52]) / 100
KOZAK: Table = np.array(
    [[15, 20, 50, 15], [25, 45, 15, 15], [20, 55, 15, 10], [55, 5, 35, 5], [25, 45, 20, 10],
     [15, 55, 20, 10]]
) / 100  # fmt: skip
POLY_A = {"AATAAA": 0.8, "ATTAAA": 0.2}
"""Signals of polyadenylation, 58 and 15 % of human genes (Beaudoing et al. 2000,
doi:10.1101/gr.10.7.1001)."""
TATA = "TATAAA"

ISOCHORES = {"L1": (0.37, 0.19), "L2": (0.40, 0.37), "H1": (0.44, 0.31), "H2": (0.49, 0.11),
             "H3": (0.55, 0.02)}  # fmt: skip
"""Family -> GC and share of the genome, rounded (Costantini et al. 2006,
doi:10.1101/gr.4910606)."""
CPG_KEPT = 0.2
"""Observed over expected CpG outside of islands (International Human Genome Sequencing Consortium
2001, doi:10.1038/35057062)."""
ISLAND_GC = 0.66


def _codon_usage() -> Table:
    usage = np.array(
        [
            _PER_THOUSAND[first + second]["ACGT".index(third)]
            for first, second, third in itertools.product("ACGT", repeat=3)
        ]
    )
    shares: Table = usage / usage.sum()
    return shares


CODON_USAGE: Table = _codon_usage()
"""(64,) probability of each codon inside a gene, in the order of `CODONS`; 0 for stop codons."""


def synonymous(old: str, new: str, *, ratio: float) -> bool:
    """Whether both code for one amino acid, and are used alike up to a factor."""
    if old not in AMINO_ACID or AMINO_ACID[old] != AMINO_ACID.get(new):
        return False
    share = CODON_USAGE[CODONS.index(new)] / CODON_USAGE[CODONS.index(old)]
    return bool(1 / ratio <= share <= ratio)
