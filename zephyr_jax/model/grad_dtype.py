"""Gradients of weights in another dtype than the weights.

JAX gives a gradient the dtype of what is differentiated: float32 weights have float32 gradients, even where every product behind
them is bfloat16. Casting all weights before differentiating would need a bfloat16 copy of the model. Instead the loss is
differentiated with respect to a *gradient slot* per weight: zeros in the wanted dtype that no computation reads, so the compiler
removes them. Each layer still casts only its own weights.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SlottedWeight:
    """Replaces a weight in a model; `weight[...]` is its value in the slot's dtype."""

    value: Array
    slot: Array

    def __getitem__(self, index: Any) -> Array:
        return _read(self.value, self.slot)[index]


@jax.custom_vjp
def _read(value: Array, slot: Array) -> Array:
    return value.astype(slot.dtype)


def _forward(value: Array, slot: Array) -> tuple[Array, None]:
    return value.astype(slot.dtype), None


def _backward(_: None, gradient: Array) -> tuple[None, Array]:
    return None, gradient


_read.defvjp(_forward, _backward)


def gradient_slots(parameters: Any, dtype: str) -> Any:
    """Zeros to differentiate with respect to, one array per weight.

    Args:
        parameters: Pure dict of weights.
        dtype: Of the gradients of matmul weights. Parameters of `layers.norm_scale`, whose names end with `norm`, get float32.
    """

    def slot(path: tuple[Any, ...], leaf: Array) -> Array:
        return jnp.zeros(leaf.shape, jnp.float32 if path[-1].key.endswith("norm") else dtype)

    return jax.tree_util.tree_map_with_path(slot, parameters)
