"""Gemma 3 (arXiv 2503.19786), text models: Gemma 2 with norms of queries and keys, two rotary bases, and no cap of scores."""

from dataclasses import replace
from typing import Any

from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import (
    Count,
    Family,
    HfConfig,
    Number,
    Size,
    check_supported,
    is_number,
    parse_fields,
    unsupported,
)
from zephyr_jax.model.families.gemma2 import WindowFields, window_config, write_window_fields
from zephyr_jax.model.families.gemma2 import tensors as gemma2_tensors
from zephyr_jax.model.families.layer_types import FULL, SLIDING
from zephyr_jax.model.families.rope import RopeFields, read_rope, scaling_fields, shared_truncate, with_shared_truncate
from zephyr_jax.model.families.tensors import HfTensor

_THETA, _LOCAL_THETA = 1e6, 1e4
_PATTERN = 6  # every sixth layer has full attention
_NORMS = (
    HfTensor(("decoder", "attention", "query_norm"), "model.layers.{}.self_attn.q_norm.weight"),
    HfTensor(("decoder", "attention", "key_norm"), "model.layers.{}.self_attn.k_norm.weight"),
)


class Gemma3Fields(WindowFields):
    """Fields of config.json, with transformers' defaults for an absent field."""

    vocab_size: Size = 262_208
    max_position_embeddings: Count = 131_072
    rope_local_base_freq: Number | None = None


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(Gemma3Fields, hf_config)
    # transformers reads this field and computes scores without the cap, so that a value leaves open what was trained.
    check_supported(hf_config, {"attn_logit_softcapping": ()})
    rope, local_theta = _read_ropes(hf_config, fields)
    config = window_config(
        "gemma3_text",
        hf_config,
        fields,
        fields.sliding_window_pattern or _PATTERN,
        qk_norm="head",
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        local_rope_theta=local_theta,
    )
    return replace(config, max_positions=fields.max_position_embeddings)  # it counts the factor of the scaling already


def _read_ropes(hf_config: HfConfig, fields: Gemma3Fields) -> tuple[RopeFields, float]:
    """Rotary embeddings of layers with full attention, and the base of those with a window.

    transformers 5 has one object for each in `rope_parameters`; transformers 4 has `rope_theta` and `rope_scaling` for the
    first and `rope_local_base_freq` for the second.
    """
    objects = dict(fields.rope_parameters or {})
    truncate = objects.pop("truncate", None)
    if any(name not in (FULL, SLIDING) or not isinstance(one, dict | None) for name, one in objects.items()):
        raise unsupported("rope_parameters", objects)
    full, sliding = (objects.get(name) or {} for name in (FULL, SLIDING))
    rope = read_rope({**hf_config, "rope_parameters": full}, default_theta=_THETA)
    given, top = sliding.get("rope_theta"), fields.rope_local_base_freq
    local = read_rope({"rope_parameters": sliding}, default_theta=top or _LOCAL_THETA)
    if local.scaling is not None:
        raise unsupported("rope_parameters", objects)
    if top is not None and is_number(given) and given != top:
        raise InputError(
            f"config.json gives two rotary bases of layers with a window: rope_local_base_freq {top:,.12g} and "
            f"rope_parameters.{SLIDING}.rope_theta {given:,.12g}. transformers 5 uses the second, transformers 4 the first. "
            "Keep the one that the model was trained with and remove the other."
        )
    return with_shared_truncate(rope, truncate), local.theta


def _write(config: ModelConfig) -> HfConfig:
    local, scaling = config.local_rope_theta, scaling_fields(config.rope_scaling)
    parameters: dict[str, Any] = {
        FULL: {"rope_type": "default", "rope_theta": config.rope_theta, **scaling},
        SLIDING: {"rope_type": "default", "rope_theta": local},
        **shared_truncate(config.rope_scaling),
    }
    return {**write_window_fields(config), "rope_parameters": parameters, "rope_local_base_freq": local}


def _tensors(config: ModelConfig) -> tuple[HfTensor, ...]:
    return (*gemma2_tensors(config), *_NORMS)


GEMMA3 = Family(model_type="gemma3_text", architecture="Gemma3ForCausalLM", read=_read, write=_write, tensors=_tensors)
