"""File formats of embeddings; dnassm.embedding.table.FORMATS finds every file of this folder."""
