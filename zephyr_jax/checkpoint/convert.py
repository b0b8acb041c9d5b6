"""From float32 weights to the format they are stored in, layer by layer: merging adapters, rounding, quantizing."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from operator import getitem
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.config.sections import BaseFormat
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import tensors_of
from zephyr_jax.model.families.tensors import HfTensor
from zephyr_jax.model.lora import LORA_A, LORA_B, delta, without_adapter
from zephyr_jax.model.quantize import CODE_DTYPES, CODES, SCALE_DTYPE, SCALES, dequantize, quantize
from zephyr_jax.objective.logprob import Parameters

_FORMATS: dict[Any, BaseFormat] = {jnp.dtype(dtype): name for name, dtype in CODE_DTYPES.items()}


class LayerChange(Protocol):
    """A change of weights while they are loaded, one layer at a time."""

    def has(self, path: tuple[str, ...]) -> bool:
        """Whether it changes the weight at `path`."""

    def apply(self, path: tuple[str, ...], layer: int, weight: Array) -> Array:
        """The changed weight of one layer, float32 [*inputs, *outputs], in the sharding of `weight`."""


@dataclass(frozen=True)
class AdapterMerge:
    """An adapter to merge into the weights below it; with a negative scale, to subtract."""

    adapter: Parameters
    """A and B of every adapted projection, in nested dicts."""
    scale: float
    dtype: Any
    """The merged weights are rounded to it."""

    def has(self, path: tuple[str, ...]) -> bool:
        """Whether the adapter changes the weight at `path`."""
        return bool(self._node(path))

    def apply(self, path: tuple[str, ...], layer: int, weight: Array) -> Array:
        """The merged weight of one layer, float32."""
        node = self._node(path)
        return merge_layer(weight, node[LORA_A][layer], node[LORA_B][layer], self.scale, self.dtype)

    def _node(self, path: tuple[str, ...]) -> Any:
        return reduce(lambda tree, key: tree.get(key, {}), path, self.adapter)


def merge_layer(weight: Array, lora_a: Array, lora_b: Array, scale: float, dtype: Any) -> Array:
    """weight + scale A B, rounded to `dtype`, as float32 in the sharding of `weight`.

    Every device computes all of it, so that the bits, and with them fingerprints, do not depend on the mesh.
    """
    everywhere = replicated(weight)
    copies = (copy_to(everywhere, array) for array in (weight, lora_a, lora_b))
    return copy_to(weight.sharding, _merged(everywhere)(*copies, scale, dtype))


@lru_cache
def _merged(everywhere: NamedSharding) -> Callable[..., Array]:
    def merged(weight: Array, lora_a: Array, lora_b: Array, scale: float, dtype: Any) -> Array:
        return (weight + delta(lora_a, lora_b, scale)).astype(dtype).astype(jnp.float32)

    return jax.jit(merged, static_argnums=4, out_shardings=everywhere)


def replicated(array: Array) -> NamedSharding:
    """The sharding of a copy on every device of an array's mesh."""
    return NamedSharding(cast(NamedSharding, array.sharding).mesh, PartitionSpec())


def copy_to(sharding: Any, array: Array) -> Array:
    """The array in another sharding of the same devices; on several hosts, too."""
    return _identity(sharding)(array)


@lru_cache
def _identity(sharding: Any) -> Callable[[Array], Array]:
    return jax.jit(lambda array: array, out_shardings=sharding)


@dataclass(frozen=True)
class StackedTarget:
    """A weight of all layers as it will be stored."""

    tensor: HfTensor
    abstract: Any
    """Shape and dtype [Y, ...], or those of codes and scales."""
    shardings: Any
    changes: tuple[LayerChange, ...]
    """What is done to each layer before it is stored."""

    @classmethod
    def of(cls, tensor: HfTensor, abstract: Any, shardings: Any, changes: Sequence[LayerChange]) -> "StackedTarget":
        """The target of one tensor in the parameters `abstract` with `shardings`; parts of adapters in them are left out."""
        shape, sharding = (without_adapter(reduce(getitem, tensor.path, tree)) for tree in (abstract, shardings))
        return cls(tensor, shape, sharding, tuple(change for change in changes if change.has(tensor.path)))

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Sizes of one layer's weight."""
        sizes: tuple[int, ...] = _weight(self.abstract).shape[1:]
        return sizes

    @property
    def layer_dtype(self) -> Any:
        """Dtype in which `stack` takes a layer's weight: float32 where it is changed or quantized, else that of storage."""
        return jnp.float32 if self.changes or isinstance(self.abstract, Mapping) else self.abstract.dtype

    @property
    def layer_sharding(self) -> NamedSharding:
        """Sharding of one layer's weight."""
        return _without_layers(_weight(self.shardings))

    def stack(self, layers: Iterable[Array]) -> Any:
        """The stored weight, filled layer by layer: stacking all layers at once would hold two copies.

        Args:
            layers: Weights of the layers in order, in `layer_dtype`.

        Returns:
            Global array [Y, ...], or codes and scales.
        """
        stacked = jax.tree.map(
            lambda shape, sharding: zeros(shape.shape, shape.dtype, sharding)(), self.abstract, self.shardings
        )
        for index, layer in enumerate(layers):
            for change in self.changes:
                layer = change.apply(self.tensor.path, index, layer)
            stacked = jax.block_until_ready(_set_layer(stacked, self._convert(layer), index))
        return stacked

    def _convert(self, layer: Array) -> Any:
        if not isinstance(self.abstract, Mapping):
            return layer
        codes, scales = self.abstract[CODES], self.abstract[SCALES]
        block_size = layer.size * scales.shape[0] // scales.size
        to = tuple(_without_layers(self.shardings[name]) for name in (CODES, SCALES))
        return _quantize(self.tensor.inputs, _FORMATS[jnp.dtype(codes.dtype)], block_size, to)(layer)


