"""Mistral and Zephyr (arXiv 2310.06825): Llama's tensors and fields, with a sliding window that is in effect."""

from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Count, Family, HfConfig, Size, parse_fields
from zephyr_jax.model.families.llama import LlamaFields, decoder_config, tensors, write_fields


class MistralFields(LlamaFields):
    """Fields of config.json, with transformers' defaults for an absent field; null is full attention, or one head per key."""

    num_key_value_heads: Size | None = 8
    sliding_window: Count | None = 4096


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(MistralFields, hf_config)
    window = fields.sliding_window
    if fields.use_sliding_window is False and window is not None:
        raise InputError(
            f"config.json sets use_sliding_window to false and sliding_window to {window:,}. transformers uses the window of a "
            "mistral all the same, other readers do not. Set sliding_window to null for full attention, or remove "
            "use_sliding_window."
        )
    max_positions = fields.max_position_embeddings or 131_072
    return decoder_config("mistral", hf_config, fields, sliding_window=window, max_positions=max_positions)


def _write(config: ModelConfig) -> HfConfig:
    return {**write_fields(config), "sliding_window": config.sliding_window}


MISTRAL = Family(model_type="mistral", architecture="MistralForCausalLM", read=_read, write=_write, tensors=tensors)
