"""Rows to packed token batches: sources, chat, tokens, examples, pack, loader. Nothing here imports jax."""
