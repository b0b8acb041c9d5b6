"""Numpy that each process made -> global arrays on the mesh. Processes hold only the rows of their own devices."""

from typing import Any

import jax
import numpy as np

from zephyr_jax.parallel.sharding import Rules


def local_rows(rules: Rules, rows: int) -> slice:
    """The rows of a microbatch (of `rows` rows in all) that this process must lay out: one contiguous slice."""
    parts = rules.sharding("batch").addressable_devices_indices_map((rows,)).values()
    bounds = [part[0].indices(rows) for part in parts if part is not None]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def place_batch(rules: Rules, batch: Any, rows: int) -> Any:
    """Global arrays [A, rows, ...] from this process's part [A, local rows, ...] of every leaf."""

    def one(leaf: np.ndarray) -> jax.Array:
        sharding = rules.sharding("microbatch", "batch", *[None] * (leaf.ndim - 2))
        return jax.make_array_from_process_local_data(sharding, leaf, (leaf.shape[0], rows, *leaf.shape[2:]))

    return jax.tree.map(one, batch)


def local_part(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split over `batch` along its first axis, in order, each once."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])
