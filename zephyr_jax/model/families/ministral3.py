"""Ministral 3 (text): Mistral's tensors, YaRN, and queries that are scaled by their position (Llama 4)."""

import math
from dataclasses import replace
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig, QueryScaling
from zephyr_jax.model.families.base import Family, HfConfig, Size, is_number, parse_fields, unsupported
from zephyr_jax.model.families.llama import LlamaFields, decoder_config, tensors, write_fields
from zephyr_jax.model.families.rope import read_rope
from zephyr_jax.model.rope import YarnScaling

_BETA, _ORIGINAL = "llama_4_scaling_beta", "original_max_position_embeddings"
_DEFAULT_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    _ORIGINAL: 16_384,
    "attention_factor": 1.0,
    _BETA: 0.1,
}
"""transformers' for a file without `rope_parameters`."""


class Ministral3Fields(LlamaFields):
    """Fields of config.json, with transformers' defaults for an absent field."""

    num_key_value_heads: Size | None = 8
    head_dim: Size | None = 128


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(Ministral3Fields, hf_config)
    if fields.rope_scaling:  # it would replace rope_parameters in transformers, and other readers use one or the other
        raise unsupported("rope_scaling", fields.rope_scaling)
    given = dict(_DEFAULT_ROPE if fields.rope_parameters is None else fields.rope_parameters)
    beta = given.pop(_BETA, None)
    given.pop("max_position_embeddings", None)  # transformers ignores it
    if not is_number(beta):
        raise InputError(
            f"Invalid rope_parameters.{_BETA} in config.json: expected a positive number, got {truncate_repr(beta)}. Take the "
            "config.json that belongs to the weights."
        )
    rope = read_rope({**hf_config, "rope_parameters": given})
    if not isinstance(rope.scaling, YarnScaling):
        raise unsupported("rope_parameters", fields.rope_parameters)
    max_positions = fields.max_position_embeddings or 262_144
    config = decoder_config("ministral3", hf_config, fields, fields.sliding_window, max_positions, rope=rope)
    return replace(config, query_scaling=QueryScaling(beta=beta, length=rope.scaling.original_max_positions))


def _write(config: ModelConfig) -> HfConfig:
    fields, scaling = write_fields(config), config.rope_scaling
    queries = config.query_scaling
    beta = {} if queries is None else {_BETA: queries.beta}
    scales = _mscales(scaling) if isinstance(scaling, YarnScaling) else {}
    return {
        **fields,
        "rope_parameters": {**fields["rope_parameters"], **beta, **scales},
        "rope_scaling": None,  # transformers 4 has no ministral3, and 5 would prefer this over rope_parameters
        "llama_4_scaling": queries and {_ORIGINAL: queries.length, "beta": queries.beta},  # where vLLM reads the beta
        "sliding_window": config.sliding_window,
    }


def _mscales(scaling: YarnScaling) -> dict[str, float]:
    """YaRN's magnitude as llama.cpp requires it: (1 + c mscale) / (1 + c mscale_all_dim) with c = log(factor) / 10.

    transformers and vLLM take it from `attention_factor`.
    """
    growth = 0.1 * math.log(scaling.factor) if scaling.factor > 1 else 0.0
    divisor = max(0.0, round(((1 + growth) / scaling.magnitude - 1) / growth, 12)) if growth else 1.0
    return {"mscale": 1.0, "mscale_all_dim": divisor}


MINISTRAL3 = Family(
    model_type="ministral3", architecture="Ministral3ForCausalLM", read=_read, write=_write, tensors=tensors
)
