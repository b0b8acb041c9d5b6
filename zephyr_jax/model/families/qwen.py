"""Qwen2 (with Qwen2.5 and R1-Distill-Qwen) and dense Qwen3: Llama's tensors, with biases or norms of queries and keys."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families import llama
from zephyr_jax.model.families.base import Count, Family, HfConfig, Size, parse_fields
from zephyr_jax.model.families.layer_types import FULL, SLIDING, read_full_layers, write_layer_types
from zephyr_jax.model.families.tensors import HfTensor

_ATTENTION = ("decoder", "attention")
_MODULE = "model.layers.{}.self_attn."
_BIASES = (
    HfTensor((*_ATTENTION, "query_bias"), f"{_MODULE}q_proj.bias", is_flat=True),
    HfTensor((*_ATTENTION, "key_bias"), f"{_MODULE}k_proj.bias", is_flat=True),
    HfTensor((*_ATTENTION, "value_bias"), f"{_MODULE}v_proj.bias", is_flat=True),
)
_NORMS = (
    HfTensor((*_ATTENTION, "query_norm"), f"{_MODULE}q_norm.weight"),
    HfTensor((*_ATTENTION, "key_norm"), f"{_MODULE}k_norm.weight"),
)


class Qwen2Fields(llama.LlamaFields):
    """Fields of config.json, with transformers' defaults for an absent field."""

    num_key_value_heads: Size | None = 32
    use_sliding_window: bool = False
    sliding_window: Count | None = 4096
    max_window_layers: Annotated[int, Field(ge=0, le=10_000)] = 28
    """The first layers, which have full attention where the others have the window."""


class Qwen3Fields(Qwen2Fields):
    """Fields of Qwen3, whose head dimension has a default."""

    head_dim: Size = 128


def _read_qwen2(hf_config: HfConfig) -> ModelConfig:
    # Qwen2 always has biases of queries, keys and values: transformers does not read `attention_bias`.
    without = {name: value for name, value in hf_config.items() if name != "attention_bias"}
    return replace(_read("qwen2", without, parse_fields(Qwen2Fields, without)), qkv_bias=True)


def _read_qwen3(hf_config: HfConfig) -> ModelConfig:
    return replace(_read("qwen3", hf_config, parse_fields(Qwen3Fields, hf_config)), qk_norm="head")


def _read(model_type: str, hf_config: HfConfig, fields: Qwen2Fields) -> ModelConfig:
    window, full = _windows(fields)
    max_positions = fields.max_position_embeddings or 32_768
    return llama.decoder_config(model_type, hf_config, fields, window, max_positions, full)


def _windows(fields: Qwen2Fields) -> tuple[int | None, tuple[int, ...]]:
    """The sliding window, None where no layer has one, and the layers without it."""
    num_layers, window = fields.num_hidden_layers, fields.sliding_window if fields.use_sliding_window else None
    first = num_layers if window is None else min(num_layers, fields.max_window_layers)
    supported = (FULL,) if window is None else (FULL, SLIDING)
    full = read_full_layers(fields.layer_types, num_layers, window, default=range(first), supported=supported)
    return (None, ()) if len(full) == num_layers else (window, full)


def _write(config: ModelConfig) -> HfConfig:
    full = config.full_attention_layers
    fields = {**llama.write_fields(config), "use_sliding_window": config.sliding_window is not None}
    if config.sliding_window is not None:
        fields["sliding_window"] = config.sliding_window
    if full == tuple(range(len(full))):
        # For versions of transformers that do not read `layer_types`.
        fields["max_window_layers"] = len(full) if config.sliding_window is not None else config.num_layers
    return {**fields, "layer_types": write_layer_types(config)}


def _qwen2_tensors(config: ModelConfig) -> tuple[HfTensor, ...]:
    return (*llama.tensors(config), *_BIASES)


def _qwen3_tensors(config: ModelConfig) -> tuple[HfTensor, ...]:
    return (*llama.tensors(config), *_NORMS)


QWEN2 = Family(
    model_type="qwen2", architecture="Qwen2ForCausalLM", read=_read_qwen2, write=_write, tensors=_qwen2_tensors
)
QWEN3 = Family(
    model_type="qwen3", architecture="Qwen3ForCausalLM", read=_read_qwen3, write=_write, tensors=_qwen3_tensors
)
