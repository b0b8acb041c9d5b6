"""The projections' product and its own gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.model.linear import linear


@pytest.mark.parametrize(
    ("inputs", "outputs"), [((6,), (5,)), ((6,), (3, 4)), ((3, 4), (6,))], ids=["mlp", "heads out", "heads in"]
)
def test_it_equals_tensordot_in_value_and_gradient(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
    """For every shape that the decoder uses, against what JAX derives by itself."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 7, *inputs)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(*inputs, *outputs)), jnp.float32)

    def loss(product, x, weights):
        return jnp.sum(jnp.sin(product(x, weights)))

    def by_us(x, weights):
        return linear(x, weights, len(inputs))

    def by_jax(x, weights):
        return jnp.tensordot(x, weights, len(inputs))

    np.testing.assert_array_equal(by_us(x, weights), by_jax(x, weights))
    found = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)(by_us, x, weights)
    expected = jax.grad(loss, argnums=(1, 2))(by_jax, x, weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
