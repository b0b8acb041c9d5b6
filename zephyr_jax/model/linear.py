"""The linear map of every projection, with a backward pass that makes its incoming gradient once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

PROJECTION = "projection"
"""Checkpoint name of the product with weights; `remat` saves by this name."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: Array, weights: Array, axes: int = 1) -> Array:
    """x [rows, length, *inputs] times weights [*inputs, *outputs]: [rows, length, *outputs] in x's dtype.

    `axes` is the number of input axes. Weights have x's dtype; so has their gradient.

    What differs from `jnp.tensordot` is the gradient. Both of its products read the gradient that comes in; left to
    itself XLA's CPU backend fuses whatever made it into each, and makes it a second time transposed, element by element:
    half as slow again for a SwiGLU block (`benchmarks/LOG.md`). A barrier has it made once, in the order both can read.
    """
    return jnp.tensordot(x, weights, axes)


def _forward(x: Array, weights: Array, axes: int) -> tuple[Array, tuple[Array, Array]]:
    # The plain product, not `linear`: a checkpoint policy cannot see into the call of a custom-VJP function.
    return checkpoint_name(jnp.tensordot(x, weights, axes), PROJECTION), (x, weights)


def _backward(axes: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weights = kept
    gradient = jax.lax.optimization_barrier(gradient)
    outputs = weights.ndim - axes
    to_x = jnp.tensordot(gradient, weights, (tuple(range(2, 2 + outputs)), tuple(range(axes, weights.ndim))))
    return to_x, jnp.tensordot(x, gradient, ((0, 1), (0, 1)))


linear.defvjp(_forward, _backward)
