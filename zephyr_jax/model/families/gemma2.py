"""Gemma 2 (arXiv 2408.00118): Gemma with norms before and after each sublayer, soft caps, and alternating windows."""

from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Count, Family, HfConfig, Number, Size, check_supported, parse_fields
from zephyr_jax.model.families.gemma import GELU_TANH, GemmaFields, gemma_config
from zephyr_jax.model.families.layer_types import read_full_layers, write_layer_types
from zephyr_jax.model.families.llama import tensors as llama_tensors
from zephyr_jax.model.families.llama import write_fields
from zephyr_jax.model.families.rope import read_rope
from zephyr_jax.model.families.tensors import HfTensor

_PATTERN = 2  # every second layer has full attention
_NORMS = (
    HfTensor(("decoder", "attention", "norm"), "model.layers.{}.input_layernorm.weight"),
    HfTensor(("decoder", "attention", "post_norm"), "model.layers.{}.post_attention_layernorm.weight"),
    HfTensor(("decoder", "feed_forward", "norm"), "model.layers.{}.pre_feedforward_layernorm.weight"),
    HfTensor(("decoder", "feed_forward", "post_norm"), "model.layers.{}.post_feedforward_layernorm.weight"),
)


class WindowFields(GemmaFields):
    """Fields of the generations whose layers differ in their window, Gemma 2 and 3."""

    num_attention_heads: Size = 8
    num_key_value_heads: Size = 4
    sliding_window: Count = 4096
    layer_types: list[str] | None = None
    sliding_window_pattern: Count | None = None
    query_pre_attn_scalar: Number = 256
    attn_logit_softcapping: Number | None = None
    final_logit_softcapping: Number | None = None


class Gemma2Fields(WindowFields):
    """Fields of config.json, with transformers' defaults for an absent field; null: without the soft cap."""

    attn_logit_softcapping: Number | None = 50.0
    final_logit_softcapping: Number | None = 30.0


def window_config(
    model_type: str, hf_config: HfConfig, fields: WindowFields, pattern: int, **options: Any
) -> ModelConfig:
    """The configuration that the fields of Gemma 2 and 3 describe.

    Args:
        model_type: Family of the result.
        hf_config: The parsed config.json.
        fields: Its checked fields.
        pattern: Where the file does not list the layers: every `pattern`-th has full attention.
        options: Further fields of `ModelConfig`.

    Raises:
        InputError: Fields contradict each other or ask for something that the decoder does not compute.
    """
    return gemma_config(
        model_type,
        hf_config,
        fields,
        norm_placement="both",
        sliding_window=fields.sliding_window,
        full_attention_layers=_full_attention_layers(fields, pattern),
        attention_scale=fields.query_pre_attn_scalar**-0.5,
        attention_softcap=fields.attn_logit_softcapping,
        logit_softcap=fields.final_logit_softcapping,
        **options,
    )


def _full_attention_layers(fields: WindowFields, pattern: int) -> tuple[int, ...]:
    num_layers, types = fields.num_hidden_layers, fields.layer_types
    by_pattern = tuple(range(pattern - 1, num_layers, pattern))
    full = read_full_layers(types, num_layers, fields.sliding_window, default=by_pattern)
    if fields.sliding_window_pattern is not None and full != by_pattern:
        raise InputError(
            f"config.json sets sliding_window_pattern to {pattern} and layer_types to {truncate_repr(types, 200)}, which "
            "contradict each other. transformers uses layer_types, other readers the pattern. Remove the one that the model was "
            "not trained with."
        )
    return full


def _read(hf_config: HfConfig) -> ModelConfig:
    rope = read_rope(hf_config)
    fields = parse_fields(Gemma2Fields, hf_config)
    check_supported(hf_config, {"sliding_window_pattern": (_PATTERN,)})
    return window_config("gemma2", hf_config, fields, _PATTERN, rope_theta=rope.theta, rope_scaling=rope.scaling)


def write_window_fields(config: ModelConfig) -> HfConfig:
    """Fields of Gemma 2 and 3 whose default differs between versions of transformers, or that other readers require."""
    return {
        **write_fields(config),
        "hidden_activation": GELU_TANH,
        "sliding_window": config.sliding_window,
        "layer_types": write_layer_types(config),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
    }


def tensors(config: ModelConfig) -> tuple[HfTensor, ...]:
    """Llama's names, with four norms in a layer."""
    norms = {tensor.path for tensor in _NORMS}
    others = tuple(tensor for tensor in llama_tensors(config) if tensor.path not in norms)
    return (*others, *_NORMS)


GEMMA2 = Family(
    model_type="gemma2", architecture="Gemma2ForCausalLM", read=_read, write=write_window_fields, tensors=tensors
)
