"""How the weights of a model are stored: plain float32, or frozen in another format with an adapter on top."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from zephyr_jax.batch import Axes
from zephyr_jax.config.sections import BaseFormat
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.targets import projections_of
from zephyr_jax.model.families.tensors import HfTensor
from zephyr_jax.model.lora import BASE, LORA_A, LORA_B, LORA_SCALE, LoraSpec, is_adapter
from zephyr_jax.model.quantize import CODE_DTYPES, CODES, SCALE_DTYPE, SCALES, scales_shape


@dataclass(frozen=True, kw_only=True)
class WeightFormat:
    """Storage of a model's weights; the default is that of full-parameter training."""

    base_format: BaseFormat = "float32"
    """Of projections; embedding and unembedding are float32 with `float32`, else bfloat16. Norms are float32."""
    block_size: int = 64
    lora: LoraSpec | None = None

    @property
    def name(self) -> str:
        """Base format with its block size, such as `nf4-64`."""
        return f"{self.base_format}-{self.block_size}" if self.base_format in CODE_DTYPES else self.base_format

    def is_trainable(self, name: str) -> bool:
        """Whether a weight, by its dotted name, trains: all do without an adapter, else only the adapter's."""
        return self.lora is None or is_adapter(name)


PLAIN = WeightFormat()
"""float32, without an adapter: all weights train."""


@dataclass(frozen=True)
class StoredWeight:
    """One array of the parameters."""

    shape: tuple[int, ...]
    dtype: Any
    axes: Axes
    """Logical axes, one per dimension."""
    is_cast: bool
    """Whether a layer only uses it in the compute dtype, so that generation may cast it beforehand."""


def stored_weights(config: ModelConfig, state: nnx.State[Any, Any], weight_format: WeightFormat) -> Any:
    """Pure dict of `StoredWeight`s: the parameters of `abstract_model` as they are stored.

    Raises InputError for a block size that does not divide the inputs of a projection.
    """
    projections = {tensor.path: tensor for tensor in projections_of(config).values()}
    floats = jnp.float32 if weight_format.base_format == "float32" else jnp.bfloat16

    def stored(path: tuple[str, ...], variable: nnx.Variable[Any]) -> Any:
        in_float32 = variable.get_metadata("in_float32")
        dtype = jnp.float32 if in_float32 else floats
        weight = StoredWeight(variable.shape, dtype, variable.get_metadata("axes"), not in_float32)
        return _node(weight, projections[path], weight_format) if path in projections else weight

    if weight_format.base_format in CODE_DTYPES:
        sizes = {path: variable.shape for path, variable in nnx.to_flat_state(state)}
        inputs = {
            item.name.format("*"): math.prod(sizes[path][1 : 1 + item.inputs]) for path, item in projections.items()
        }
        _check_blocks(inputs, weight_format.block_size)
    flat: Any = nnx.to_flat_state(state)
    weights: Any = unflatten_dict({path: stored(path, variable) for path, variable in flat})
    return weights


def _node(weight: StoredWeight, tensor: HfTensor, weight_format: WeightFormat) -> Any:
    """The arrays that stand for one projection: itself where it has neither codes nor an adapter."""
    layers, sizes = weight.shape[0], weight.shape[1:]
    inputs, outputs = weight.axes[1 : 1 + tensor.inputs], weight.axes[1 + tensor.inputs :]
    node: dict[str, StoredWeight] = {BASE: weight}
    if weight_format.base_format in CODE_DTYPES:
        shape = (layers, *scales_shape(sizes, tensor.inputs, weight_format.block_size))
        codes = StoredWeight(weight.shape, CODE_DTYPES[weight_format.base_format], weight.axes, is_cast=False)
        # Blocks are sharded as the first input axis, along which they lie; a device needs whole blocks.
        scales = StoredWeight(shape, SCALE_DTYPE, ("layers", inputs[0], *outputs), is_cast=False)
        node = {CODES: codes, SCALES: scales}
    lora = weight_format.lora
    if lora is None or ".".join(tensor.path[1:]) not in lora.targets:
        return node.get(BASE, node)
    in_sizes, out_sizes = sizes[: tensor.inputs], sizes[tensor.inputs :]
    return node | {
        LORA_A: StoredWeight((layers, *in_sizes, lora.rank), jnp.float32, ("layers", *inputs, "rank"), is_cast=False),
        LORA_B: StoredWeight((layers, lora.rank, *out_sizes), jnp.float32, ("layers", "rank", *outputs), is_cast=False),
        LORA_SCALE: StoredWeight((layers,), jnp.float32, ("layers",), is_cast=False),
    }


def _check_blocks(inputs: dict[str, int], block_size: int) -> None:
    """Raise InputError unless the block size divides the number of inputs of every projection."""
    wrong = next((name for name, count in inputs.items() if count % block_size), None)
    if wrong:
        raise InputError(
            f"block_size: expected a divisor of the {inputs[wrong]:,} inputs of {wrong}, got {block_size}. Set "
            f"`--adapter.block_size {math.gcd(block_size, *inputs.values())}` (commands that do not train: "
            "`--model.block_size`), or base_format bfloat16."
        )
