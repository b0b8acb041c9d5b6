"""The linear map of every projection, with a backward pass that computes its incoming gradient once."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

PROJECTION = "projection"
"""Checkpoint name of the product with weights; `remat` saves by this name."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: Array, weights: Array, axes: int = 1) -> Array:
    """`jnp.tensordot` with a faster gradient.

    Args:
        x: [B, L, *inputs].
        weights: [*inputs, *outputs] in x's dtype; the gradient has it, too.
        axes: Number of input axes.

    Returns:
        [B, L, *outputs] in x's dtype.
    """
    return jnp.tensordot(x, weights, axes)


def _forward(x: Array, weights: Array, axes: int) -> tuple[Array, tuple[Array, Array]]:
    # The plain product, not `linear`: a checkpoint policy cannot see into the call of a custom-VJP function.
    return checkpoint_name(jnp.tensordot(x, weights, axes), PROJECTION), (x, weights)


def _backward(axes: int, residuals: tuple[Array, Array], grad_out: Array) -> tuple[Array, Array]:
    x, weights = residuals
    # Both products below read the incoming gradient. Without a barrier XLA's CPU backend fuses its computation into each of
    # them, the second time transposed and element by element: a SwiGLU block takes half as long again (benchmarks/LOG.md).
    grad_out = jax.lax.optimization_barrier(grad_out)
    outputs = weights.ndim - axes
    grad_x = jnp.tensordot(grad_out, weights, (tuple(range(2, 2 + outputs)), tuple(range(axes, weights.ndim))))
    return grad_x, jnp.tensordot(x, grad_out, ((0, 1), (0, 1)))


linear.defvjp(_forward, _backward)
