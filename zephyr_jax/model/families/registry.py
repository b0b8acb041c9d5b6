"""The families that can be loaded, by `model_type`, and the three questions that the rest of the package asks them."""

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Family, HfConfig
from zephyr_jax.model.families.granite import GRANITE
from zephyr_jax.model.families.llama import LLAMA
from zephyr_jax.model.families.ministral3 import MINISTRAL3
from zephyr_jax.model.families.mistral import MISTRAL
from zephyr_jax.model.families.olmo import OLMO2, OLMO3
from zephyr_jax.model.families.phi3 import PHI3
from zephyr_jax.model.families.smollm3 import SMOLLM3
from zephyr_jax.model.families.tensors import HfTensor

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, SMOLLM3, OLMO2, OLMO3, GRANITE, PHI3, MINISTRAL3)
}


def config_from_hf(hf_config: HfConfig) -> ModelConfig:
    """Configuration from a parsed config.json. Raises InputError for a model that would be computed differently."""
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"Unsupported model_type {truncate_repr(model_type)} in config.json: expected one of {', '.join(sorted(FAMILIES))}. "
            "Choose a checkpoint of these families."
        )
    return FAMILIES[model_type].read(hf_config)


def config_to_hf(hf_config: HfConfig, config: ModelConfig) -> HfConfig:
    """A config.json that every version of transformers reads alike.

    Args:
        hf_config: The config.json that the model was loaded with; fields that the family does not own are kept.
        config: The model's configuration.
    """
    family = FAMILIES[config.model_type]
    kept = {name: value for name, value in hf_config.items() if name != "auto_map"}  # remote code is not copied
    return {**kept, "architectures": [family.architecture], **family.write(config)}


def tensors_of(config: ModelConfig) -> tuple[HfTensor, ...]:
    """All parameters of a model with their Hugging Face tensors."""
    return FAMILIES[config.model_type].tensors(config)
