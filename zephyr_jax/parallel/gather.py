"""Gather sharded arrays into the host memory of process 0, one at a time."""

from functools import lru_cache, partial
from itertools import count
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zephyr_jax.parallel import jax_internals

_TIMEOUT_MS = 24 * 3600 * 1000
_barrier_ids = count()


def write_barrier() -> None:
    """Wait for process 0 to write, however long its disk takes; a process that dies still ends all within a minute.

    `hosts.barrier` is a collective, which times out where a slow disk or network delays one process.
    """
    client = jax_internals.distributed_client()
    if jax.process_count() > 1 and client is not None:
        client.wait_at_barrier(f"zephyr_jax_step_{next(_barrier_ids)}", timeout_in_ms=_TIMEOUT_MS)


def gather(value: Array, layer: int | None = None) -> np.ndarray | None:
    """An unsharded copy of an array, or of one layer of a stacked one.

    Every process must call this for the same arrays in the same order.

    Args:
        value: A global array; stacked ones have the layer as axis 0.
        layer: Index of the layer, or None for the whole array.

    Returns:
        The array in process 0, None in the others.
    """
    if jax.process_count() == 1:
        return np.asarray(jax.device_get(value if layer is None else value[layer]))
    write_barrier()
    assert isinstance(value.sharding, NamedSharding)
    replicated = jax.block_until_ready(_replicate(value.sharding.mesh, layer is not None)(value, layer or 0))
    return np.asarray(replicated.addressable_data(0)) if jax.process_index() == 0 else None


@lru_cache
def _replicate(mesh: Mesh, stacked: bool) -> Any:
    return jax.jit(partial(_select, stacked), out_shardings=NamedSharding(mesh, PartitionSpec()))


def _select(stacked: bool, value: Array, layer: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(value, layer, keepdims=False) if stacked else value
