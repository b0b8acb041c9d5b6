"""Models of images and text whose text model is a family: Gemma 3 from 4B on, Mistral Small 3.1, Ministral 3.

Only the text model is loaded. Its fields are `text_config` of config.json, where those that have transformers' defaults may be
absent, and its tensors and modules have names below `language_model`.
"""

import re
from collections.abc import Iterable
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.families.base import HfConfig

_GEMMA3: HfConfig = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_MISTRAL: HfConfig = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-6,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MINISTRAL3: HfConfig = _MISTRAL | {
    "vocab_size": 131_072,
    "num_hidden_layers": 34,
    "head_dim": 128,
    "max_position_embeddings": 262_144,
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "pad_token_id": 11,
}
_DEFAULTS: dict[str, HfConfig] = {"gemma3_text": _GEMMA3, "mistral": _MISTRAL, "ministral3": _MINISTRAL3}
"""Fields of transformers' text configurations, by their model_type."""
WRAPPERS: dict[str, HfConfig] = {
    "gemma3": {"model_type": "gemma3_text"},
    "mistral3": {
        "model_type": "mistral",
        "vocab_size": 131_072,
        "hidden_size": 5120,
        "intermediate_size": 32_768,
        "num_hidden_layers": 40,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e9,
        "sliding_window": None,
    },
}
"""model_type of the whole model -> transformers' text_config of a file without one."""
_OUTER = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "tie_word_embeddings",
    "quantization_config",
    "compression_config",
)
"""Fields of the whole model that go before those of its text_config, as in transformers 5."""
_TEXT = re.compile(r"(?:model\.)?language_model\.(?:model\.)?")
_IMAGES = re.compile(r"(?:model\.)?(?:vision_tower|multi_modal_projector)\.")
TEXT_MODULE = "model.language_model."
"""Where transformers has the text model of a whole model since 4.52; `model.` in a text model alone."""


def text_config(hf_config: HfConfig) -> HfConfig:
    """The config.json of the text model alone; for a model without images, the file itself.

    Raises:
        InputError: text_config is of another type than a JSON object.
    """
    kind = hf_config.get("model_type")
    if not isinstance(kind, str) or kind not in WRAPPERS:
        return hf_config
    given: Any = hf_config.get("text_config")
    if given is None:
        given = WRAPPERS[kind]
    if not isinstance(given, dict):
        raise InputError(
            f"Invalid text_config in config.json: expected an object, got {truncate_repr(given)}. Take the config.json that "
            "belongs to the weights."
        )
    text_type = given.get("model_type") or WRAPPERS[kind]["model_type"]
    defaults = _DEFAULTS.get(text_type, {}) if isinstance(text_type, str) else {}
    outer = {name: hf_config[name] for name in _OUTER if hf_config.get(name) is not None}
    return {**defaults, **given, **outer, "model_type": text_type}


def field_place(hf_config: HfConfig, name: str) -> str:
    """Where config.json has the value of a field that is in effect: words after its name in a message, "" for a text model."""
    if text_config(hf_config) is hf_config:
        return ""
    return " beside text_config" if name in _OUTER and hf_config.get(name) is not None else " in text_config"


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Names of a file's tensors or modules -> their names in the text model alone; without those of images.

    A file of a text model keeps its names. The forms are those that transformers reads: `language_model.model.X` and
    `language_model.lm_head` of its older versions and of published files, `model.language_model.X` and `lm_head`.
    """
    every = list(names)
    if not any(_TEXT.match(name) for name in every):
        return {name: name for name in every}
    return {name: _text_name(name) for name in every if not _IMAGES.match(name)}


def text_prefix(names: Iterable[str]) -> str | None:
    """What the first of these names has before a layer's name, such as `model.language_model.`; None for a text model."""
    return next((match[0] for name in names if (match := _TEXT.match(name))), None)


def whole_name(name: str, has_images: bool = True, prefix: str = TEXT_MODULE) -> str:
    """Name of a text model's module, also inside a model of images and text, whose prefix is that of transformers."""
    return f"{prefix}{name.removeprefix('model.')}" if has_images and name.startswith("model.") else name


def _text_name(name: str) -> str:
    match = _TEXT.match(name)
    if match is None:
        return name
    rest = name[match.end() :]
    return rest if rest.startswith("lm_head.") else f"model.{rest}"
