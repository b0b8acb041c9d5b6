"""The decoder's weights of all layers, as the scan over layers reads them.

The scan slices most weights itself. The slice of a weight is then one array for the forward and the backward pass of a layer:
the TPU compiler copies all slices at the start of the layer and keeps the copies to its end. A frozen matrix is therefore sliced
where a product reads it, in each pass again: 0.1 GiB less for Mistral-7B in int8, 0.3 GiB in bfloat16.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from zephyr_jax.model.lora import BASE, LORA_A, FrozenSlice
from zephyr_jax.model.quantize import CODES, SCALES


@dataclass(frozen=True)
class LayerStack:
    """Weights with a leading layer axis, in a tree."""

    leaves: list[tuple[tuple[Any, ...], Array]]
    """Path and array [Y, ...] of every leaf."""
    tree: Any
    """Their tree definition."""
    dtype: jnp.dtype
    """Compute dtype."""
    opaque_one: Array
    """A one, float32 [], that the compiler cannot see through."""

    @classmethod
    def of(cls, stacked: Any, dtype: jnp.dtype) -> "LayerStack":
        """The stack of a tree of arrays [Y, ...], for a forward pass in `dtype`."""
        leaves, tree = jax.tree_util.tree_flatten_with_path(stacked)
        return cls(leaves, tree, dtype, jax.lax.optimization_barrier(jnp.float32(1)))

    @property
    def scanned(self) -> list[Array]:
        """The arrays that the scan slices: all but those of frozen matrices below an adapter."""
        frozen = self._frozen_nodes()
        return [leaf for path, leaf in self.leaves if not _is_frozen(path, frozen)]

    def layer(self, index: Array, scanned: Sequence[Array]) -> Any:
        """The tree of one layer.

        Args:
            index: int32 []: the layer.
            scanned: This layer's slices of `scanned`.
        """
        frozen, slices = self._frozen_nodes(), iter(scanned)
        parts: list[Any] = []
        for path, leaf in self.leaves:
            factor = self.opaque_one if self._is_cast(path, leaf) else None
            if _is_frozen(path, frozen):
                parts.append(FrozenSlice(leaf, index, factor))
            else:
                part = next(slices)
                parts.append(part if factor is None else part * factor.astype(part.dtype))
        return jax.tree_util.tree_unflatten(self.tree, parts)

    def _is_cast(self, path: tuple[Any, ...], leaf: Array) -> bool:
        """Whether a leaf is multiplied by the opaque one."""
        # Each layer casts its own weights to the compute dtype. The TPU compiler moves these casts out of the loop, casts all
        # layers at once and keeps that copy through forward and backward pass: 1.7 GiB per chip for 7B on eight chips. The
        # product has to be computed inside the loop, so the cast stays there; it is fused with the cast and costs nothing.
        # Codes need none: the product of their scales keeps the dequantization inside the loop. A base in the compute dtype has
        # no cast, and its product would be a copy.
        if self.dtype == jnp.float32 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return False
        return leaf.dtype != self.dtype or _key(path[-1]) != BASE

    def _frozen_nodes(self) -> set[tuple[Any, ...]]:
        """Paths of the nodes with an adapter whose frozen weight is one matrix per layer."""
        # Not of queries, keys and values: the compiler would change the layout of their heads once for all layers, in a copy.
        adapted = {path[:depth] for path, _ in self.leaves for depth, key in enumerate(path) if _key(key) == LORA_A}
        return {path[:-1] for path, leaf in self.leaves if _key(path[-1]) in (BASE, CODES) and leaf.ndim == 3} & adapted


def _is_frozen(path: tuple[Any, ...], nodes: set[tuple[Any, ...]]) -> bool:
    return _key(path[-1]) in (BASE, CODES, SCALES) and path[:-1] in nodes


def _key(part: Any) -> str:
    return str(getattr(part, "key", ""))
