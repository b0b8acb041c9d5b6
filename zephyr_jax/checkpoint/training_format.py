"""How a training run stores its weights: which adapter it trains, and on top of which base."""

from dataclasses import replace
from typing import Any

from zephyr_jax.checkpoint.hf.weight_files import projection_sizes
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.new_adapter import NewAdapter
from zephyr_jax.checkpoint.opened import OpenedModel, open_model
from zephyr_jax.checkpoint.run_adapter import adapter_record
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import ModelOptions, is_unset, settled
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.targets import module_name, projections_of, resolve_targets, target_names
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.parallel.sharding import ShardingRules

_SPEC = ("alpha", "use_rslora", "targets")
"""Settings of an adapter besides its rank."""


def open_for_training(model: ModelOptions, adapter: AdapterOptions, rules: ShardingRules, seed: int) -> OpenedModel:
    """Locate a model to train, with the storage that the adapter's settings ask for.

    Args:
        model: The model to start from.
        adapter: Settings of the adapter.
        rules: Of the mesh.
        seed: Of the initial values of a new adapter.

    Raises:
        InputError: The model cannot be used, or the settings do not fit it or its adapter.
    """
    opened = open_model(model, rules)
    weight_format, is_new = training_format(opened.source, adapter)
    new_adapter = NewAdapter(seed, adapter.init) if is_new else None
    return replace(opened, training_format=weight_format, new_adapter=new_adapter)


def training_format(source: ModelSource, adapter: AdapterOptions) -> tuple[WeightFormat, bool]:
    """Storage of a model to train as the adapter's settings ask for, and whether its adapter is a new one.

    Raises InputError for settings that do not fit the model or its adapter.
    """
    if not adapter.rank and not (source.adapter and is_unset(adapter.rank)):
        return new_format(adapter, source.model_config), False
    if source.adapter and adapter.start == "continue":
        spec = source.adapter.spec
        _check_equal(_continued(adapter, source.model_config, spec), spec, adapter.init, source)
        base_format, block_size = adapter.base_format, adapter.block_size
        if is_unset(base_format) and source.adapter.base_format:
            base_format, block_size = source.adapter.base_format, source.adapter.block_size
        return WeightFormat(base_format=settled(base_format), block_size=block_size, lora=spec), False
    if not adapter.rank:
        raise InputError(
            f"adapter.start is `merge` without adapter.rank: the adapter of {source.asked} is merged and a new one is trained. "
            "Set its rank, such as `--adapter.rank 16`, or 0 to train all weights."
        )
    if adapter.start == "merge" and not source.adapter:
        raise InputError(
            f"adapter.start: expected a model with an adapter for `merge`, got {source.asked}, which has no adapter to merge. "
            "Leave adapter.start unset."
        )
    return new_format(adapter, source.model_config), True


def new_format(adapter: AdapterOptions, config: ModelConfig) -> WeightFormat:
    """Storage of a model of these sizes with the new adapter that the settings ask for; `PLAIN` with rank 0.

    Raises InputError for settings of an adapter with rank 0, unknown targets and a rank that no projection could need.
    """
    if not adapter.rank:
        adapter.check_unused()
        return PLAIN
    return WeightFormat(
        base_format=settled(adapter.base_format), block_size=adapter.block_size, lora=_new_spec(adapter, config)
    )


def training_record(opened: OpenedModel) -> dict[str, Any] | None:
    """What the record of a run holds about its adapter; None for a run that trains all weights."""
    weight_format = opened.weight_format
    if weight_format.lora is None:
        return None
    start = "continue" if opened.new_adapter is None else "merge" if opened.source.adapter else "new"
    return adapter_record(weight_format.lora, weight_format.base_format, weight_format.block_size, start)


def resolved_settings(adapter: AdapterOptions, opened: OpenedModel) -> AdapterOptions:
    """The settings with what a continued adapter decides filled in, so that the run's card asks for the same training.

    Args:
        adapter: Settings of the adapter.
        opened: Of `open_for_training` with these settings.
    """
    weight_format, config = opened.weight_format, opened.source.model_config
    lora = weight_format.lora
    if lora is None:
        return adapter
    stored = replace(adapter, base_format=weight_format.base_format, block_size=weight_format.block_size)
    if adapter.rank:
        return stored
    projections = projections_of(config)
    targets = tuple(module_name(projections[target]) for target in lora.targets)
    return replace(stored, rank=lora.rank, alpha=lora.alpha, use_rslora=lora.use_rslora, targets=targets)


def _spec(adapter: AdapterOptions, config: ModelConfig) -> LoraSpec:
    targets = resolve_targets(adapter.targets, config)
    return LoraSpec(rank=int(adapter.rank), alpha=adapter.alpha, use_rslora=adapter.use_rslora, targets=targets)


def _new_spec(adapter: AdapterOptions, config: ModelConfig) -> LoraSpec:
    """The size and place of a new adapter. Raises InputError for a rank that no projection could need."""
    spec, sizes = _spec(adapter, config), projection_sizes(config)
    limits = {target: min(sizes[target]) for target in spec.targets}
    smallest = min(limits, key=limits.__getitem__)
    if spec.rank > limits[smallest]:
        raise InputError(
            f"adapter.rank: expected at most {limits[smallest]}, the smaller side of {target_names([smallest], config)}, got "
            f"{spec.rank}: a matrix of this size has no higher rank. Lower it, or take this projection out of adapter.targets."
        )
    return spec


def _continued(adapter: AdapterOptions, config: ModelConfig, trained: LoraSpec) -> LoraSpec:
    """The adapter that the settings describe; without a rank, settings that still have their defaults ask for nothing."""
    if adapter.rank:
        return _spec(adapter, config)
    default = AdapterOptions()
    given = {name: getattr(adapter, name) for name in _SPEC if getattr(adapter, name) != getattr(default, name)}
    if "targets" in given:
        given["targets"] = resolve_targets(adapter.targets, config)
    return replace(trained, **given)


def _check_equal(given: LoraSpec, trained: LoraSpec, init: str, source: ModelSource) -> None:
    """Raise InputError unless the settings are those of the adapter that training continues."""
    wrong = [
        f"adapter.{name}: expected {getattr(trained, name)!r}, got {getattr(given, name)!r}"
        for name in ("rank", "alpha", "use_rslora")
        if getattr(given, name) != getattr(trained, name)
    ]
    if given.targets != trained.targets:
        expected, got = (target_names(spec.targets, source.model_config) for spec in (trained, given))
        wrong.append(f"adapter.targets: expected {expected}, got {got}")
    if init != AdapterOptions().init:
        wrong.append(f"adapter.init: expected it unset, as the adapter has values already, got {init!r}")
    if wrong:
        raise InputError(
            f"The settings are not those of the adapter in {source.asked}, which training would continue: {'; '.join(wrong)}. "
            "Set the same, leave adapter.rank and the others unset, or train a new adapter on the merged model: "
            "`--adapter.start merge`."
        )
