"""The next token from logits. Letters: B rows, V vocab."""

import jax
import jax.numpy as jnp
from jax import Array

_NEVER = -1e30


def next_token(logits_BV: Array, key_B: Array, temperature: float, top_p: float) -> Array:
    """int32 [B]: the likeliest token at temperature 0, else a draw from the nucleus of mass `top_p`.

    `key_B` holds one PRNG key a row, so that a row's draws do not depend on the rows beside it.
    """
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    scaled_BV = nucleus(logits_BV / temperature, top_p)
    return jax.vmap(jax.random.categorical)(key_B, scaled_BV).astype(jnp.int32)


def nucleus(logits_BV: Array, top_p: float) -> Array:
    """Logits with everything outside the smallest set of tokens whose probabilities reach `top_p` made impossible."""
    if top_p >= 1:
        return logits_BV
    sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
    probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
    smallest_B1 = jnp.min(jnp.where(before_BV < top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV >= smallest_B1, logits_BV, _NEVER)
