"""x.npy with the vectors, and x.bed with the coordinates of its rows in the same order."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dnassm.artifact import staged_file
from dnassm.embedding.table import FORMATS, Embeddings, Format

_HEADER = "#chrom\tstart\tend\tname\tscore\tstrand\tlabel\tsplit\n"


@FORMATS.register("npy")
class Npy(Format):
    """(n, D) or (n, L, D) float32, read with numpy.load; the BED twin has two comment lines.

    The first comment line is the provenance as JSON, the second names the columns. An empty name,
    label or split is written as ``.``; the score column is 0.
    """

    per_base = True

    def files(self, out: Path) -> list[Path]:
        """The array and its BED twin."""
        return [out, out.with_suffix(".bed")]

    def write(self, embeddings: Embeddings, out: Path) -> None:
        """Write the BED twin first: an array without coordinates would be of no use."""
        with staged_file(out.with_suffix(".bed")) as staging, staging.open("w") as file:
            file.write(f"# {json.dumps(dict(embeddings.provenance))}\n{_HEADER}")
            for row in embeddings.rows:
                chrom, start, end, name, strand, label, split = (
                    str(cell).replace("\t", " ") or "." for cell in row.cells()
                )
                file.write("\t".join((chrom, start, end, name, "0", strand, label, split)) + "\n")
        with staged_file(out) as staging, staging.open("wb") as binary:
            np.save(binary, embeddings.values, allow_pickle=False)
