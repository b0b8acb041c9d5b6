"""Attention implementations: dense, blockwise (plain XLA) and splash (Pallas on TPU)."""
