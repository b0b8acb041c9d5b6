"""Loading the weights of a model source: Hugging Face files or saved steps, with adapters kept apart or merged."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import jax
import jax.numpy as jnp

from zephyr_jax.checkpoint.convert import AdapterMerge, LayerChange, convert_parameters
from zephyr_jax.checkpoint.frozen import FROZEN, check_frozen, merge, split
from zephyr_jax.checkpoint.hf.load import load_parameters
from zephyr_jax.checkpoint.hf.peft_files import load_adapter
from zephyr_jax.checkpoint.hf.weight_files import TensorFiles
from zephyr_jax.checkpoint.model_source import AdapterSource, ModelSource
from zephyr_jax.checkpoint.new_adapter import NewAdapter, PissaSplit, initial_adapter
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.steps import Checkpoint, check_step, open_step
from zephyr_jax.config.sections import BaseFormat, WeightsOptions
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, abstract_model
from zephyr_jax.model.lora import (
    LORA_A,
    LORA_B,
    LoraSpec,
    attach_adapter,
    is_adapter,
    only_adapter,
    without_adapter,
)
from zephyr_jax.model.quantize import SCALES
from zephyr_jax.model.weight_format import PLAIN, WeightFormat, stored_weights
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.sharding import ShardingRules, parameter_shardings


@dataclass(frozen=True)
class Layout:
    """How the weights of a model lie on a mesh: pure dicts of the same structure."""

    shapes: Any
    """Shapes and dtypes with their shardings."""
    shardings: Any
    weight_format: WeightFormat
    rules: ShardingRules

    @classmethod
    def of(cls, config: ModelConfig, weight_format: WeightFormat, rules: ShardingRules) -> "Layout":
        """Raises InputError where a dimension does not divide into the mesh, or a block size into the inputs."""
        weights = stored_weights(config, abstract_model(config, Compute())[1], weight_format)
        _check_blocks(weights, weight_format.block_size, rules)
        shardings = parameter_shardings(weights, rules)
        shapes = jax.tree.map(
            lambda one, to: jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=to), weights, shardings
        )
        return cls(shapes, shardings, weight_format, rules)


def _check_blocks(weights: Any, block_size: int, rules: ShardingRules) -> None:
    """Raise InputError where the inputs of a quantized projection on one device are not a multiple of the block size."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    inputs: dict[str, tuple[int, int]] = {}
    for path, weight in leaves:
        *parents, name = (str(key.key) for key in path)
        if name == SCALES:
            inputs[".".join(parents)] = weight.shape[1] * block_size, rules.num_shards(weight.axes[1])
    fitting = math.gcd(*(count // shards for count, shards in inputs.values()))
    for name, (count, shards) in inputs.items():
        if count % shards == 0 and count // shards % block_size:
            raise InputError(
                f"block_size: expected a divisor of the {count // shards:,} inputs of {name} on each device, got {block_size}: "
                f"the mesh splits its {count:,} inputs into {shards} shards. Set `--adapter.block_size {fitting}` (commands that "
                "do not train: `--model.block_size`), or use another mesh."
            )


def check_weights(source: ModelSource) -> None:
    """Raise InputError where the weights are missing or do not fit config.json; only headers of the files are read.

    For commands that work for a long time before they load weights.
    """
    if source.adapter:
        check_weights(source.adapter.base)
    if source.run is not None:
        check_step(source.run, source.step)
    elif not source.adapter:
        files = TensorFiles(source.weights)
        try:
            files.check(source.model_config)
        finally:
            files.close()


def load_weights(source: ModelSource, layout: Layout, new_adapter: NewAdapter | None = None) -> Parameters:
    """Stream the weights onto the mesh. Raises InputError on missing, unknown or misshapen tensors.

    An adapter of the source that the layout does not keep apart is merged into the weights below it. The weights below the
    adapter of a run must be those that it trained on: where the layout stores them in another format, they are loaded once
    before in the format of the run.

    Args:
        source: The model.
        layout: Where the weights go, and in which format.
        new_adapter: How to make the adapter of the layout; None: it is the source's, or the layout has none.
    """
    weight_format, lora = layout.weight_format, layout.weight_format.lora
    adapter, trained = source.adapter, source.adapter.weight_format if source.adapter and source.run else None
    is_trained = bool(trained) and not new_adapter and weight_format == trained
    if trained and not is_trained:
        load_weights(source, Layout.of(source.model_config, trained, layout.rules))  # raises for another base
    if lora is None:
        return _load_base(source, layout, weight_format.base_format)
    if new_adapter:
        return _with_new_adapter(source, layout, lora, new_adapter)
    if adapter is None:
        raise ValueError(f"{source.asked} has no adapter")
    residual = _initial_merges(source, adapter, layout.rules)
    base = _load_base(adapter.base, layout, adapter.base_format or "float32", residual)
    weights = attach_adapter(base, _load_adapter(source, adapter, layout), lora.scale)
    if is_trained and source.run:
        check_frozen(open_step(source.run, source.step).progress, split(weights, is_adapter)[1], source.run)
    return weights


def load_merged(source: ModelSource, layout: Layout, dequantized: Any) -> Parameters:
    """The weights that training stored, with the adapter merged: outputs are those of the trained model.

    Args:
        source: A model with an adapter, whose base format is known.
        layout: Of the result, without an adapter and in a float format.
        dequantized: Dtype in which training dequantized the weights: its compute dtype.
    """
    adapter, config = source.adapter, source.model_config
    if adapter is None or adapter.weight_format is None:
        raise ValueError(f"{source.asked} has no adapter on weights of a known format")
    weights = load_weights(source, Layout.of(config, adapter.weight_format, layout.rules))
    merged = AdapterMerge(only_adapter(weights), adapter.spec.scale, jnp.float32)
    base = without_adapter(weights)
    del weights  # so that its arrays are freed one by one
    return convert_parameters(base, config, layout.shapes, layout.shardings, [merged], dequantized)


def load_adapter_alone(source: ModelSource, rules: ShardingRules) -> tuple[LoraSpec, Parameters]:
    """A and B of the source's adapter, float32 in nested dicts, as an adapter of the plain weights below it.

    The adapter of a run that subtracted its initial values (PiSSA) becomes one of twice the rank: A B - A0 B0 = [A A0] [B; -B0].
    """
    adapter = source.adapter
    if adapter is None:
        raise ValueError(f"{source.asked} has no adapter")
    spec = adapter.spec
    weights = _load_adapter(source, adapter, Layout.of(source.model_config, WeightFormat(lora=spec), rules))
    for merge_initial in _initial_merges(source, adapter, rules):
        wide = replace(spec, rank=2 * spec.rank, alpha=spec.alpha * (math.sqrt(2) if spec.use_rslora else 2))
        shardings = only_adapter(Layout.of(source.model_config, WeightFormat(lora=wide), rules).shardings)
        return wide, _difference(weights, merge_initial.adapter, shardings)
    return spec, weights


def _difference(adapter: Any, initial: Any, shardings: Any) -> Parameters:
    """An adapter whose product is that of `adapter` less that of `initial`."""
    if LORA_A not in adapter:
        return {name: _difference(adapter[name], initial[name], shardings[name]) for name in adapter}
    a = jax.jit(lambda *parts: jnp.concatenate(parts, axis=-1), out_shardings=shardings[LORA_A])
    b = jax.jit(lambda one, other: jnp.concatenate([one, -other], axis=1), out_shardings=shardings[LORA_B])
    return {name: join(adapter[name], initial[name]) for name, join in ((LORA_A, a), (LORA_B, b))}


def _with_new_adapter(source: ModelSource, layout: Layout, lora: LoraSpec, new_adapter: NewAdapter) -> Parameters:
    base_format, shapes = layout.weight_format.base_format, only_adapter(layout.shapes)
    if new_adapter.init == "lora":
        base = _load_base(source, layout, base_format)
        return attach_adapter(base, initial_adapter(new_adapter.seed, shapes), lora.scale)
    if new_adapter.initial is None:
        split_weights = PissaSplit(new_adapter.seed, lora, source.model_config)
        base = _load_base(source, layout, base_format, [split_weights])
        return attach_adapter(base, split_weights.adapter(shapes), lora.scale)
    shardings = only_adapter(layout.shardings)
    initial = load_adapter(new_adapter.initial, source.model_config, lora, shapes, shardings)
    base = _load_base(source, layout, base_format, [AdapterMerge(initial, -lora.scale, jnp.float32)])
    return attach_adapter(base, initial, lora.scale)


def _initial_merges(source: ModelSource, adapter: AdapterSource, rules: ShardingRules) -> list[AdapterMerge]:
    """The initial adapter that a run subtracted from its base (PiSSA); none for other runs."""
    if adapter.initial is None:
        return []
    layout = Layout.of(source.model_config, WeightFormat(lora=adapter.spec), rules)
    shapes, shardings = only_adapter(layout.shapes), only_adapter(layout.shardings)
    initial = load_adapter(adapter.initial, source.model_config, adapter.spec, shapes, shardings)
    return [AdapterMerge(initial, -adapter.spec.scale, jnp.float32)]


def _load_base(
    source: ModelSource, layout: Layout, above: BaseFormat, changes: Sequence[LayerChange] = ()
) -> Parameters:
    """Weights without the layout's adapter. The source's own is merged, and the result rounded as below a base of `above`."""
    adapter = source.adapter
    if adapter:
        spec = adapter.spec
        loaded = _load_adapter(source, adapter, Layout.of(source.model_config, WeightFormat(lora=spec), layout.rules))
        merged = AdapterMerge(loaded, spec.scale, jnp.float32 if above == "float32" else jnp.bfloat16)
        below = [*_initial_merges(source, adapter, layout.rules), merged, *changes]
        return _load_base(adapter.base, layout, adapter.base_format or "float32", below)
    if source.run is None:
        parameters: Parameters = load_parameters(
            source.weights, source.model_config, layout.shapes, layout.shardings, changes
        )
        return parameters
    plain = Layout.of(source.model_config, PLAIN, layout.rules)
    parameters = _load_step(open_step(source.run, source.step), plain)
    if layout.weight_format.base_format == "float32" and not changes:
        return parameters
    return convert_parameters(parameters, source.model_config, layout.shapes, layout.shardings, changes)


def _load_adapter(source: ModelSource, adapter: AdapterSource, layout: Layout) -> Parameters:
    """A and B of the source's adapter, float32, in nested dicts."""
    shapes, shardings = only_adapter(layout.shapes), only_adapter(layout.shardings)
    if adapter.folder is not None:
        loaded: Parameters = load_adapter(adapter.folder, source.model_config, adapter.spec, shapes, shardings)
        return loaded
    if source.run is None:
        raise ValueError(f"{source.asked} has an adapter without a folder")
    return cast(Parameters, open_step(source.run, source.step).restore_parameters(shapes))


def _load_step(checkpoint: Checkpoint, layout: Layout) -> Parameters:
    """All weights of a step in plain float32; those that it leaves out come from the model that its run started from."""
    if FROZEN not in checkpoint.progress:
        parameters: Parameters = checkpoint.restore_parameters(layout.shapes)
        return parameters
    names = set(checkpoint.progress[FROZEN]["names"])
    model = checkpoint.progress["config"]["model"]
    started_from = ("path", "revision", "adapter", "adapter_revision")
    options = WeightsOptions(
        **{name: model[name] for name in started_from if name in model}
    )  # older runs name no adapter
    base = load_weights(find_model(options), layout)
    frozen = split(base, lambda name: name not in names)[1]
    check_frozen(checkpoint.progress, frozen, checkpoint.run)
    saved, _ = split(layout.shapes, lambda name: name not in names)
    return merge(checkpoint.restore_parameters(saved), frozen)
