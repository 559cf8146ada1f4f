"""Published frequencies of Escherichia coli that the simulator draws from.

Bases are in the order A C G T throughout.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

# Relative synonymous codon usage over all genes of E. coli K-12 MG1655: Sharp, Emery and Zeng 2010,
# doi:10.1098/rstb.2009.0305, table 1, column "all". 1 = as often as the amino acid's mean codon.
RSCU: dict[str, dict[str, float]] = {
    "A": {"GCT": 0.65, "GCC": 1.08, "GCA": 0.85, "GCG": 1.42},
    "C": {"TGT": 0.89, "TGC": 1.11},
    "D": {"GAT": 1.26, "GAC": 0.74},
    "E": {"GAA": 1.38, "GAG": 0.62},
    "F": {"TTT": 1.15, "TTC": 0.85},
    "G": {"GGT": 1.35, "GGC": 1.61, "GGA": 0.44, "GGG": 0.60},
    "H": {"CAT": 1.14, "CAC": 0.86},
    "I": {"ATT": 1.52, "ATC": 1.26, "ATA": 0.22},
    "K": {"AAA": 1.53, "AAG": 0.47},
    "L": {"TTA": 0.79, "TTG": 0.77, "CTT": 0.62, "CTC": 0.63, "CTA": 0.22, "CTG": 2.97},
    "M": {"ATG": 1.00},
    "N": {"AAT": 0.90, "AAC": 1.10},
    "P": {"CCT": 0.64, "CCC": 0.50, "CCA": 0.76, "CCG": 2.10},
    "Q": {"CAA": 0.69, "CAG": 1.31},
    "R": {"CGT": 2.27, "CGC": 2.39, "CGA": 0.39, "CGG": 0.59, "AGA": 0.23, "AGG": 0.14},
    "S": {"TCT": 0.87, "TCC": 0.89, "TCA": 0.74, "TCG": 0.92, "AGT": 0.91, "AGC": 1.66},
    "T": {"ACT": 0.67, "ACC": 1.74, "ACA": 0.53, "ACG": 1.07},
    "V": {"GTT": 1.03, "GTC": 0.86, "GTA": 0.62, "GTG": 1.49},
    "W": {"TGG": 1.00},
    "Y": {"TAT": 1.14, "TAC": 0.86},
}

# Amino acids per 1000, counted over the 4,298 coding sequences of NC_000913.3 (RefSeq annotation),
# start and stop codons left out.
_AMINO_ACIDS = {
    "A": 95.7, "C": 11.7, "D": 51.5, "E": 58.0, "F": 39.1, "G": 73.8, "H": 22.7, "I": 60.3,
    "K": 44.2, "L": 107.4, "M": 25.2, "N": 39.1, "P": 44.5, "Q": 44.6, "R": 55.5, "S": 58.0,
    "T": 53.9, "V": 71.1, "W": 15.3, "Y": 28.4,
}  # fmt: skip

# Counted over the same coding sequences, to 0.002; the stop codons agree with Sharp et al.
START_CODONS = {"ATG": 0.903, "GTG": 0.079, "TTG": 0.018}
STOP_CODONS = {"TAA": 0.641, "TGA": 0.288, "TAG": 0.071}

CODONS = tuple("".join(letters) for letters in itertools.product("ACGT", repeat=3))
"""All 64, so that a codon's index is its bases read as digits to base 4."""

AMINO_ACID = {codon: amino for amino, codons in RSCU.items() for codon in codons}
"""Sense codon -> one-letter amino acid."""

# Base counts in the -35 and the -10 box of 112 promoters: Hawley and McClure 1983,
# doi:10.1093/nar/11.8.2237; the count of each base was not compared with the paper again. One row
# per position, columns A C G T.
_MINUS_35 = ((2, 7, 11, 92), (6, 6, 6, 94), (2, 11, 88, 11), (72, 18, 3, 19), (26, 60, 11, 15),
             (50, 8, 17, 37))  # fmt: skip
_MINUS_10 = ((2, 10, 11, 89), (106, 2, 1, 3), (29, 16, 18, 49), (66, 14, 17, 15), (57, 22, 14, 19),
             (1, 3, 0, 108))  # fmt: skip
# The compiled promoters are mostly weak or regulated. Cubed frequencies describe the strong ones,
# near the consensus, and let a small model learn the boxes from the promoters of one megabase.
_SHARPNESS = 3.0

SPACER_BP = {16: 0.25, 17: 0.5, 18: 0.25}
"""Between the boxes; 92 % of 263 promoters have 17 +- 1 (Harley and Reynolds 1987,
doi:10.1093/nar/15.5.2343), here all of them."""

# Probability of each base given the two before it, per 1000, rows AA AC AG AT CA ...: counted on
# both strands of NC_000913.3 outside every annotated gene, pseudogene and mobile element.
_INTERGENIC = (
    (380, 179, 163, 278), (324, 211, 230, 234), (274, 234, 259, 232), (265, 203, 202, 330),
    (290, 187, 248, 275), (228, 218, 262, 292), (206, 302, 249, 243), (170, 212, 300, 319),
    (324, 169, 197, 310), (294, 232, 259, 215), (267, 283, 217, 234), (240, 182, 228, 350),
    (376, 176, 125, 323), (342, 222, 180, 256), (303, 265, 168, 265), (261, 179, 180, 380),
)  # fmt: skip


# Complement of the 3' end of 16S rRNA (Shine and Dalgarno 1974, PNAS 71:1342).
_ANTI_16S = "TAAGGAGGT"


def _codon_usage() -> Table:
    usage = np.zeros(64)
    for amino, codons in RSCU.items():
        total = sum(codons.values())
        for codon, relative in codons.items():
            usage[CODONS.index(codon)] = _AMINO_ACIDS[amino] * relative / total
    shares: Table = usage / usage.sum()
    return shares


def _weights(counts: tuple[tuple[int, ...], ...]) -> Table:
    sharpened = np.array(counts, dtype=np.float64) ** _SHARPNESS
    weights: Table = sharpened / sharpened.sum(axis=1, keepdims=True)
    return weights


CODON_USAGE: Table = _codon_usage()
"""(64,) probability of each codon inside a gene, in the order of `CODONS`; 0 for stop codons."""

BOXES: dict[str, tuple[str, Table]] = {
    "minus_35": ("TTGACA", _weights(_MINUS_35)),
    "minus_10": ("TATAAT", _weights(_MINUS_10)),
    "rbs": (_ANTI_16S, np.where(np.array(list(_ANTI_16S))[:, None] == list("ACGT"), 0.94, 0.02)),
}
"""Motif -> its consensus and (length, 4) probability of each base at each position; the 0.94 of the
ribosome binding site is chosen, not measured."""

BACKGROUND: Table = np.array(_INTERGENIC) / np.sum(_INTERGENIC, axis=1, keepdims=True)
"""(16, 4) probability of a base given the two before it, between genes."""
