"""Next-token sampling with parameters per row."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_MASKED_LOGIT = -1e30


class RowSampling(NamedTuple):
    """Sampling parameters of every row, each of shape [B]."""

    temperature: Any
    """float32; 0 is greedy."""
    top_p: Any
    """float32; probability mass of the nucleus, 1 keeps all tokens."""
    top_k: Any
    """int32; number of most likely tokens to sample from, 0 keeps all."""


def sample_tokens(logits_BV: Array, keys_B: Array, sampling: RowSampling) -> Array:
    """Sample one token per row, independently of the other rows.

    Args:
        logits_BV: float32 [B, V].
        keys_B: one PRNG key per row, [B].
        sampling: parameters of each row; temperature 0 takes the argmax.

    Returns:
        int32 [B] token ids.
    """
    greedy_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    sampled_B = sampling.temperature > 0

    def draw() -> Array:
        scaled_BV = logits_BV / jnp.where(sampled_B, sampling.temperature, 1.0)[:, None]
        filtered = jnp.any(sampled_B & ((sampling.top_p < 1) | (sampling.top_k > 0)))
        # the sort over the vocabulary is skipped unless some row needs it
        kept_BV = jax.lax.cond(filtered, lambda: filter_logits(scaled_BV, sampling), lambda: scaled_BV)
        return jax.vmap(jax.random.categorical)(keys_B, kept_BV).astype(jnp.int32)

    return jnp.where(sampled_B, jax.lax.cond(jnp.any(sampled_B), draw, lambda: greedy_B), greedy_B)


def filter_logits(logits_BV: Array, sampling: RowSampling) -> Array:
    """Apply top-k, then top-p to what top-k keeps.

    Args:
        logits_BV: float32 [B, V], already divided by the temperature.
        sampling: parameters of each row.

    Returns:
        float32 [B, V] with -1e30 for the tokens that are filtered out.
    """
    V = logits_BV.shape[-1]
    sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    k_B1 = jnp.where((sampling.top_k > 0) & (sampling.top_k < V), sampling.top_k, V)[:, None]
    sorted_BV = jnp.where(jnp.arange(V) < k_B1, sorted_BV, _MASKED_LOGIT)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    kept_BV = (mass_before_BV < sampling.top_p[:, None]) & (jnp.arange(V) < k_B1)
    kept_BV |= jnp.arange(V) == 0  # a subnormal top_p is flushed to zero and would keep nothing
    kept_BV |= (sampling.top_p[:, None] >= 1) & (jnp.arange(V) < k_B1)
    threshold_B1 = jnp.min(jnp.where(kept_BV, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= threshold_B1, logits_BV, _MASKED_LOGIT)
