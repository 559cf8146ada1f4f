"""x.parquet: one row per embedding, coordinates and a FixedSizeList<float32> column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dnassm.artifact import staged_file
from dnassm.embedding.table import FORMATS, Embeddings, Format
from dnassm.extras import require


@FORMATS.register("parquet")
class Parquet(Format):
    """Columns chrom, start, end, name, strand, label, split, embedding; provenance as metadata."""

    def check(self) -> None:
        """Need pyarrow."""
        _pyarrow()

    def write(self, embeddings: Embeddings, out: Path) -> None:
        """Write one table; the provenance is in its schema's metadata, value by value."""
        pa = _pyarrow()
        vectors = pa.FixedSizeListArray.from_arrays(
            pa.array(embeddings.values.reshape(-1)), embeddings.values.shape[1]
        )
        table = pa.table(embeddings.columns()).append_column("embedding", vectors)
        facts = {key: str(value) for key, value in embeddings.provenance.items()}
        table = table.replace_schema_metadata(facts)
        with staged_file(out) as staging:
            require("pyarrow.parquet", "tables", "writing .parquet").write_table(table, staging)


def _pyarrow() -> Any:
    return require("pyarrow", "tables", "writing .parquet")
