"""Softmax over blocks of keys without the scores of all of them (arXiv 2205.14135, algorithm 1)."""

from typing import NamedTuple, Self

import jax.numpy as jnp
from jax import Array

from zephyr_jax.model.attention.dense import MASKED


class OnlineSoftmax(NamedTuple):
    """Sums over the blocks so far, float32; Q are the queries under one kv head. The fields may have more leading axes."""

    max_KQ1: Array
    """The largest score."""
    denominator_KQ1: Array
    """Sum of exp(score - max)."""
    mixed_KQH: Array
    """Sum of exp(score - max) times the value."""

    @classmethod
    def empty(cls, *sizes: int) -> Self:
        """Of no block; `sizes` are those of `mixed_KQH`."""
        narrow = (*sizes[:-1], 1)
        return cls(jnp.full(narrow, MASKED), jnp.zeros(narrow), jnp.zeros(sizes))

    def add(self, scores_KQC: Array, v_KCH: Array) -> Self:
        """With one more block of scores, float32, and its values.

        A block whose scores are all masked leaves the sums of a query with a visible key as they are, bit for bit: its
        probabilities are 0 and the rescaling is 1.
        """
        # Earlier sums are rescaled to the new maximum, so that exp never overflows.
        max_KQ1 = jnp.maximum(self.max_KQ1, jnp.max(scores_KQC, axis=-1, keepdims=True))
        probs_KQC = jnp.exp(scores_KQC - max_KQ1)
        rescale_KQ1 = jnp.exp(self.max_KQ1 - max_KQ1)
        block_KQH = jnp.einsum(
            "...qc,...ch->...qh", probs_KQC.astype(v_KCH.dtype), v_KCH, preferred_element_type=jnp.float32
        )
        denominator_KQ1 = self.denominator_KQ1 * rescale_KQ1 + jnp.sum(probs_KQC, axis=-1, keepdims=True)
        return type(self)(max_KQ1, denominator_KQ1, self.mixed_KQH * rescale_KQ1 + block_KQH)

    @property
    def safe_denominator_KQ1(self) -> Array:
        """The denominator, above 0 also where no block was added."""
        return jnp.maximum(self.denominator_KQ1, jnp.finfo(jnp.float32).tiny)
