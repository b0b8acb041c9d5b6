"""Host arrays to global arrays on the mesh, and back. Each process holds the rows of its devices only."""

from typing import Any

import jax
import numpy as np

from zephyr_jax.parallel.sharding import ShardingRules


def local_rows(rules: ShardingRules, rows: int) -> slice:
    """The contiguous rows, of a microbatch of `rows`, that this process must provide."""
    shards = rules.sharding("batch").addressable_devices_indices_map((rows,)).values()
    bounds = [shard[0].indices(rows) for shard in shards if shard is not None]
    return slice(min(start for start, _, _ in bounds), max(stop for _, stop, _ in bounds))


def place_batch(rules: ShardingRules, batch: Any, rows: int) -> Any:
    """Global arrays [A, rows, ...] from this process's arrays [A, local rows, ...]; `rows` is the global number."""

    def to_global(leaf: np.ndarray) -> jax.Array:
        sharding = rules.sharding("microbatch", "batch", *[None] * (leaf.ndim - 2))
        result: jax.Array = jax.make_array_from_process_local_data(
            sharding, leaf, (leaf.shape[0], rows, *leaf.shape[2:])
        )
        return result

    return jax.tree.map(to_global, batch)


def local_shard(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is sharded over `batch` along axis 0, in order and without duplicates."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
