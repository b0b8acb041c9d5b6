"""SmolLM3: Llama's tensors, without rotary embeddings in every fourth layer (NoPE, arXiv 2501.18795)."""

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Count, Family, HfConfig, Size, parse_fields, unsupported
from zephyr_jax.model.families.llama import LlamaFields, decoder_config, tensors, write_fields
from zephyr_jax.model.families.rope import read_rope

_DEFAULT_THETA = 2_000_000.0
_DEFAULT_INTERVAL = 4


class SmolLM3Fields(LlamaFields):
    """Fields of config.json, with transformers' defaults for an absent field."""

    num_key_value_heads: Size | None = 4
    tie_word_embeddings: bool | None = True
    no_rope_layers: list[Annotated[int, Field(ge=0, le=1)]] | None = None
    """Per layer: 1 for a layer with rotary embeddings, 0 for one without."""
    no_rope_layer_interval: Count | None = None


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(SmolLM3Fields, hf_config)
    if fields.use_sliding_window and fields.sliding_window is not None:
        # transformers applies the window to the layers without rotary embeddings; llama.cpp ignores it.
        raise unsupported("use_sliding_window", True)
    max_positions = fields.max_position_embeddings or 32_768
    rope = read_rope(hf_config, default_theta=_DEFAULT_THETA)
    config = decoder_config("smollm3", hf_config, fields, None, max_positions, rope=rope)
    return replace(config, no_rope_layers=_no_rope_layers(fields))


def _no_rope_layers(fields: SmolLM3Fields) -> tuple[int, ...]:
    layers, uses_rope = fields.num_hidden_layers, fields.no_rope_layers
    if uses_rope is None:
        interval = fields.no_rope_layer_interval or _DEFAULT_INTERVAL
        return tuple(range(interval - 1, layers, interval))
    if len(uses_rope) < layers:
        raise InputError(
            f"Invalid no_rope_layers in config.json: expected a 1 (rotary embeddings) or 0 (none) for each of {layers} layers, "
            f"got {len(uses_rope)}: {truncate_repr(uses_rope, 200)}. Take the config.json that belongs to the weights."
        )
    return tuple(layer for layer in range(layers) if not uses_rope[layer])


def _write(config: ModelConfig) -> HfConfig:
    return {
        **write_fields(config),
        "no_rope_layers": [int(layer not in config.no_rope_layers) for layer in range(config.num_layers)],
        "use_sliding_window": False,
        "sliding_window": None,
    }


SMOLLM3 = Family(model_type="smollm3", architecture="SmolLM3ForCausalLM", read=_read, write=_write, tensors=tensors)
