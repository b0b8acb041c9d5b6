"""A model on a mesh: shapes and shardings of its weights, and the weights once they are loaded."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.new_adapter import NewAdapter
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.weights import Layout, check_weights, load_weights
from zephyr_jax.config.adapter import StorageOptions
from zephyr_jax.config.sections import ForwardOptions, ModelOptions, ScoringOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, abstract_model
from zephyr_jax.model.lora import without_adapter
from zephyr_jax.model.quantize import CODE_DTYPES
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.sharding import ShardingRules

_CPU_CHUNK = 256
_FROZEN_CHUNK = 512
_MAX_LOGITS_BYTES = 160 * 2**20


@dataclass(frozen=True)
class AbstractModel:
    """A model on a mesh without its weights."""

    definition: nnx.GraphDef[Any]
    """Static: everything but the weights."""
    parameters: Any
    """Pure dict of shapes and dtypes with their shardings; a projection may be a node of `model.lora`."""
    shardings: Any
    """Pure dict of shardings."""
    config: ModelConfig
    compute: Compute
    logprob_chunk: int
    """Target tokens of a device whose logits exist at one time."""
    weight_format: WeightFormat = PLAIN


@dataclass(frozen=True)
class OpenedModel:
    """A checked model on a mesh, whose weights are not loaded yet: what every command that computes with a model starts from."""

    source: ModelSource
    options: ForwardOptions
    """`replace` them where a command inherits settings from the model's run; what is compiled follows."""
    rules: ShardingRules
    training_format: WeightFormat | None = None
    """How training stores the weights. None: as the options ask, else as the model was trained."""
    new_adapter: NewAdapter | None = None
    """How to make the adapter of the format; None: it has none, or the source's own."""

    @property
    def weight_format(self) -> WeightFormat:
        """How the weights are stored."""
        return self.training_format or inference_format(self.source, self.options)

    @cached_property
    def abstract(self) -> AbstractModel:
        """Graph, shapes and shardings. Raises InputError when a dimension does not divide into the mesh."""
        return abstract_of(self.source.model_config, self.options, self.rules, self.weight_format)

    def check_weights(self) -> None:
        """Raise InputError where the weights are missing or do not fit config.json; only headers of the files are read.

        For commands that work for a long time before they load weights.
        """
        check_weights(self.source)

    def load_weights(self) -> Parameters:
        """Stream the weights onto the mesh in their format. Raises InputError on missing, unknown or misshapen tensors."""
        model = self.abstract
        layout = Layout(model.parameters, model.shardings, model.weight_format, self.rules)
        return load_weights(self.source, layout, self.new_adapter)

    def as_reference(self) -> "OpenedModel":
        """The model before training: without a new adapter whose B is zero, which leaves all outputs as they are."""
        if not self._is_added:
            return self
        return replace(self, training_format=replace(self.weight_format, lora=None), new_adapter=None)

    @property
    def _is_added(self) -> bool:
        return self.new_adapter is not None and self.new_adapter.init == "lora"

    def reference_fingerprint(self, parameters: Parameters) -> str:
        """Fingerprint of loaded weights as a reference, after the name of their base format where that is not float32."""
        fingerprint = weights_fingerprint(without_adapter(parameters) if self._is_added else parameters)
        weight_format = self.weight_format
        return fingerprint if weight_format.base_format == "float32" else f"{weight_format.name}:{fingerprint}"


def open_model(options: ForwardOptions, rules: ShardingRules) -> OpenedModel:
    """Locate a model (Hugging Face folder, hub id, or run) and check its configuration. Raises InputError."""
    return OpenedModel(find_model(options), options, rules)


def inference_format(source: ModelSource, options: ForwardOptions) -> WeightFormat:
    """How a command that does not train stores the weights: as it asks for, else as the adapter was trained, else float32.

    Raises InputError for a block size with a format that has no blocks.
    """
    adapter = source.adapter
    trained = PLAIN
    if adapter:
        # Layers cast float weights to the compute dtype anyway: storing them in it changes no output.
        base_format = adapter.base_format or options.compute_dtype
        trained = WeightFormat(base_format=base_format, block_size=adapter.block_size, lora=adapter.spec)
    if not isinstance(options, StorageOptions):
        return trained
    chosen = replace(
        trained,
        base_format=options.base_format or trained.base_format,
        block_size=options.block_size or trained.block_size,
    )
    if options.block_size and chosen.base_format not in CODE_DTYPES:
        raise InputError(
            f"model.block_size is {options.block_size} and the weights are stored as {chosen.base_format}: only int8, int4 and "
            "nf4 have blocks. Set model.base_format to one of these, or leave model.block_size unset."
        )
    return chosen


def abstract_of(
    config: ModelConfig,
    options: ForwardOptions,
    rules: ShardingRules,
    weight_format: WeightFormat = PLAIN,
) -> AbstractModel:
    """The model as it will lie on the mesh.

    What the backward pass saves is in `ModelOptions` alone; a model of other options is for forward passes. Raises
    InputError when a dimension does not divide into the mesh.
    """
    device = rules.mesh.devices.flat[0]
    compute = Compute(
        dtype=jnp.dtype(options.compute_dtype),
        placement=rules,
        kernel=_kernel(device, options.compute_dtype, config),
        chip=device.device_kind,
    )
    if isinstance(options, ModelOptions):
        compute = replace(compute, remat=options.remat, save_logits=options.save_logits)
    layout = Layout.of(config, weight_format, rules)
    return AbstractModel(
        definition=abstract_model(config, compute)[0],
        parameters=layout.shapes,
        shardings=layout.shardings,
        config=config,
        compute=compute,
        logprob_chunk=_logprob_chunk(options, config, device, weight_format),
        weight_format=weight_format,
    )


def _kernel(device: jax.Device, dtype: str, config: ModelConfig) -> Literal["splash", "cudnn", "xla"]:
    if device.platform == "tpu":
        # Pallas kernels have no bfloat16 matmul on v2 and v3, the chips of Colab's v2-8 and Kaggle's v3-8.
        return "xla" if device.device_kind in ("TPU v2", "TPU v3") and dtype == "bfloat16" else "splash"
    is_cudnn = (
        device.platform == "gpu" and dtype == "bfloat16" and config.attention_softcap is None
    )  # it has no soft cap
    return "cudnn" if is_cudnn else "xla"


def _logprob_chunk(
    options: ForwardOptions, config: ModelConfig, device: jax.Device, weight_format: WeightFormat
) -> int:
    """The chunk that is set, else the largest power of two from 128 to 1,024 whose float32 logits take at most 160 MiB.

    An accelerator reads the whole unembedding for each chunk and waits for memory where the chunk is small: a v5e with 256
    target tokens, and with 512 where the unembedding trains (`benchmarks/logprob_head.md`). A frozen unembedding has no
    float32 gradient, beside which the logits are small: its chunk is at most 512.
    """
    if isinstance(options, ScoringOptions) and options.logprob_chunk:
        return options.logprob_chunk
    if device.platform == "cpu":
        return _CPU_CHUNK
    largest = 1024 if weight_format.lora is None else _FROZEN_CHUNK
    affordable = _MAX_LOGITS_BYTES // (4 * config.vocab_size)
    return min(largest, max(128, 1 << (affordable.bit_length() - 1)))
