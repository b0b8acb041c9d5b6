"""Gemma (arXiv 2403.08295; zephyr-7b-gemma): Llama's tensors, norms scaled by 1 + weight, GELU, scaled embeddings."""

from typing import Annotated, Any

from pydantic import Field

from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import (
    Count,
    Family,
    HfConfig,
    HfFields,
    Number,
    Probability,
    Size,
    TokenId,
    check_head_dim,
    check_kv_heads,
    check_supported,
    parse_fields,
)
from zephyr_jax.model.families.llama import tensors, write_fields
from zephyr_jax.model.families.rope import read_rope, scaled_positions

GELU_TANH = "gelu_pytorch_tanh"
"""transformers' name of GELU's tanh approximation."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    # "gelu" in the first releases means the approximation: transformers 5 and vLLM read it so, and export writes its name.
    "hidden_act": (GELU_TANH, "gelu"),
    "hidden_activation": (GELU_TANH,),
    "attention_bias": (False,),
    "use_bidirectional_attention": (False,),
    "quantization_config": ({},),
    "compression_config": ({},),
    "per_layer_config": ({}, [], False, 0, ""),
}
"""Fields that change the computation, with the values that the decoder computes; null is one of them."""


class GemmaFields(HfFields):
    """Fields of config.json, with transformers' defaults for an absent field where the generations share them."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000)]
    num_attention_heads: Size = 16
    num_key_value_heads: Size = 16
    head_dim: Size = 256
    vocab_size: Size = 256_000
    rms_norm_eps: Number = 1e-6
    max_position_embeddings: Count = 8192
    tie_word_embeddings: bool = True
    rope_theta: Number | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: Number | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool | None = None
    attention_dropout: Probability | None = None
    use_bidirectional_attention: bool | None = None
    quantization_config: dict[str, Any] | None = None
    compression_config: dict[str, Any] | None = None
    eos_token_id: TokenId | list[TokenId] | None = None


def gemma_config(model_type: str, hf_config: HfConfig, fields: GemmaFields, **options: Any) -> ModelConfig:
    """The configuration that the fields of all generations describe.

    Args:
        model_type: Family of the result.
        hf_config: The parsed config.json.
        fields: Its checked fields.
        options: Further fields of `ModelConfig`: rotary embeddings, and what a generation adds.

    Raises:
        InputError: A field asks for something that the decoder does not compute.
    """
    check_supported(hf_config, NEUTRAL)
    check_kv_heads(fields.num_attention_heads, fields.num_key_value_heads)
    return ModelConfig(
        model_type=model_type,
        vocab_size=fields.vocab_size,
        d_model=fields.hidden_size,
        d_ff=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=fields.num_attention_heads,
        num_kv_heads=fields.num_key_value_heads,
        head_dim=check_head_dim(fields.head_dim),
        norm_eps=fields.rms_norm_eps,
        unit_offset_norms=True,
        activation="gelu_tanh",
        tie_embeddings=fields.tie_word_embeddings,
        embedding_scale=fields.hidden_size**0.5,
        max_positions=scaled_positions(fields.max_position_embeddings, options.get("rope_scaling"), hf_config),
        **options,
    )


def _read(hf_config: HfConfig) -> ModelConfig:
    rope = read_rope(hf_config)
    fields = parse_fields(GemmaFields, hf_config)
    return gemma_config("gemma", hf_config, fields, rope_theta=rope.theta, rope_scaling=rope.scaling)


def _write(config: ModelConfig) -> HfConfig:
    # transformers 4 computes what `hidden_act` names, and others what `hidden_activation` names.
    return {**write_fields(config), "hidden_act": GELU_TANH, "hidden_activation": GELU_TANH}


GEMMA = Family(model_type="gemma", architecture="GemmaForCausalLM", read=_read, write=_write, tensors=tensors)
