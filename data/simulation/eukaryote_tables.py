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


# Profiles of human genes by Zhang 1998, doi:10.1093/hmg/7.5.919, those of introns at low GC, in
# percent as table 14.3 of Deonier, Tavare and Waterman 2005 (Computational Genome Analysis) gives
# them; some rows sum to 99 or 101. GT and AG are invariant here: GC donors and rarer ones, 1 % of
# splice sites together (doi:10.1093/nar/28.21.4364), are left out.
def _profile(*rows: tuple[int, int, int, int]) -> Table:
    counts = np.array(rows, dtype=np.float64)
    shares: Table = counts / counts.sum(axis=1, keepdims=True)
    return shares


DONOR: Table = _profile(
    (0, 0, 100, 0), (0, 0, 0, 100), (71, 2, 24, 3), (73, 6, 8, 13), (11, 6, 75, 8), (21, 10, 14, 55)
)  # fmt: skip
BRANCH: Table = _profile(
    (0, 60, 0, 40), (0, 2, 0, 98), (39, 24, 32, 5), (100, 0, 0, 0), (18, 33, 3, 46)
)
"""Of yUnAy, the consensus of Gao et al. 2008 as well, doi:10.1093/nar/gkn073."""
BRANCH_A = 3
"""Place of the branching A in the five bases."""
ACCEPTOR: Table = _profile((7, 55, 1, 37), (100, 0, 0, 0), (0, 0, 100, 0))
TRACT: Table = _profile((12, 23, 9, 56))[0]
"""Mean of the places 5 to 15 bases before the exon."""
KOZAK: Table = _profile(
    (21, 24, 42, 13), (18, 35, 27, 20), (24, 49, 22, 5), (57, 5, 36, 2), (31, 43, 17, 10),
    (15, 53, 27, 4),
)  # fmt: skip
"""The six bases before the start codon."""
POLY_A = {"AATAAA": 0.83, "ATTAAA": 0.17}
"""Signals of polyadenylation: they stand in 59.0 and 11.9 % of 2,013 human 3' untranslated regions
(Gautheret et al. 1998, doi:10.1101/gr.8.5.524, table 3); rarer ones are left out."""
TATA = "TATAAA"

ISOCHORES = {"L1": (0.37, 0.19), "L2": (0.40, 0.37), "H1": (0.44, 0.31), "H2": (0.49, 0.11),
             "H3": (0.55, 0.02)}  # fmt: skip
"""Family -> GC and share of the genome: chosen, not measured. That human isochores are of five
families, the poorer in GC the commoner: Costantini et al. 2006, doi:10.1101/gr.4910606."""
CPG_KEPT = 0.2
"""Observed over expected CpG outside of islands: up to five times fewer in vertebrates (Bird 1980,
cited so by Duret and Galtier 2000, doi:10.1093/oxfordjournals.molbev.a026261)."""
ISLAND_GC = 0.66
"""Chosen, not measured."""


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
