"""Gradients of weights in another dtype than the weights.

JAX gives a gradient the dtype of what it differentiates, so float32 weights have float32 gradients, also where every product
behind them is bfloat16. A *tap* is an array of zeros that nothing reads, in the dtype that the gradient should have: the
loss is differentiated with respect to the taps. No cast copy of all weights is made for it; each layer casts its own.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tapped:
    """Stands where a weight stands in a model; `tapped[...]` is its value in the tap's dtype."""

    value: Array
    tap: Array

    def __getitem__(self, index: Any) -> Array:
        return _read(self.value, self.tap)[index]


@jax.custom_vjp
def _read(value: Array, tap: Array) -> Array:
    return value.astype(tap.dtype)


def _forward(value: Array, tap: Array) -> tuple[Array, None]:
    return value.astype(tap.dtype), None


def _backward(_: None, gradient: Array) -> tuple[None, Array]:
    return None, gradient


_read.defvjp(_forward, _backward)


def taps(parameters: Any, dtype: str) -> Any:
    """Zeros to differentiate by: of `dtype` for the weights of matmuls, float32 for norms, which compute in float32."""

    def one(path: tuple[Any, ...], leaf: Array) -> Array:
        return jnp.zeros(leaf.shape, jnp.float32 if path[-1].key == "norm" else dtype)

    return jax.tree_util.tree_map_with_path(one, parameters)
