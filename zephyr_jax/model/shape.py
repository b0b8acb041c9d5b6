"""The numbers that define a Mistral, read from a Hugging Face config.json; fields that we do not honour are refused."""

from dataclasses import dataclass
from typing import Any

from zephyr_jax.errors import InputError
from zephyr_jax.model.fields import check_fields

_ARCHITECTURES = {"mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM"}
_NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps",
)  # fmt: skip


@dataclass(frozen=True)
class ModelShape:
    """Sizes and constants. Letters: D model, F mlp, N query heads, K kv heads, H head dim, V vocab."""

    vocab: int
    model: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    sliding_window: int | None
    tied: bool
    max_positions: int

    @property
    def parameters(self) -> int:
        """Number of weights."""
        attention = self.model * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = attention + 3 * self.model * self.mlp + 2 * self.model
        return self.layers * layer + self.vocab * self.model * (1 if self.tied else 2) + self.model


def shape_from_hf(config: dict[str, Any]) -> ModelShape:
    """Sizes from a parsed config.json of Mistral, Zephyr or a Llama of the same maths.

    Raises InputError for another architecture, a missing field, or a feature that this model does not compute
    (rope scaling, biases, other activations): it is never ignored.
    """
    check_fields(config)
    _refuse_foreign(config)
    missing = [name for name in _NEEDED if config.get(name) is None]
    if missing:
        raise InputError(f"config.json lacks {', '.join(missing)}. Take the config.json that belongs to the weights.")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if heads % kv_heads:
        raise InputError(
            f"config.json has {heads} query heads and {kv_heads} kv heads; the second must divide the first."
        )
    return ModelShape(
        vocab=config["vocab_size"],
        model=config["hidden_size"],
        mlp=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=config["rms_norm_eps"],
        rope_theta=_rope_theta(config),
        sliding_window=config.get("sliding_window", 4096) if config["model_type"] == "mistral" else None,
        tied=bool(config.get("tie_word_embeddings", False)),
        max_positions=config.get("max_position_embeddings", 0),
    )


def _refuse_foreign(config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES:
        raise InputError(
            f"config.json says model_type {kind!r}; this model computes {' and '.join(sorted(_ARCHITECTURES))} "
            "(Mistral, Zephyr, SmolLM2 and the like). Choose a checkpoint of those."
        )
    scaling = config.get("rope_scaling") or {}
    rope = scaling.get("rope_type", scaling.get("type")) or (config.get("rope_parameters") or {}).get("rope_type")
    foreign = {
        "hidden_act": config.get("hidden_act", "silu") not in ("silu", "swish"),
        "rope_scaling": bool(scaling) and rope != "default",
        "rope_parameters": rope not in (None, "default"),
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "quantization_config": bool(config.get("quantization_config")),
        "pretraining_tp": config.get("pretraining_tp", 1) not in (1, None),
        "partial_rotary_factor": config.get("partial_rotary_factor", 1.0) not in (1.0, None),
    }
    for name in (name for name, found in foreign.items() if found):
        raise InputError(
            f"config.json sets `{name}` to {config.get(name)!r}, which this model does not compute. Its numbers would be "
            "wrong, so it is refused: choose a checkpoint without it."
        )


def _rope_theta(config: dict[str, Any]) -> float:
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")
    return float(theta) if theta else 10000.0
