"""FASTA to tokens: genome store, intervals, tokenizers, splits, samplers, simulation."""
