"""Loading a Hugging Face folder into sharded arrays: each process reads only the rows that its devices hold, tensor by tensor."""

import ctypes
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from zephyr_jax.checkpoint.convert import LayerChange, StackedTarget
from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.families.tensors import HfTensor
from zephyr_jax.storage.files import Path

_RELEASED_BYTES = 2**20  # size of a tensor from which on the memory of its blocks is returned to the system


def load_parameters(
    folder: Path, config: ModelConfig, abstract: Any, shardings: Any, changes: Sequence[LayerChange] = ()
) -> Any:
    """Read all weights in the format of `abstract`; parts of adapters in it are left out.

    Besides what the devices hold, host memory needs this process's shard of one tensor and a few MiB, and devices one tensor in
    float32 where it is quantized or merged.

    Args:
        folder: Hugging Face folder.
        config: Configuration of the model.
        abstract: Pure dict of shapes and dtypes.
        shardings: Pure dict of shardings, of the same structure.
        changes: What is done to each layer as it is read, in this order.

    Returns:
        Pure dict of global arrays.

    Raises:
        InputError: Tensors are missing, unknown or of another size; names them.
    """
    files = TensorFiles(folder)
    parameters: dict[str, Any] = {}
    try:
        files.check(config)
        for tensor in tensors_of(config):
            target = StackedTarget.of(tensor, abstract, shardings, changes)
            names = tensor.names(config.num_layers)
            if tensor.stacked:
                value = target.stack(_load_layers(files, target, names))
            else:
                sizes, dtype = target.abstract.shape, target.abstract.dtype
                value = _load_tensor(files, tensor, names[0], sizes, target.shardings, dtype)
            *parents, name = tensor.path
            reduce(lambda tree, key: tree.setdefault(key, {}), parents, parameters)[name] = value
    finally:
        files.close()
    return parameters


def _load_layers(files: TensorFiles, target: StackedTarget, names: list[str]) -> Iterator[Array]:
    sizes, sharding, dtype = target.layer_sizes, target.layer_sharding, target.layer_dtype
    for name in names:
        yield _load_tensor(files, target.tensor, name, sizes, sharding, dtype)


def _load_tensor(
    files: TensorFiles, tensor: HfTensor, name: str, sizes: tuple[int, ...], sharding: NamedSharding, dtype: Any
) -> Array:
    """One Hugging Face tensor as a global array of `dtype`, without a layer axis."""
    indices = {
        device: tuple(slice(*part.indices(size)[:2]) for part, size in zip(index or (), sizes, strict=True))
        for device, index in sharding.addressable_devices_indices_map(sizes).items()
    }
    blocks = {index: np.empty([part.stop - part.start for part in index], dtype) for index in indices.values()}
    files.fill(name, [(tensor.hf_index(sizes, index), tensor.hf_view(block)) for index, block in blocks.items()])
    shards: dict[jax.Device, Array] = {}
    for index in list(blocks):
        block = blocks.pop(index)  # so that it is freed as soon as it is copied, before the next one
        shards |= {device: jax.device_put(block, device) for device, other in indices.items() if other == index}
        jax.block_until_ready(list(shards.values()))
    # A call takes milliseconds, and a small model has dozens of tensors.
    if math.prod(sizes) * jnp.dtype(dtype).itemsize >= _RELEASED_BYTES:
        _release_free_memory()
    return jax.make_array_from_single_device_arrays(sizes, sharding, [shards[device] for device in indices])


def _release_free_memory() -> None:
    """Return freed memory to the system; glibc's allocator would keep hundreds of MiB between blocks in use."""
    with suppress(OSError, AttributeError):  # C libraries without malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
