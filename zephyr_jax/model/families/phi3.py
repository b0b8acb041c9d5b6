"""Phi-3 and Phi-4 (dense): Llama's architecture with fused projections, and a share of each head that is rotated."""

from dataclasses import replace

from zephyr_jax.errors import InputError
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Family, HfConfig, Probability, check_head_dim, parse_fields, unsupported
from zephyr_jax.model.families.llama import LlamaFields, decoder_config, write_fields
from zephyr_jax.model.families.llama import tensors as llama_tensors
from zephyr_jax.model.families.rope import read_rope, write_rope
from zephyr_jax.model.families.tensors import FusedRows, HfTensor

_QKV, _GATE_UP = "model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.gate_up_proj.weight"
_LONGROPE = ("longrope", "su", "yarn")
"""Kinds that transformers computes as longrope for a phi3."""


class Phi3Fields(LlamaFields):
    """Fields of config.json, with transformers' defaults for an absent field."""

    resid_pdrop: Probability | None = None
    embd_pdrop: Probability | None = None


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(Phi3Fields, hf_config)
    _check_rope_kind(hf_config)
    rope = read_rope(hf_config, is_partial=True)
    if rope.scaling is not None:  # transformers has no other kind for a phi3
        name = "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"
        raise unsupported(name, hf_config[name])
    max_positions = fields.max_position_embeddings or 4096
    config = decoder_config("phi3", hf_config, fields, fields.sliding_window, max_positions, rope=rope)
    config = replace(config, rotary_share=rope.share)
    check_head_dim(config.rotary_dim)
    return config


def _check_rope_kind(hf_config: HfConfig) -> None:
    for name in ("rope_scaling", "rope_parameters"):
        fields = hf_config.get(name) or {}
        kind = next((fields[key] for key in ("rope_type", "type") if fields.get(key) in _LONGROPE), None)
        if kind:
            raise InputError(
                f"config.json sets `{name}` to the kind {kind}, which transformers computes as longrope for a phi3. It is not "
                "implemented: its frequencies depend on the length of the sequence. Choose a checkpoint without it, such as "
                "microsoft/phi-4 or microsoft/Phi-3-mini-4k-instruct."
            )


def _write(config: ModelConfig) -> HfConfig:
    return {
        **write_fields(config),
        **write_rope(config.rope_theta, share=config.rotary_share),
        "sliding_window": config.sliding_window,
    }


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
