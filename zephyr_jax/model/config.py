"""The numbers that define a Mistral, read from a Hugging Face config.json; fields that we do not honour are refused."""

from dataclasses import dataclass
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config_fields import check_fields
from zephyr_jax.model.rope import rope_theta

_ARCHITECTURES = {"mistral": "MistralForCausalLM", "llama": "LlamaForCausalLM"}
_POSITIONS = {"mistral": 131_072, "llama": 2048}
"""transformers' default of `max_position_embeddings`."""
_NEEDED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants. Letters: D model, F mlp, N query heads, K kv heads, H head dim, V vocab."""

    vocab_size: int
    d_model: int
    d_ff: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope_theta: float
    sliding_window: int | None
    tie_embeddings: bool
    max_positions: int

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        attention = self.d_model * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        layer = attention + 3 * self.d_model * self.d_ff + 2 * self.d_model
        return (
            self.num_layers * layer + self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2) + self.d_model
        )


def config_from_hf(config: dict[str, Any]) -> ModelConfig:
    """Sizes from a parsed config.json of Mistral, Zephyr or a Llama of the same maths.

    Fields that are absent or null have transformers' defaults. Raises InputError for another architecture, a missing field,
    fields that contradict each other, or a feature that this model does not compute (rope scaling, biases, other
    activations, dropout): it is never ignored.
    """
    check_fields(config)
    _refuse_foreign(config)
    missing = [name for name in _NEEDED if config.get(name) is None]
    if missing:
        raise InputError(f"config.json lacks {', '.join(missing)}. Take the config.json that belongs to the weights.")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", 8 if config["model_type"] == "mistral" else None) or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    if heads % kv_heads:
        raise InputError(
            f"config.json has {heads} query heads and {kv_heads} kv heads; the second must divide the first."
        )
    window = _window(config)
    _check_layer_types(config, window)
    return ModelConfig(
        vocab_size=config["vocab_size"],
        d_model=config["hidden_size"],
        d_ff=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=config["rms_norm_eps"],
        rope_theta=rope_theta(config),
        sliding_window=window,
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        max_positions=_positions(config),
    )


def _refuse_foreign(config: dict[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in _ARCHITECTURES:
        raise InputError(
            f"config.json says model_type {kind!r}; this model computes {' and '.join(sorted(_ARCHITECTURES))} "
            "(Mistral, Zephyr, SmolLM2 and the like). Choose a checkpoint of those."
        )
    activations = ("silu", "swish", None)
    foreign = {
        "hidden_act": config.get("hidden_act") not in activations,
        "hidden_activation": config.get("hidden_activation") not in activations,
        "attention_bias": bool(config.get("attention_bias")),
        "mlp_bias": bool(config.get("mlp_bias")),
        "attention_dropout": bool(config.get("attention_dropout")),
        "quantization_config": bool(config.get("quantization_config")),
        "compression_config": bool(config.get("compression_config")),
        "per_layer_config": bool(config.get("per_layer_config")),
    }
    for name in (name for name, found in foreign.items() if found):
        raise InputError(
            f"config.json sets `{name}` to {truncate_repr(config.get(name), 200)}, which this model does not compute. Its "
            "numbers would be wrong, so it is refused: choose a checkpoint without it."
        )


def _positions(config: dict[str, Any]) -> int:
    return config.get("max_position_embeddings") or _POSITIONS[config["model_type"]]


def _window(config: dict[str, Any]) -> int | None:
    """The sliding window. Raises InputError where transformers uses another one than the fields ask for."""
    window = config.get("sliding_window", 4096 if config["model_type"] == "mistral" else None)
    switch = config.get("use_sliding_window")
    if config["model_type"] == "mistral":
        if switch is False and window is not None:
            raise InputError(
                f"config.json sets use_sliding_window to false and sliding_window to {window:,}. transformers uses the window of "
                "a mistral nevertheless, other readers do not: set sliding_window to null for full attention, or remove "
                "use_sliding_window."
            )
        return window
    if switch is not False and window is not None and window < _positions(config):
        raise InputError(
            f"config.json sets sliding_window to {window:,} for model_type 'llama'. transformers ignores it there, other readers "
            "do not: set model_type to mistral to use the window, or sliding_window to null for full attention."
        )
    return None


def _check_layer_types(config: dict[str, Any], window: int | None) -> None:
    """Raise InputError unless every layer has the attention that this model computes in all of them."""
    computed = "full_attention" if window is None else "sliding_attention"
    types = config.get("layer_types")
    if types is not None and types != [computed] * config["num_hidden_layers"]:
        raise InputError(
            f"config.json sets layer_types to {truncate_repr(types, 200)}; this model computes {computed} (sliding_window "
            f"{window}) in each of {config['num_hidden_layers']} layers. Choose a checkpoint whose layers are alike."
        )
