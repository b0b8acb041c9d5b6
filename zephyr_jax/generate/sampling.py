"""The next token from logits, each row by its own settings. Letters: B rows, V vocab."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_NEVER = -1e30


class Sampling(NamedTuple):
    """How each row draws; every field is [B]."""

    temperature: Any
    """float32; 0: the likeliest token."""
    top_p: Any
    """float32; mass of the nucleus, 1: everything."""
    top_k: Any
    """int32; so many of the likeliest tokens, 0: all."""


def next_token(logits_BV: Array, key_B: Array, how: Sampling) -> Array:
    """int32 [B]: the likeliest token of rows at temperature 0, of the others a draw from what top-k and top-p leave.

    `key_B` holds one PRNG key a row. A row's token does not depend on the rows beside it.
    """
    likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    draws_B = how.temperature > 0

    def drawn() -> Array:
        scaled_BV = logits_BV / jnp.where(draws_B, how.temperature, 1.0)[:, None]
        narrow = jnp.any(draws_B & ((how.top_p < 1) | (how.top_k > 0)))
        kept_BV = jax.lax.cond(narrow, lambda: narrowed(scaled_BV, how), lambda: scaled_BV)
        return jax.vmap(jax.random.categorical)(key_B, kept_BV).astype(jnp.int32)

    return jnp.where(draws_B, jax.lax.cond(jnp.any(draws_B), drawn, lambda: likeliest_B), likeliest_B)


def narrowed(logits_BV: Array, how: Sampling) -> Array:
    """Logits with everything impossible outside the `top_k` likeliest tokens, and of those outside the smallest set whose
    probabilities reach `top_p`."""
    V = logits_BV.shape[-1]
    sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    k_B1 = jnp.where((how.top_k > 0) & (how.top_k < V), how.top_k, V)[:, None]
    sorted_BV = jnp.where(jnp.arange(V) < k_B1, sorted_BV, _NEVER)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    kept_BV = (before_BV < how.top_p[:, None]) & (jnp.arange(V) < k_B1)
    kept_BV |= jnp.arange(V) == 0  # a subnormal top_p is flushed to zero and would keep nothing
    kept_BV |= (how.top_p[:, None] >= 1) & (jnp.arange(V) < k_B1)
    smallest_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= smallest_B1, logits_BV, _NEVER)
