"""The families that can be loaded, by `model_type`, and the three questions that the rest of the package asks them."""

import logging
from functools import cache

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Family, HfConfig, is_number
from zephyr_jax.model.families.gemma import GEMMA
from zephyr_jax.model.families.gemma2 import GEMMA2
from zephyr_jax.model.families.gemma3 import GEMMA3
from zephyr_jax.model.families.granite import GRANITE
from zephyr_jax.model.families.llama import LLAMA
from zephyr_jax.model.families.ministral3 import MINISTRAL3
from zephyr_jax.model.families.mistral import MISTRAL
from zephyr_jax.model.families.olmo import OLMO2, OLMO3
from zephyr_jax.model.families.phi3 import PHI3
from zephyr_jax.model.families.qwen import QWEN2, QWEN3
from zephyr_jax.model.families.smollm3 import SMOLLM3
from zephyr_jax.model.families.tensors import HfTensor

logger = logging.getLogger(__name__)

_ALL = (
    GEMMA,
    GEMMA2,
    GEMMA3,
    GRANITE,
    LLAMA,
    MINISTRAL3,
    MISTRAL,
    OLMO2,
    OLMO3,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _ALL}
_MIXTURES = ("mixtral", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4", "llama4_text", "dbrx", "jamba")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Fields of config.json that give the number of experts."""
ADVICE = {
    "gemma3": "Its text model is a gemma3_text; save it alone with transformers: `m = Gemma3ForConditionalGeneration"
    ".from_pretrained(FOLDER); t = Gemma3ForCausalLM(m.config.text_config); t.model, t.lm_head = m.model.language_model, "
    "m.lm_head; t.save_pretrained(OUT)`, and copy the tokenizer's files to OUT."
}
"""What to do with a model_type that is not supported."""
_DROPOUT = ("attention_dropout", "resid_pdrop", "embd_pdrop")
"""Fields that change the training of transformers and nothing else."""


def config_from_hf(hf_config: HfConfig) -> ModelConfig:
    """Configuration from a parsed config.json. Raises InputError for a model that would be computed differently."""
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        is_mixture = isinstance(model_type, str) and (model_type in _MIXTURES or "moe" in model_type)
        has_experts = is_mixture or any(hf_config.get(name) for name in _EXPERTS)
        reason = ": mixture-of-experts models are not supported" if has_experts else ""
        raise InputError(
            f"Unsupported model_type {truncate_repr(model_type)} in config.json{reason}. Expected one of "
            f"{', '.join(sorted(FAMILIES))}. {ADVICE.get(str(model_type), 'Choose a checkpoint of these families.')}"
        )
    config = FAMILIES[model_type].read(hf_config)
    dropout = [f"{name} is {hf_config[name]:g}" for name in _DROPOUT if is_number(hf_config.get(name))]
    if dropout:
        _log_once(f"config.json: {join_items(dropout)}; the model is trained without dropout")
    return config


@cache
def _log_once(line: str) -> None:
    logger.info("%s", line)


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
