"""LoRA (arXiv 2106.09685): a frozen weight plus a trainable product of two narrow matrices.

In the parameters, a projection with an adapter or with a quantized base is a *node*, a dict of arrays, where other weights are
one array. `adapted` turns each node into an `AdaptedWeight`, which stands for a weight in the decoder's modules; `project`
multiplies by either kind.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.model.linear import PROJECTION, linear
from zephyr_jax.model.quantize import CODES, SCALES, dequantize

BASE, LORA_A, LORA_B, LORA_SCALE = "base", "lora_a", "lora_b", "lora_scale"
"""Names in a node: the frozen float weight [Y, *inputs, *outputs], A [Y, *inputs, rank], B [Y, rank, *outputs], scale [Y]."""


@dataclass(frozen=True, kw_only=True)
class LoraSpec:
    """Size and place of an adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Dotted names of the adapted weights below `decoder`, such as `attention.query`, in the model's order."""
    use_rslora: bool = False

    @property
    def scale(self) -> float:
        """Factor of the product A B: alpha / rank, or alpha / sqrt(rank) for rank-stabilized LoRA (arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


def is_adapter(name: str) -> bool:
    """Whether a weight, by its dotted name, is a trainable part of an adapter."""
    return name.rpartition(".")[2] in (LORA_A, LORA_B)


def is_node(value: Any) -> bool:
    """Whether a part of the parameters stands for one weight."""
    return isinstance(value, Mapping) and (BASE in value or CODES in value)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AdaptedWeight:
    """A node as the value of an `nnx.Param`. All arrays are stacked over layers, or all are one layer's."""

    node: dict[str, Any]

    def __getitem__(self, index: Any) -> "AdaptedWeight":
        # `param[...]` reads the value of an array parameter; A and B may be slotted weights, whose value it reads, too.
        if index is not Ellipsis:
            raise TypeError(f"expected `weight[...]`, got index {index!r}")
        return replace(self, node={name: value[...] for name, value in self.node.items()})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FrozenSlice:
    """One layer of a stacked frozen array in a node, sliced where it is read."""

    stack: Array
    """[Y, ...]."""
    index: Array
    """int32 []: the layer."""
    factor: Array | None
    """float32 []: multiplies the layer; see `layer_stack`."""

    def __getitem__(self, index: Any) -> "FrozenSlice":
        return self

    def read(self) -> Array:
        """The layer's array [...], in the stack's dtype."""
        layer: Array = jax.lax.dynamic_index_in_dim(self.stack, self.index, keepdims=False)
        return layer if self.factor is None else layer * self.factor.astype(layer.dtype)


def adapted(parameters: Any) -> Any:
    """The parameters with an `AdaptedWeight` in the place of every node; the same dict without nodes."""
    if is_node(parameters):
        return AdaptedWeight(dict(parameters))
    if isinstance(parameters, Mapping):
        return {name: adapted(value) for name, value in parameters.items()}
    return parameters


def without_adapter(parameters: Any) -> Any:
    """The parameters without their adapters: nodes of a quantized base keep codes and scales, others become one array."""
    if is_node(parameters):
        return parameters[BASE] if BASE in parameters else {name: parameters[name] for name in (CODES, SCALES)}
    if isinstance(parameters, Mapping):
        return {name: without_adapter(value) for name, value in parameters.items()}
    return parameters


def only_adapter(parameters: Any) -> Any:
    """A and B of every adapted projection, in nested dicts."""
    if is_node(parameters):
        return {name: parameters[name] for name in (LORA_A, LORA_B) if name in parameters}
    if isinstance(parameters, Mapping):
        parts = {name: only_adapter(value) for name, value in parameters.items()}
        return {name: part for name, part in parts.items() if part}
    return {}


def num_adapter_weights(parameters: Any) -> int:
    """Number of trainable weights of adapters, of parameters or their shapes; 0 without an adapter."""
    return sum(leaf.size for leaf in jax.tree.leaves(only_adapter(parameters)))


def attach_adapter(weights: Any, adapter: Any, scale: float) -> dict[str, Any]:
    """The parameters with an adapter: the inverse of `without_adapter` and `only_adapter`.

    Args:
        weights: Nested dicts without adapters.
        adapter: Nested dicts of `lora_a` and `lora_b`.
        scale: Of `LoraSpec`.
    """
    if LORA_A in adapter:
        node = dict(weights) if isinstance(weights, Mapping) else {BASE: weights}
        lora_a = adapter[LORA_A]
        everywhere = NamedSharding(lora_a.sharding.mesh, PartitionSpec())  # a global array on several hosts, too
        values = np.full(lora_a.shape[:1], scale, np.float32)
        scales = jax.make_array_from_callback(values.shape, everywhere, lambda index: values[index])
        return node | {LORA_A: lora_a, LORA_B: adapter[LORA_B], LORA_SCALE: scales}
    return {
        name: attach_adapter(weights[name], adapter[name], scale) if name in adapter else weights[name]
        for name in weights
    }


