"""x.h5ad: an AnnData table for scanpy and its neighbours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnassm.artifact import staged_file
from dnassm.embedding.table import FORMATS, Embeddings, Format
from dnassm.extras import require


@FORMATS.register("h5ad")
class H5ad(Format):
    """X = vectors, obs = coordinates, name, label and split, uns["dnassm"] = provenance."""

    def check(self) -> None:
        """Need anndata."""
        _anndata()

    def write(self, embeddings: Embeddings, out: Path) -> None:
        """Write X as float32; obs_names are like ``chr1:100-200(+)`` and unique."""
        import pandas as pd  # comes with anndata

        anndata = _anndata()
        obs = pd.DataFrame(embeddings.columns(), index=embeddings.row_names())
        table = anndata.AnnData(
            X=embeddings.values, obs=obs, uns={"dnassm": dict(embeddings.provenance)}
        )
        with staged_file(out) as staging:
            table.write_h5ad(staging)


def _anndata() -> Any:
    return require("anndata", "embed", "writing .h5ad")
