"""The model that is planned: its sizes, and how its weights are stored."""

from dataclasses import replace
from pathlib import Path

from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.training_format import new_format, training_format
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.weight_format import WeightFormat
from zephyr_jax.plan.presets import DEFAULT_PRESET, match_preset, parse_preset, preset

MISTRAL_7B = preset("Mistral-7B")


def reads_folder(config: PlanConfig) -> bool:
    """Whether sizes and adapter are those of the local folder `model.path`, instead of a preset with the card's adapter."""
    return config.model_preset is None and Path(config.model.path).is_dir()


def planned_preset(config: PlanConfig) -> str:
    """The row of `PRESETS` for a model that is not read from a folder: by `model_preset`, else by the name in `model.path`.

    Raises InputError for an unknown `model_preset`.
    """
    if config.model_preset is not None:
        return parse_preset(config.model_preset)
    return match_preset(config.model.path) or DEFAULT_PRESET


def planned_shape(config: PlanConfig) -> ModelConfig:
    """The model's sizes: those of the folder that model.path names, or a preset's."""
    return find_model(config.model).model_config if reads_folder(config) else preset(planned_preset(config))


def planned_format(config: PlanConfig) -> WeightFormat:
    """How the step stores the weights: as training with the card's adapter does; the reference has no new adapter.

    Raises InputError for an adapter that does not fit the model, or whose base is not in a local folder.
    """
    if config.model.adapter and not reads_folder(config):
        raise InputError(
            f"model.adapter is {config.model.adapter} and `plan` has no local folder of its base: it takes the sizes of "
            f"{planned_preset(config)} and reads no files. Set model.path to a local folder of the base, or plan a new adapter "
            "of the same rank: `--adapter.rank 16` without `--model.adapter`."
        )
    if reads_folder(config):
        weight_format, is_new = training_format(find_model(config.model), config.adapter)
    else:
        weight_format, is_new = new_format(config.adapter, planned_shape(config)), True
    return replace(weight_format, lora=None) if is_new and config.planned_step == "reference" else weight_format


def has_own_adapter(config: PlanConfig) -> bool:
    """Whether training continues the adapter of the local folder `model.path`, whose rank is fixed."""
    return reads_folder(config) and config.adapter.start == "continue" and find_model(config.model).adapter is not None
