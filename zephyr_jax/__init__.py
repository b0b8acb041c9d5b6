"""zephyr-jax: align a Mistral-architecture chat model with JAX (dSFT, reference pass, dDPO, export)."""

__version__ = "0.1.0"
