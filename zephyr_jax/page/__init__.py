"""A run as one page of HTML: data in, text out. No scripts, nothing from a network, no jax."""
