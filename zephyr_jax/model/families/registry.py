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
from zephyr_jax.model.families.wrappers import WRAPPERS, text_config
from zephyr_jax.model.rope import LongRopeScaling

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
_DROPOUT = ("attention_dropout", "resid_pdrop", "embd_pdrop")
"""Fields that change the training of transformers and nothing else."""


def config_from_hf(hf_config: HfConfig) -> ModelConfig:
    """Configuration from a parsed config.json; of the text model where it describes a model of images, too.

    Raises:
        InputError: The model would be computed differently; names the field.
    """
    text = text_config(hf_config)
    _check_dense(hf_config, text)
    model_type = text.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"Unsupported {_type_name(hf_config, text)} in config.json. Expected one of {', '.join(sorted(FAMILIES))}, or of "
            f"{', '.join(sorted(WRAPPERS))} with such a text_config. Choose a checkpoint of these families."
        )
    config = FAMILIES[model_type].read(text)
    if text is not hf_config:
        _log_once(
            f"config.json: {hf_config['model_type']} has images, too; its text model ({model_type}) alone is loaded"
        )
    if isinstance(config.rope_scaling, LongRopeScaling):
        limit = config.max_positions
        _log_once(
            f"config.json: longrope; rows of up to {limit:,} tokens, as longer ones would need its other frequencies"
        )
    dropout = [f"{name} is {text[name]:g}" for name in _DROPOUT if is_number(text.get(name))]
    if dropout:
        _log_once(f"config.json: {join_items(dropout)}; the model is trained without dropout")
    return config


def _check_dense(hf_config: HfConfig, text: HfConfig) -> None:
    """Raise InputError for a mixture of experts, also inside the text_config of a model that is unknown."""
    inner = hf_config.get("text_config")
    for fields in (hf_config, text, inner if isinstance(inner, dict) else {}):
        kind = fields.get("model_type")
        experts = [f"{name} {truncate_repr(fields[name])}" for name in _EXPERTS if fields.get(name) not in (None, 0, 1)]
        if experts or (isinstance(kind, str) and (kind in _MIXTURES or "moe" in kind)):
            raise InputError(
                f"Unsupported {join_items([_type_name(hf_config, fields), *experts])} in config.json: mixture-of-experts models "
                f"are not supported. Choose a dense checkpoint of {', '.join(sorted(FAMILIES))}."
            )


def _type_name(hf_config: HfConfig, fields: HfConfig) -> str:
    name = "model_type" if fields is hf_config else "text_config.model_type"
    return f"{name} {truncate_repr(fields.get('model_type'))}"


@cache
def _log_once(line: str) -> None:
    logger.info("%s", line)


def config_to_hf(hf_config: HfConfig, config: ModelConfig) -> HfConfig:
    """A config.json that every version of transformers reads alike.

    Args:
        hf_config: The config.json that the model was loaded with; fields that the family does not own are kept, and of a model
            with images those of its text model.
        config: The model's configuration.
    """
    family = FAMILIES[config.model_type]
    kept = {
        name: value for name, value in text_config(hf_config).items() if name != "auto_map"
    }  # remote code is not copied
    return {**kept, "architectures": [family.architecture], **family.write(config)}


def tensors_of(config: ModelConfig) -> tuple[HfTensor, ...]:
    """All parameters of a model with their Hugging Face tensors."""
    return FAMILIES[config.model_type].tensors(config)
