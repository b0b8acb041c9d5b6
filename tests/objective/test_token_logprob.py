"""Log-probs of tokens by chunks, against the plain formula, with everything that may be kept or skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.model.config import ModelConfig
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


def model_config(logit_scale: float = 1.0, logit_softcap: float | None = None) -> ModelConfig:
    sizes = {
        "vocab_size": V,
        "d_model": D,
        "d_ff": 1,
        "num_layers": 1,
        "num_heads": 1,
        "num_kv_heads": 1,
        "head_dim": 2,
    }
    options = {"logit_scale": logit_scale, "logit_softcap": logit_softcap}
    return ModelConfig(model_type="toy", max_positions=L, **sizes, **options)


def plain(
    hidden: jax.Array, unembedding: jax.Array, tokens: jax.Array, wanted: jax.Array, config: ModelConfig
) -> jax.Array:
    logits = config.logit_scale * (hidden @ unembedding)
    cap = config.logit_softcap
    logprob = jax.nn.log_softmax(logits if cap is None else cap * jnp.tanh(logits / cap))
    return jnp.where(wanted, jnp.take_along_axis(logprob, tokens[..., None], axis=-1)[..., 0], 0.0)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    ("columns", "config"),
    [(1, model_config()), (4, model_config()), (11, model_config())]
    + [(4, model_config(logit_softcap=2.0)), (4, model_config(logit_scale=0.5, logit_softcap=1.0))],
)
def test_value_and_gradient_equal_the_plain_formula(columns: int, config: ModelConfig, keep: bool) -> None:
    """Chunks that divide the row or not, logits kept or made again, scaled, capped; each column with a slope of its own."""
    hidden, unembedding, tokens, wanted = inputs()
    slope = jnp.asarray(np.random.default_rng(1).normal(size=(B, L)), jnp.float32)

    def loss(form, hidden, unembedding):
        found = form(hidden, unembedding)
        return jnp.sum(found * slope), found

    def by_chunks(hidden, unembedding):
        return token_logprob(hidden, unembedding, tokens, wanted, Chunking(columns, keep, SingleDevice()), config)

    def by_formula(hidden, unembedding):
        return plain(hidden, unembedding, tokens, wanted, config)

    found = jax.jit(jax.grad(loss, argnums=(1, 2), has_aux=True), static_argnums=0)(by_chunks, hidden, unembedding)
    expected = jax.grad(loss, argnums=(1, 2), has_aux=True)(by_formula, hidden, unembedding)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, expected)


@pytest.mark.parametrize("config", [model_config(), model_config(logit_scale=0.5, logit_softcap=1.0)])
def test_a_frozen_unembedding_needs_no_logits_in_the_backward_pass(config: ModelConfig) -> None:
    """The gradient of hidden states is that of a trained unembedding, from two products with the unembedding, not three."""
    hidden, unembedding, tokens, wanted = inputs()
    slope = jnp.asarray(np.random.default_rng(1).normal(size=(B, L)), jnp.float32)

    def loss(hidden, unembedding):
        chunking = Chunking(4, False, SingleDevice())
        return jnp.sum(token_logprob(hidden, unembedding, tokens, wanted, chunking, config) * slope)

    frozen = jax.jit(jax.grad(loss))
    trained = jax.jit(jax.grad(loss, argnums=(0, 1)))
    np.testing.assert_allclose(frozen(hidden, unembedding), trained(hidden, unembedding)[0], atol=1e-5)
    products = [
        str(jax.make_jaxpr(gradient)(hidden, unembedding)).count("dot_general") for gradient in (frozen, trained)
    ]
    assert products == [2, 4]


def test_chunks_without_a_wanted_column_are_skipped() -> None:
    """What stands in columns that no row wants cannot reach the result, not even as not-a-number."""
    hidden, unembedding, tokens, wanted = inputs()
    poisoned = hidden.at[:, 9:].set(jnp.nan)

    def loss(hidden, unembedding):
        chunking = Chunking(3, False, SingleDevice())
        return jnp.sum(token_logprob(hidden, unembedding, tokens, wanted, chunking, model_config()))

    for at in (0, 1):
        found = jax.grad(loss, argnums=at)(poisoned, unembedding)
        np.testing.assert_array_equal(found, jax.grad(loss, argnums=at)(hidden, unembedding))
