"""Pretraining: optimiser, checkpoints that resume exactly, evaluation against Markov models."""
