"""Zigzag order: how the columns of a row are split over devices, so that causal attention takes all of them equally long.

Later columns see more keys. A row is cut into 2n pieces for n devices, and device i holds pieces i and 2n - 1 - i, an early and a
late one (load-balanced order in arXiv 2407.21783, section 3.3.2). With one device the order is that of the columns.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass(frozen=True)
class RowShard:
    """The part of a row that a device holds."""

    index: Array | int
    """int32 []: number of the device among those that share the row."""
    count: int
    """Number of those devices."""

    def columns(self, length: int) -> Array:
        """int32 [length / count]: the device's columns of a row of `length` columns, or its blocks of `length` blocks."""
        order = to_zigzag(np.arange(length, dtype=np.int32)[None], self.count)
        return jnp.asarray(order.reshape(self.count, -1))[self.index]


def to_zigzag[T: (Array, np.ndarray)](x: T, count: int) -> T:
    """[B, L, ...] with columns in zigzag order for `count` devices, from their own order; L is a multiple of 2 * count."""
    if count == 1:
        return x
    # By reshapes instead of indices: the gradient of a gather would be a scatter.
    pieces = x.reshape(x.shape[0], 2, count, -1, *x.shape[2:])
    early, late = pieces[:, 0], pieces[:, 1, ::-1]
    library = np if isinstance(x, np.ndarray) else jnp
    zigzag: T = library.stack([early, late], axis=2).reshape(x.shape)
    return zigzag


def from_zigzag(x: Array, count: int) -> Array:
    """[B, L, ...] with columns in their own order, from zigzag order."""
    if count == 1:
        return x
    pieces = x.reshape(x.shape[0], count, 2, -1, *x.shape[2:])
    return jnp.concatenate([pieces[:, :, 0], pieces[:, ::-1, 1]], axis=1).reshape(x.shape)
