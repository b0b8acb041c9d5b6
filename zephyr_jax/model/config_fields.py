"""The types of what a config.json says, before anything is computed from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr


@dataclass(frozen=True)
class _Kind:
    """What a field may hold: a test, and words for it."""

    holds: Callable[[Any], bool]
    words: str


def _whole(most: int) -> _Kind:
    return _Kind(lambda value: type(value) is int and 1 <= value <= most, f"a whole number from 1 to {most:,}")


_WIDTH, _COUNT, _LAYERS = _whole(2**24), _whole(2**31 - 1), _whole(10_000)
_NUMBER = _Kind(
    lambda value: type(value) in (int, float) and 0 < value < math.inf and value < 1e30, "a finite number above 0"
)
_SWITCH = _Kind(lambda value: type(value) is bool, "true or false")
_TEXT = _Kind(lambda value: isinstance(value, str), "text")
_OBJECT = _Kind(lambda value: isinstance(value, dict), "an object")
_SHARE = _Kind(lambda value: type(value) in (int, float) and 0 <= value < 1, "a number from 0 to 1")
_TEXTS = _Kind(
    lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value), "a list of texts"
)
_IDS = _Kind(
    lambda value: all(
        type(each) is int and 0 <= each < 2**31 for each in (value if isinstance(value, list) else [value])
    ),
    "a token id or a list of them",
)
_FIELDS = {
    "hidden_size": _WIDTH, "intermediate_size": _WIDTH, "vocab_size": _WIDTH, "head_dim": _WIDTH,
    "num_attention_heads": _WIDTH, "num_key_value_heads": _WIDTH, "num_hidden_layers": _LAYERS,
    "sliding_window": _COUNT, "max_position_embeddings": _COUNT, "pretraining_tp": _COUNT,
    "rms_norm_eps": _NUMBER, "rope_theta": _NUMBER, "partial_rotary_factor": _NUMBER,
    "tie_word_embeddings": _SWITCH, "attention_bias": _SWITCH, "mlp_bias": _SWITCH,
    "use_sliding_window": _SWITCH, "attention_dropout": _SHARE, "layer_types": _TEXTS, "eos_token_id": _IDS,
    "model_type": _TEXT, "hidden_act": _TEXT, "hidden_activation": _TEXT,
    "rope_scaling": _OBJECT, "rope_parameters": _OBJECT, "quantization_config": _OBJECT, "compression_config": _OBJECT,
}  # fmt: skip


def check_fields(config: dict[str, Any]) -> None:
    """Raise InputError for a field that we read and that holds something else than its kind (null is as good as absent)."""
    for name, kind in _FIELDS.items():
        value = config.get(name)
        if value is not None and not kind.holds(value):
            raise InputError(
                f"config.json sets {name} to {truncate_repr(value)}; it needs {kind.words}. Copy it again."
            )
    for name in ("rope_parameters", "rope_scaling"):
        theta = (config.get(name) or {}).get("rope_theta")
        if theta is not None and not _NUMBER.holds(theta):
            raise InputError(
                f"config.json sets {name}.rope_theta to {truncate_repr(theta)}; it needs {_NUMBER.words}. Copy it again."
            )
    head = config.get("head_dim") or (config.get("hidden_size") or 2) // (config.get("num_attention_heads") or 1)
    if head < 2 or head % 2:
        raise InputError(
            f"config.json gives heads of {head} numbers; rotary embeddings need an even one. Take the config.json that "
            "belongs to the weights."
        )