def project(x: Array, weight: Array | AdaptedWeight, axes: int = 1) -> Array:
    """x W, or x W + (x A)(scale B) with an adapter, in x's dtype.

    Args:
        x: [B, L, *inputs].
        weight: [*inputs, *outputs] of any float dtype, or a node of one layer.
        axes: Number of input axes.

    Returns:
        [B, L, *outputs] in x's dtype. No gradient flows into a node's base, codes or scales.
    """
    if not isinstance(weight, AdaptedWeight):
        return linear(x, weight.astype(x.dtype), axes)
    node = weight.node
    if LORA_A not in node:
        return linear(x, jax.lax.stop_gradient(dense_base(node, x.dtype)), axes)
    # The scale multiplies B, the smaller side, in float32: alpha / sqrt(rank) has no exact bfloat16 value.
    scaled_b = (node[LORA_B].astype(jnp.float32) * node[LORA_SCALE]).astype(x.dtype)
    frozen = {name: node[name] for name in (BASE, CODES, SCALES) if name in node}
    return _adapted_linear(x, frozen, node[LORA_A].astype(x.dtype), scaled_b, axes)


type _Frozen = dict[str, Array | FrozenSlice]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _adapted_linear(x: Array, frozen: _Frozen, lora_a: Array, lora_b: Array, axes: int) -> Array:
    """x W + (x A) B without a gradient of W.

    Args:
        x: [B, L, *inputs].
        frozen: W of one layer, as base or as codes and scales.
        lora_a: [*inputs, rank] in x's dtype.
        lora_b: [rank, *outputs] in x's dtype.
        axes: Number of input axes.
    """
    return _forward(x, frozen, lora_a, lora_b, axes)[0]


type _Residuals = tuple[Array, _Frozen, Array, Array, Array]


def _forward(x: Array, frozen: _Frozen, lora_a: Array, lora_b: Array, axes: int) -> tuple[Array, _Residuals]:
    narrow = jnp.tensordot(x, lora_a, axes)
    product = jnp.tensordot(x, dense_base(frozen, x.dtype), axes) + jnp.tensordot(narrow, lora_b, 1)
    # One name for the sum: a policy that saves projections would else save both of its terms.
    return cast(Array, checkpoint_name(product, PROJECTION)), (x, frozen, lora_a, lora_b, narrow)


def _backward(axes: int, residuals: _Residuals, grad_out: Array) -> tuple[Array, None, Array, Array]:
    x, frozen, lora_a, lora_b, narrow = residuals
    grad_out = jax.lax.optimization_barrier(grad_out)  # see `linear`
    outputs = lora_b.ndim - 1
    over_outputs = tuple(range(2, 2 + outputs))
    grad_narrow = jnp.tensordot(grad_out, lora_b, (over_outputs, tuple(range(1, 1 + outputs))))
    # Transposed: XLA's CPU backend takes four times as long for a product with few columns as for one with few rows. Behind the
    # barrier below it cannot undo that.
    grad_a_transposed = jnp.tensordot(grad_narrow, x, ((0, 1), (0, 1)))
    grad_b = jnp.tensordot(narrow, grad_out, ((0, 1), (0, 1)))
    # The gradient of x waits for those of A and B, the last readers of x: otherwise both are in memory at the peak of a layer.
    # W is dequantized a second time, behind the barrier: otherwise the dense weights of a layer stay in memory from its
    # recomputation on. Of a slice only the index passes the barrier: the stack itself would be copied.
    late = {name: part.index if isinstance(part, FrozenSlice) else part for name, part in frozen.items()}
    grad_out, grad_narrow, grad_a_transposed, grad_b, late = jax.lax.optimization_barrier(
        (grad_out, grad_narrow, grad_a_transposed, grad_b, late)
    )
    frozen = {
        name: replace(part, index=late[name]) if isinstance(part, FrozenSlice) else late[name]
        for name, part in frozen.items()
    }
    base = dense_base(frozen, x.dtype)
    grad_x = jnp.tensordot(grad_out, base, (over_outputs, tuple(range(axes, axes + outputs))))
    grad_x = grad_x + jnp.tensordot(grad_narrow, lora_a, ((2,), (axes,)))
    return grad_x, None, jnp.moveaxis(grad_a_transposed, 0, -1), grad_b


_adapted_linear.defvjp(_forward, _backward)


def dense_base(node: Mapping[str, Array | FrozenSlice], dtype: Any) -> Array:
    """The frozen weight of one layer's node, without the adapter, [*inputs, *outputs]."""
    arrays = {name: part.read() if isinstance(part, FrozenSlice) else part for name, part in node.items()}
    return arrays[BASE].astype(dtype) if BASE in arrays else dequantize(arrays[CODES], arrays[SCALES], dtype)


def delta(lora_a: Array, lora_b: Array, scale: Array | float) -> Array:
    """What the adapter adds to one layer's weight: scale A B, float32 [*inputs, *outputs]."""
    # The TPU's default precision would round both factors to bfloat16.
    return jnp.tensordot(lora_a.astype(jnp.float32), lora_b.astype(jnp.float32) * scale, 1, precision="highest")
