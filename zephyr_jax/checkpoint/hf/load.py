"""Loading a Hugging Face folder into sharded arrays: each process reads only the rows that its devices hold, tensor by tensor."""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial, reduce
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.families.tensors import HfTensor
from zephyr_jax.storage.files import Path


def load_parameters(folder: Path, config: ModelConfig, abstract: Any, shardings: Any) -> Any:
    """Read all parameters. Besides what the devices hold, host memory needs this process's shard of one tensor and a few MiB.

    Args:
        folder: Hugging Face folder.
        config: Configuration of the model.
        abstract: Pure dict of shapes.
        shardings: Pure dict of shardings, of the same structure.

    Returns:
        Pure dict of float32 global arrays.

    Raises:
        InputError: Tensors are missing, unknown or of another size; names them.
    """
    files = TensorFiles(folder)
    parameters: dict[str, Any] = {}
    try:
        files.check(config)
        for tensor in tensors_of(config):
            sizes: tuple[int, ...] = reduce(getitem, tensor.path, abstract).shape
            sharding: NamedSharding = reduce(getitem, tensor.path, shardings)
            names = tensor.names(config.num_layers)
            if tensor.stacked:
                value = _load_stacked(files, tensor, names, sizes, sharding)
            else:
                value = _load_tensor(files, tensor, names[0], sizes, sharding)
            *parents, name = tensor.path
            reduce(lambda tree, key: tree.setdefault(key, {}), parents, parameters)[name] = value
    finally:
        files.close()
    return parameters


def _load_stacked(
    files: TensorFiles, tensor: HfTensor, names: list[str], sizes: tuple[int, ...], sharding: NamedSharding
) -> Array:
    """A parameter of all layers [Y, ...], filled layer by layer: stacking loaded layers would hold two copies."""
    layer_sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    stacked = _zeros(sizes, sharding)()
    for index, name in enumerate(names):
        layer = _load_tensor(files, tensor, name, sizes[1:], layer_sharding)
        stacked = jax.block_until_ready(_set_layer(stacked, layer, index))
    return stacked


@lru_cache
def _zeros(sizes: tuple[int, ...], sharding: NamedSharding) -> Callable[[], Array]:
    return jax.jit(partial(jnp.zeros, sizes, jnp.float32), out_shardings=sharding)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: Array, layer: Array, index: int) -> Array:
    result: Array = jax.lax.dynamic_update_index_in_dim(stacked, layer, index, 0)
    return result


def _load_tensor(
    files: TensorFiles, tensor: HfTensor, name: str, sizes: tuple[int, ...], sharding: NamedSharding
) -> Array:
    """One Hugging Face tensor as a float32 global array, without a layer axis."""
    indices = {
        device: tuple(slice(*part.indices(size)[:2]) for part, size in zip(index or (), sizes, strict=True))
        for device, index in sharding.addressable_devices_indices_map(sizes).items()
    }
    blocks = {index: np.empty([part.stop - part.start for part in index], np.float32) for index in indices.values()}
    files.fill(name, [(tensor.hf_index(sizes, index), tensor.hf_view(block)) for index, block in blocks.items()])
    shards: dict[jax.Device, Array] = {}
    for index in list(blocks):
        block = blocks.pop(index)  # so that it is freed as soon as it is copied, before the next one
        shards |= {device: jax.device_put(block, device) for device, other in indices.items() if other == index}
        jax.block_until_ready(list(shards.values()))
    _release_free_memory()
    return jax.make_array_from_single_device_arrays(sizes, sharding, [shards[device] for device in indices])


def _release_free_memory() -> None:
    """Return freed memory to the system; glibc's allocator would keep hundreds of MiB between blocks in use."""
    with suppress(OSError, AttributeError):  # C libraries without malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
