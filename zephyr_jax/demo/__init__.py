"""The laptop demo: a tiny base model and everything needed to align it."""
