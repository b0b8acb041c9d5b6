"""Sizes of published models, so that `plan` needs no download: the fields of their config.json that decide shapes and memory."""

from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.families.registry import config_from_hf

_LLAMA3 = {"model_type": "llama", "vocab_size": 128_256, "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072}
_QWEN3 = {"model_type": "qwen3", "vocab_size": 151_936, "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768}

_GEMMA3 = {
    "model_type": "gemma3_text",
    "vocab_size": 262_208,
    "rms_norm_eps": 1e-6,
    "sliding_window": 1024,
    "query_pre_attn_scalar": 256,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "max_position_embeddings": 131_072,
}
"""The text model of those with images."""


def _llama_rope(factor: float) -> dict[str, Any]:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {"rope_theta": 5e5, "rope_scaling": {**scaling, "original_max_position_embeddings": 8192}}


def _sizes(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int = 128) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "Mistral-7B": {
        **_sizes(32, 4096, 14_336, 32, 8),
        "model_type": "mistral",
        "vocab_size": 32_000,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "sliding_window": 4096,
        "max_position_embeddings": 32_768,
    },
    "Llama-3.1-8B": {**_LLAMA3, **_sizes(32, 4096, 14_336, 32, 8), **_llama_rope(8.0)},
    "Llama-3.2-1B": {**_LLAMA3, **_sizes(16, 2048, 8192, 32, 8, 64), **_llama_rope(32.0), "tie_word_embeddings": True},
    "Llama-3.2-3B": {**_LLAMA3, **_sizes(28, 3072, 8192, 24, 8), **_llama_rope(32.0), "tie_word_embeddings": True},
    "Qwen2.5-7B": {
        **_sizes(28, 3584, 18_944, 28, 4),
        "model_type": "qwen2",
        "vocab_size": 152_064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 131_072,
    },
    "Qwen3-8B": {**_QWEN3, **_sizes(36, 4096, 12_288, 32, 8), "rope_theta": 1e6},
    "Qwen3-14B": {**_QWEN3, **_sizes(40, 5120, 17_408, 40, 8), "rope_theta": 1e6},
    "Gemma-2-9B": {
        **_sizes(42, 3584, 14_336, 16, 8, 256),
        "model_type": "gemma2",
        "vocab_size": 256_000,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 8192,
    },
    "Gemma-3-1B": {
        **_sizes(26, 1152, 6912, 4, 1, 256),
        "model_type": "gemma3_text",
        "vocab_size": 262_144,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "query_pre_attn_scalar": 256,
        "max_position_embeddings": 32_768,
    },
    "Gemma-3-4B": {**_GEMMA3, **_sizes(34, 2560, 10_240, 8, 4, 256)},
    "Gemma-3-12B": {**_GEMMA3, **_sizes(48, 3840, 15_360, 16, 8, 256)},
    "Olmo-3-7B": {
        **_sizes(32, 4096, 11_008, 32, 32),
        "model_type": "olmo3",
        "vocab_size": 100_278,
        "rms_norm_eps": 1e-6,
        "sliding_window": 4096,
        "rope_theta": 5e5,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192},
        "max_position_embeddings": 65_536,
    },
    "OLMo-2-1124-7B": {
        **_sizes(32, 4096, 11_008, 32, 32),
        "model_type": "olmo2",
        "vocab_size": 100_352,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e5,
        "max_position_embeddings": 4096,
    },
    "Gemma-7B": {
        **_sizes(28, 3072, 24_576, 16, 16, 256),
        "model_type": "gemma",
        "vocab_size": 256_000,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
    },
    "Granite-3.3-8B": {
        **_sizes(40, 4096, 12_800, 32, 8),
        "model_type": "granite",
        "vocab_size": 49_159,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e7,
        "tie_word_embeddings": True,
        "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12.0,
        "logits_scaling": 16.0,
        "residual_multiplier": 0.22,
        "max_position_embeddings": 131_072,
    },
    "Phi-4": {
        **_sizes(40, 5120, 17_920, 40, 10),
        "model_type": "phi3",
        "vocab_size": 100_352,
        "rms_norm_eps": 1e-5,
        "rope_theta": 250_000.0,
        "max_position_embeddings": 16_384,
    },
    "Phi-4-mini": {
        **_sizes(32, 3072, 8192, 24, 8),
        "model_type": "phi3",
        "vocab_size": 200_064,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75},
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
    },
    "SmolLM3-3B": {
        **_sizes(36, 2048, 11_008, 16, 4),
        "model_type": "smollm3",
        "vocab_size": 128_256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "tie_word_embeddings": True,
        "max_position_embeddings": 65_536,
    },
}
"""Name -> config.json, in part. A row is all that a further model needs."""
DEFAULT_PRESET = "Mistral-7B"


def preset(name: str) -> ModelConfig:
    """The configuration of a row of `PRESETS`."""
    return config_from_hf(PRESETS[name])


def match_preset(path: str) -> str | None:
    """The row for a hub id or folder whose last part begins with the row's name, the longest one; None without one.

    `meta-llama/Llama-3.1-8B-Instruct` and `runs/llama-3.1-8b-sft` are both of Llama-3.1-8B.
    """
    last = path.rstrip("/").rpartition("/")[2].lower()
    return max((name for name in PRESETS if f"{last}-".startswith(f"{name.lower()}-")), key=len, default=None)


def parse_preset(text: str) -> str:
    """The row that a setting names, in any case. Raises InputError for an unknown one."""
    name = match_preset(text)
    if name is None:
        raise InputError(
            f"Unknown `model_preset` {truncate_repr(text)}: expected one of {', '.join(PRESETS)}, or a hub id. Set it to "
            "one of them, or set `model.path` to a local folder."
        )
    return name
