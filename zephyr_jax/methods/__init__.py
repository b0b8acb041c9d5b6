"""Training methods, one module each: how rows become examples and what the objective is."""
