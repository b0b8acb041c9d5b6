"""Granite 3 (dense): Llama's tensors, with factors of embeddings, attention scores, residuals and logits (muP)."""

from dataclasses import replace

from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.base import Family, HfConfig, Number, parse_fields
from zephyr_jax.model.families.llama import LlamaFields, decoder_config, tensors, write_fields


class GraniteFields(LlamaFields):
    """Fields of config.json; an absent factor is 1, as in transformers."""

    attention_multiplier: Number | None = None
    """Replaces 1 / sqrt(head_dim)."""
    embedding_multiplier: Number | None = None
    residual_multiplier: Number | None = None
    logits_scaling: Number | None = None
    """Logits are divided by it."""


def _read(hf_config: HfConfig) -> ModelConfig:
    fields = parse_fields(GraniteFields, hf_config)
    config = decoder_config("granite", hf_config, fields, None, fields.max_position_embeddings or 2048)
    return replace(
        config,
        attention_scale=float(fields.attention_multiplier or 1),
        embedding_scale=float(fields.embedding_multiplier or 1),
        residual_scale=float(fields.residual_multiplier or 1),
        logit_scale=1 / (fields.logits_scaling or 1),
    )


GRANITE = Family(
    model_type="granite", architecture="GraniteForCausalLM", read=_read, write=write_fields, tensors=tensors
)
