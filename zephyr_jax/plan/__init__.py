"""Memory and traffic of a training step on a TPU topology, from ahead-of-time compilation."""
