"""Attention implementations: dense, blockwise (plain XLA), cuDNN (GPU) and splash (Pallas on TPU)."""
