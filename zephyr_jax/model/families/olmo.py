"""OLMo 2 and 3: norms of what sublayers add instead of their inputs, and of queries and keys over all heads.

OLMo 2 (arXiv 2501.00656) has full attention. Three of four layers of OLMo 3 have a sliding window, and only the others scale
their rotary frequencies (YaRN).
"""

from dataclasses import replace
from typing import Any

from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Count, Family, HfConfig, parse_fields, unsupported
from zephyr_jax.model.families.layer_types import FULL, SLIDING, read_full_layers, write_layer_types
from zephyr_jax.model.families.llama import LlamaFields, decoder_config, write_fields
from zephyr_jax.model.families.llama import tensors as llama_tensors
from zephyr_jax.model.families.rope import RopeFields, read_rope, scaling_fields, shared_truncate, with_shared_truncate
from zephyr_jax.model.families.tensors import HfTensor

_ATTENTION, _FEED_FORWARD = ("decoder", "attention"), ("decoder", "feed_forward")
_NORMS = (
    HfTensor((*_ATTENTION, "query_norm"), "model.layers.{}.self_attn.q_norm.weight", is_flat=True),
    HfTensor((*_ATTENTION, "key_norm"), "model.layers.{}.self_attn.k_norm.weight", is_flat=True),
    HfTensor((*_ATTENTION, "post_norm"), "model.layers.{}.post_attention_layernorm.weight"),
    HfTensor((*_FEED_FORWARD, "post_norm"), "model.layers.{}.post_feedforward_layernorm.weight"),
)
_DEFAULT_THETA_3 = 500_000.0


class Olmo3Fields(LlamaFields):
    """Fields of config.json, with transformers' defaults for an absent field."""

    sliding_window: Count | None = 4096


def _tensors(config: ModelConfig) -> tuple[HfTensor, ...]:
    return (
        *(tensor for tensor in llama_tensors(config) if tensor.path[-1] != "norm" or len(tensor.path) == 1),
        *_NORMS,
    )


def _with_norms(config: ModelConfig) -> ModelConfig:
    return replace(config, norm_placement="post", qk_norm="all_heads")


def _read_olmo2(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(LlamaFields, hf_config)
    return _with_norms(decoder_config("olmo2", hf_config, fields, None, fields.max_position_embeddings or 2048))


def _read_olmo3(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(Olmo3Fields, hf_config)
    layers, window = fields.num_hidden_layers, fields.sliding_window
    full_layers = read_full_layers(fields.layer_types, layers, window, default=range(3, layers, 4))
    rope, local_theta = _read_rope(hf_config)
    alike = fields.model_copy(update={"layer_types": None})
    max_positions = fields.max_position_embeddings or 2048
    config = _with_norms(decoder_config("olmo3", hf_config, alike, None, max_positions, rope=rope))
    if len(full_layers) == config.num_layers:
        return config
    if window is None:
        raise InputError(
            "config.json sets sliding_window to null, and layer_types (by default three of four layers) ask for a window. Set "
            "sliding_window, or layer_types to full_attention in every layer."
        )
    return replace(
        config,
        sliding_window=window,
        full_attention_layers=full_layers,
        local_rope_theta=None if rope.scaling is None else local_theta,
    )


def _read_rope(hf_config: HfConfig) -> tuple[RopeFields, float]:
    """Rotary embeddings of layers with full attention, and the base in layers with a window.

    transformers 4 has `rope_theta` for all layers and `rope_scaling` for those with full attention; transformers 5 has one object
    per kind of layer in `rope_parameters`.
    """
    objects: dict[str, Any] = dict(hf_config.get("rope_parameters") or {})
    truncate = objects.pop("truncate", None)
    if any(name not in (FULL, SLIDING) for name in objects) or not all(
        isinstance(one, dict) or one is None for one in objects.values()
    ):
        raise unsupported("rope_parameters", objects)
    full, sliding = (
        read_rope(
            {**hf_config, "rope_parameters": objects.get(kind), "rope_scaling": scaling}, default_theta=_DEFAULT_THETA_3
        )
        for kind, scaling in ((FULL, hf_config.get("rope_scaling")), (SLIDING, None))
    )
    if sliding.scaling is not None:
        raise unsupported(f"rope_parameters.{SLIDING}", objects[SLIDING])
    # transformers 5 ignores rope_theta in layers with a window; transformers 4 has no other base.
    used = float((objects.get(SLIDING) or {}).get("rope_theta") or _DEFAULT_THETA_3)
    if not full.theta == sliding.theta == used:
        raise InputError(
            f"config.json gives several bases of the rotary embeddings: transformers 5 uses {full.theta:,.12g} in layers with "
            f"full attention and {used:,.12g} in those with a window, transformers 4 one base in all. Set rope_theta and the "
            "rope_theta of each object in rope_parameters to the one that the model was trained with."
        )
    return with_shared_truncate(full, truncate), used


def _write_olmo3(config: ModelConfig) -> HfConfig:
    fields, default = scaling_fields(config.rope_scaling), {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        **write_fields(config),
        "rope_parameters": {SLIDING: default, FULL: {**default, **fields}, **shared_truncate(config.rope_scaling)},
        "sliding_window": config.sliding_window,
        "layer_types": write_layer_types(config),
    }


OLMO2 = Family(
    model_type="olmo2", architecture="Olmo2ForCausalLM", read=_read_olmo2, write=write_fields, tensors=_tensors
)
OLMO3 = Family(
    model_type="olmo3", architecture="Olmo3ForCausalLM", read=_read_olmo3, write=_write_olmo3, tensors=_tensors
)