def _weight(node: Any) -> Any:
    return node[CODES] if isinstance(node, Mapping) else node


def _without_layers(sharding: NamedSharding) -> NamedSharding:
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@lru_cache
def _quantize(
    inputs: int, base_format: BaseFormat, block_size: int, to: tuple[NamedSharding, ...]
) -> Callable[[Array], dict[str, Array]]:
    def function(weight: Array) -> dict[str, Array]:
        codes, scales = quantize(weight, inputs, base_format, block_size)
        return {CODES: codes, SCALES: scales.astype(SCALE_DTYPE)}

    return jax.jit(function, out_shardings=dict(zip((CODES, SCALES), to, strict=True)))


@lru_cache
def _dequantize(dtype: Any, to: NamedSharding) -> Callable[[Array, Array], Array]:
    return jax.jit(partial(dequantize, dtype=dtype), out_shardings=to)


@lru_cache
def zeros(sizes: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> Callable[[], Array]:
    """A function that makes zeros where `sharding` places them; compiled once for each combination."""
    return jax.jit(partial(jnp.zeros, sizes, dtype), out_shardings=sharding)


@partial(jax.jit, donate_argnums=0)
def _set_layer(stacked: Any, layer: Any, index: int) -> Any:
    def updated(stack: Array, part: Array) -> Array:
        result: Array = jax.lax.dynamic_update_index_in_dim(stack, part.astype(stack.dtype), index, 0)
        return result

    return jax.tree.map(updated, stacked, layer)


def _layers(stacked: Array) -> Iterator[Array]:
    """The layers of a stacked weight, sharded as it is; iterating over the array would gather each on one device."""
    layer_of = _select_layer(_without_layers(cast(NamedSharding, stacked.sharding)))
    return (layer_of(stacked, index) for index in range(stacked.shape[0]))


@lru_cache
def _select_layer(to: NamedSharding) -> Callable[[Array, int], Array]:
    return jax.jit(partial(jax.lax.dynamic_index_in_dim, axis=0, keepdims=False), out_shardings=to)


def convert_parameters(
    parameters: Parameters,
    config: ModelConfig,
    abstract: Any,
    shardings: Any,
    changes: Sequence[LayerChange],
    dequantized: Any = jnp.float32,
) -> Parameters:
    """Weights in another format; the arguments' arrays are freed one by one.

    Args:
        parameters: Nested dicts of float arrays, or of codes and scales, without adapters; the dicts are emptied.
        config: Configuration of the model.
        abstract: Shapes and dtypes of the result; parts of adapters in it are left out.
        shardings: Their shardings.
        changes: What is done to each layer, in this order.
        dequantized: Dtype in which codes are multiplied by their scales.
    """
    converted: Parameters = {}
    for tensor in tensors_of(config):
        *parents, name = tensor.path
        weight = reduce(getitem, parents, parameters).pop(name)
        target = StackedTarget.of(tensor, abstract, shardings, changes)
        if isinstance(weight, Mapping):
            dense = _dequantize(dequantized, target.layer_sharding)
            pairs = zip(_layers(weight[CODES]), _layers(weight[SCALES]), strict=True)
            value = target.stack(dense(*pair) for pair in pairs)
        elif isinstance(target.abstract, Mapping) or target.changes:
            value = target.stack(_layers(weight))
        else:
            value = jax.jit(partial(jnp.asarray, dtype=target.abstract.dtype), out_shardings=target.shardings)(weight)
        del weight
        reduce(lambda tree, key: tree.setdefault(key, {}), parents, converted)[name] = value
    return converted
