"""Weights and run state on disk: Hugging Face folders in and out, orbax steps, the identity of weights."""
