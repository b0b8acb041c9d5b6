"""Log-probs of tokens by chunks, against the plain formula, with everything that may be kept or skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.model.layers import SingleDevice
from zephyr_jax.objective.token_logprob import Chunking, token_logprob

B, L, D, V = 3, 11, 6, 17  # B stands for devices (R) here, L for their columns (M)


def inputs() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Hidden states, unembedding, tokens, and rows that want 9, 4 and no columns."""
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(B, L, D)), jnp.float32)
    unembedding = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)
    wanted = jnp.arange(L) < jnp.array([9, 4, 0])[:, None]
    return hidden, unembedding, jnp.asarray(rng.integers(0, V, (B, L))), wanted


def plain(hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array, wanted: jax.Array) -> jax.Array:
    logprob = jax.nn.log_softmax(hidden @ unembedding)
    return jnp.where(wanted, jnp.take_along_axis(logprob, tokens[..., None], axis=-1)[..., 0], 0.0)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("columns", [1, 4, 11])
def test_value_and_gradient_equal_the_plain_formula(columns: int, keep: bool) -> None:
    """Chunks that divide the row or not, logits kept or made again, each column with a slope of its own."""
    hidden, unembedding, tokens, wanted = inputs()
    slope = jnp.asarray(np.random.default_rng(1).normal(size=(B, L)), jnp.float32)

    def loss(form, hidden, unembedding):
        found = form(hidden, unembedding)
        return jnp.sum(found * slope), found

    def by_chunks(hidden, unembedding):
        return token_logprob(hidden, unembedding, tokens, wanted, Chunking(columns, keep, SingleDevice()))

    def by_formula(hidden, unembedding):
        return plain(hidden, unembedding, tokens, wanted)

    found = jax.jit(jax.grad(loss, argnums=(1, 2), has_aux=True), static_argnums=0)(by_chunks, hidden, unembedding)
    expected = jax.grad(loss, argnums=(1, 2), has_aux=True)(by_formula, hidden, unembedding)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, expected)


def test_chunks_without_a_wanted_column_are_skipped() -> None:
    """What stands in columns that no row wants cannot reach the result, not even as not-a-number."""
    hidden, unembedding, tokens, wanted = inputs()
    poisoned = hidden.at[:, 9:].set(jnp.nan)

    def loss(hidden, unembedding):
        return jnp.sum(token_logprob(hidden, unembedding, tokens, wanted, Chunking(3, False, SingleDevice())))

    for at in (0, 1):
        found = jax.grad(loss, argnums=at)(poisoned, unembedding)
        np.testing.assert_array_equal(found, jax.grad(loss, argnums=at)(hidden, unembedding))
