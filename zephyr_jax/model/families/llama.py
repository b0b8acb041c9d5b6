"""Llama, and checkpoints of the same architecture such as SmolLM2 and TinyLlama."""

from typing import Annotated, Any

from pydantic import Field

from zephyr_jax.errors import InputError
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
from zephyr_jax.model.families.layer_types import FULL, SLIDING, read_full_layers
from zephyr_jax.model.families.rope import RopeFields, read_rope, scaled_positions, write_rope
from zephyr_jax.model.families.tensors import EMBEDDING, UNEMBEDDING, HfTensor

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "hidden_activation": ("silu", "swish"),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "quantization_config": ({},),
    "compression_config": ({},),
    "per_layer_config": ({}, [], False, 0, ""),
}
"""Fields that change the computation, with the values that the decoder computes; null is one of them."""
_ATTENTION, _FEED_FORWARD = ("decoder", "attention"), ("decoder", "feed_forward")
_TENSORS = (
    HfTensor(EMBEDDING, "model.embed_tokens.weight"),
    HfTensor((*_ATTENTION, "norm"), "model.layers.{}.input_layernorm.weight"),
    HfTensor((*_ATTENTION, "query"), "model.layers.{}.self_attn.q_proj.weight", inputs=1),
    HfTensor((*_ATTENTION, "key"), "model.layers.{}.self_attn.k_proj.weight", inputs=1),
    HfTensor((*_ATTENTION, "value"), "model.layers.{}.self_attn.v_proj.weight", inputs=1),
    HfTensor((*_ATTENTION, "output"), "model.layers.{}.self_attn.o_proj.weight", inputs=2),
    HfTensor((*_FEED_FORWARD, "norm"), "model.layers.{}.post_attention_layernorm.weight"),
    HfTensor((*_FEED_FORWARD, "gate"), "model.layers.{}.mlp.gate_proj.weight", inputs=1),
    HfTensor((*_FEED_FORWARD, "up"), "model.layers.{}.mlp.up_proj.weight", inputs=1),
    HfTensor((*_FEED_FORWARD, "down"), "model.layers.{}.mlp.down_proj.weight", inputs=1),
    HfTensor(("norm",), "model.norm.weight"),
    HfTensor(UNEMBEDDING, "lm_head.weight", inputs=1),
)


class LlamaFields(HfFields):
    """Fields of config.json, with transformers' defaults."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Annotated[int, Field(ge=1, le=10_000)]
    num_attention_heads: Size
    vocab_size: Size
    rms_norm_eps: Number
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    max_position_embeddings: Count | None = None
    sliding_window: Count | None = None
    use_sliding_window: bool | None = None
    layer_types: list[str] | None = None
    tie_word_embeddings: bool | None = None
    rope_theta: Number | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None
    partial_rotary_factor: Number | None = None
    hidden_act: str | None = None
    hidden_activation: str | None = None
    attention_bias: bool | None = None
    mlp_bias: bool | None = None
    attention_dropout: Probability | None = None
    quantization_config: dict[str, Any] | None = None
    compression_config: dict[str, Any] | None = None
    pretraining_tp: Count | None = None
    eos_token_id: TokenId | list[TokenId] | None = None


def decoder_config(
    model_type: str,
    hf_config: HfConfig,
    fields: LlamaFields,
    sliding_window: int | None,
    max_positions: int,
    full_attention_layers: tuple[int, ...] = (),
    rope: RopeFields | None = None,
) -> ModelConfig:
    """The configuration that Llama's fields describe, for Llama and families that derive from it.

    Args:
        model_type: Family of the result.
        hf_config: The parsed config.json.
        fields: Its checked fields.
        sliding_window: Attention window of every layer, in tokens; None for full attention.
        max_positions: Longest sequence before the rotary embeddings are scaled, in tokens.
        full_attention_layers: Layers without the window.
        rope: Rotary embeddings; None: as `read_rope` reads them.

    Raises:
        InputError: Fields contradict each other or ask for something that the decoder does not compute.
    """
    check_supported(hf_config, _NEUTRAL)
    num_heads = fields.num_attention_heads
    num_kv_heads = check_kv_heads(num_heads, fields.num_key_value_heads or num_heads)
    if not full_attention_layers:  # layers are alike
        supported = (FULL if sliding_window is None else SLIDING,)
        read_full_layers(fields.layer_types, fields.num_hidden_layers, sliding_window, default=(), supported=supported)
    rope = rope or read_rope(hf_config)
    return ModelConfig(
        model_type=model_type,
        vocab_size=fields.vocab_size,
        d_model=fields.hidden_size,
        d_ff=fields.intermediate_size,
        num_layers=fields.num_hidden_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=check_head_dim(fields.head_dim or fields.hidden_size // num_heads),
        norm_eps=fields.rms_norm_eps,
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        sliding_window=sliding_window,
        full_attention_layers=full_attention_layers,
        tie_embeddings=bool(fields.tie_word_embeddings),
        max_positions=scaled_positions(max_positions, rope.scaling, hf_config),
    )


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(LlamaFields, hf_config)
    config = decoder_config("llama", hf_config, fields, None, fields.max_position_embeddings or 2048)
    window = fields.sliding_window
    if fields.use_sliding_window is not False and window is not None and window < config.max_positions:
        raise InputError(
            f"config.json sets sliding_window to {window:,} for model_type 'llama'. transformers ignores it for a llama, other "
            "readers use it. Set model_type to mistral to use the window, or sliding_window to null for full attention."
        )
    return config


def write_fields(config: ModelConfig) -> HfConfig:
    """Fields whose default differs between versions or families of transformers."""
    return {
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_embeddings,
        **write_rope(config.rope_theta, config.rope_scaling),
    }


def tensors(config: ModelConfig) -> tuple[HfTensor, ...]:
    """Llama's names; tied embeddings have no unembedding tensor."""
    return tuple(tensor for tensor in _TENSORS if not (config.tie_embeddings and tensor.path == UNEMBEDDING))


LLAMA = Family(model_type="llama", architecture="LlamaForCausalLM", read=_read, write=write_fields, tensors=tensors)
