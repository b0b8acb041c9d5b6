"""Range check before weights are written in a narrower dtype: a value beyond its range would become infinity."""

from collections.abc import Iterable
from functools import lru_cache, partial, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.errors import InputError
from zephyr_jax.model.families.tensors import HfTensor


def check_range(parameters: Any, tensors: Iterable[HfTensor], num_layers: int, kind: np.dtype) -> None:
    """Check that `kind` can hold every value.

    Args:
        parameters: Pure dict of float32 global arrays.
        tensors: Those to check.
        num_layers: Layers of the model.
        kind: Dtype to write; float32 holds every value.

    Raises:
        InputError: On every process; names the first tensor with a value beyond the range.
    """
    if kind == np.float32:
        return
    limit = float(jnp.finfo(kind).max)
    for tensor in tensors:
        value = reduce(getitem, tensor.path, parameters)
        largest = np.atleast_1d(jax.device_get(_largest(value.sharding, tensor.stacked)(value)))
        for name, magnitude in zip(tensor.names(num_layers), largest.tolist(), strict=True):
            if magnitude > limit:
                raise InputError(
                    f"Tensor {name} does not fit into {kind.name}: expected magnitudes of at most {limit:g}, got "
                    f"{magnitude:g}. Export as float32, or as bfloat16, which has the range of float32."
                )


@lru_cache
def _largest(sharding: Any, stacked: bool) -> Any:
    """Jitted function: largest magnitude of a tensor, or of each layer [Y], replicated; NaN counts as 0."""
    replicated = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    return jax.jit(partial(_magnitude, stacked), out_shardings=replicated)


def _magnitude(stacked: bool, value: Array) -> Array:
    return jnp.max(jnp.where(jnp.isnan(value), 0, jnp.abs(value)), axis=tuple(range(stacked, value.ndim)))
