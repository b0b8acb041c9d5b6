"""Whole arrays on process 0, one at a time, with every process taking part and keeping step."""

from functools import lru_cache, partial
from itertools import count
from typing import Any

import jax
import numpy as np
from jax import Array
from jax._src import distributed
from jax.sharding import NamedSharding, PartitionSpec

_DAY = 24 * 3600 * 1000  # milliseconds
_turns = count()


def keep_step() -> None:
    """A barrier that waits as long as process 0 needs to write; a process that vanishes still ends all within a minute.

    Collectives, which `wait_for_all` uses, give up where a slow disk or network keeps one process away.
    """
    client = distributed.global_state.client
    if jax.process_count() > 1 and client is not None:
        client.wait_at_barrier(f"zephyr_jax_step_{next(_turns)}", timeout_in_ms=_DAY)


def gather(value: Array, layer: int | None = None) -> np.ndarray | None:
    """An array (or one layer of a stacked one) whole in host memory of process 0; None in the others.

    Every process must call this for the same arrays in the same order.
    """
    if jax.process_count() == 1:
        return np.asarray(jax.device_get(value if layer is None else value[layer]))
    keep_step()
    assert isinstance(value.sharding, NamedSharding)
    whole: Any = jax.block_until_ready(_replicate(value.sharding.mesh, layer is not None)(value, layer or 0))
    return np.asarray(whole.addressable_data(0)) if jax.process_index() == 0 else None


@lru_cache
def _replicate(mesh: Any, stacked: bool) -> Any:
    return jax.jit(partial(_pick, stacked), out_shardings=NamedSharding(mesh, PartitionSpec()))


def _pick(stacked: bool, value: Array, layer: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(value, layer, keepdims=False) if stacked else value
