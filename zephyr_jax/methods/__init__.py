"""Training methods as values: one module each, and the registry that every command asks."""
