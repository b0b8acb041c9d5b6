"""The model that is planned: its sizes, and how its weights are stored."""

from dataclasses import replace
from pathlib import Path

from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.checkpoint.training_format import new_format, training_format
from zephyr_jax.config.plan import PlanConfig
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.weight_format import WeightFormat

MISTRAL_7B = ModelConfig(
    model_type="mistral",
    vocab_size=32000,
    d_model=4096,
    d_ff=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=4096,
    tie_embeddings=False,
    max_positions=32768,
)


def reads_folder(config: PlanConfig) -> bool:
    """Whether sizes and adapter are those of the local folder `model.path`, instead of Mistral-7B with the card's adapter."""
    return config.model_preset is None and Path(config.model.path).is_dir()


def planned_shape(config: PlanConfig) -> ModelConfig:
    """The model's sizes: those of the folder that model.path names, or Mistral-7B's."""
    return find_model(config.model).model_config if reads_folder(config) else MISTRAL_7B


def planned_format(config: PlanConfig) -> WeightFormat:
    """How the step stores the weights: as training with the card's adapter does; the reference has no new adapter.

    Raises InputError for an adapter that does not fit the model.
    """
    if reads_folder(config):
        weight_format, is_new = training_format(find_model(config.model), config.adapter)
    else:
        weight_format, is_new = new_format(config.adapter, MISTRAL_7B), True
    return replace(weight_format, lora=None) if is_new and config.planned_step == "reference" else weight_format


def has_own_adapter(config: PlanConfig) -> bool:
    """Whether training continues the adapter of the local folder `model.path`, whose rank is fixed."""
    return reads_folder(config) and config.adapter.start == "continue" and find_model(config.model).adapter is not None
