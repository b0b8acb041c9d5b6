"""Soft caps of attention scores and logits (Gemma 2, arXiv 2408.00118): cap * tanh(x / cap)."""

import jax.numpy as jnp
from jax import Array


def softcap(x: Array, cap: float | None) -> Array:
    """The capped values, between -cap and cap; x itself where `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def softcap_grad(capped: Array, cap: float | None) -> Array | float:
    """Derivative of `softcap`, from its result: 1 - (capped / cap)^2."""
    return 1.0 if cap is None else 1 - jnp.square(capped / cap)
