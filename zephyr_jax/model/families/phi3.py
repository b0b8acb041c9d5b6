"""Phi-3 and Phi-4 (dense): Llama's architecture with fused projections, and a share of each head that is rotated."""

from dataclasses import replace

from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Family, HfConfig, Probability, check_head_dim, parse_fields, unsupported
from zephyr_jax.model.families.llama import LlamaFields, decoder_config, write_fields
from zephyr_jax.model.families.llama import tensors as llama_tensors
from zephyr_jax.model.families.longrope import read_longrope, write_longrope
from zephyr_jax.model.families.rope import read_rope, write_rope
from zephyr_jax.model.families.tensors import FusedRows, HfTensor
from zephyr_jax.model.rope import LongRopeScaling

_QKV, _GATE_UP = "model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.gate_up_proj.weight"


class Phi3Fields(LlamaFields):
    """Fields of config.json, with transformers' defaults for an absent field."""

    resid_pdrop: Probability | None = None
    embd_pdrop: Probability | None = None


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(Phi3Fields, hf_config)
    longrope, without = read_longrope(hf_config)
    rope = read_rope(without, is_partial=True)
    if rope.scaling is not None:  # transformers has no other kind for a phi3
        name = "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"
        raise unsupported(name, hf_config[name])
    max_positions = fields.max_position_embeddings or 4096
    if longrope is not None:
        max_positions = min(max_positions, longrope.original_max_positions)
    rope = rope._replace(scaling=longrope)
    config = decoder_config("phi3", hf_config, fields, fields.sliding_window, max_positions, rope=rope)
    config = replace(config, rotary_share=rope.share)
    pairs = check_head_dim(config.rotary_dim) // 2
    if longrope is not None:
        _check_factors(longrope, pairs)
    return config


def _check_factors(longrope: LongRopeScaling, pairs: int) -> None:
    """Raise InputError unless there is a factor for each pair of rotated dimensions."""
    for name, factors in (("short_factor", longrope.short_factors), ("long_factor", longrope.long_factors)):
        if len(factors) != pairs:
            raise InputError(
                f"Invalid {name} of longrope in config.json: expected {pairs} numbers, one for each pair of rotated "
                f"dimensions, got {len(factors)}. Take the config.json that belongs to the weights."
            )


def _write(config: ModelConfig) -> HfConfig:
    fields = {
        **write_fields(config),
        **write_rope(config.rope_theta, share=config.rotary_share),
        "sliding_window": config.sliding_window,
    }
    if isinstance(config.rope_scaling, LongRopeScaling):
        parameters, scaling = write_longrope(config.rope_scaling)
        fields |= {
            "rope_parameters": fields["rope_parameters"] | parameters,
            "rope_scaling": scaling,
            "original_max_position_embeddings": config.rope_scaling.original_max_positions,
            "max_position_embeddings": config.rope_scaling.extended_max_positions,
        }
    return fields


def _tensors(config: ModelConfig) -> tuple[HfTensor, ...]:
    queries, keys, hidden = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.d_ff
    fused = {
        "query": (_QKV, FusedRows(0, queries + 2 * keys, "q_proj")),
        "key": (_QKV, FusedRows(queries, queries + 2 * keys, "k_proj")),
        "value": (_QKV, FusedRows(queries + keys, queries + 2 * keys, "v_proj")),
        "gate": (_GATE_UP, FusedRows(0, 2 * hidden, "gate_proj")),
        "up": (_GATE_UP, FusedRows(hidden, 2 * hidden, "up_proj")),
    }

    def fuse(tensor: HfTensor) -> HfTensor:
        if tensor.path[-1] not in fused:
            return tensor
        name, rows = fused[tensor.path[-1]]
        return replace(tensor, name=name, fused=rows)

    return tuple(fuse(tensor) for tensor in llama_tensors(config))


PHI3 = Family(model_type="phi3", architecture="Phi3ForCausalLM", read=_read, write=_write, tensors=_tensors)
