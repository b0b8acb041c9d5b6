"""`layer_types` of a config.json: which layers have the sliding window and which have full attention."""

from collections.abc import Sequence

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.config import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers that the decoder computes."""


def read_full_layers(
    layer_types: Sequence[str] | None,
    num_layers: int,
    window: int | None,
    *,
    default: Sequence[int],
    supported: tuple[str, ...] = (FULL, SLIDING),
) -> tuple[int, ...]:
    """The layers with full attention.

    Args:
        layer_types: The field of config.json: a kind per layer; None for a file without it.
        num_layers: Layers of the model.
        window: Sliding window in tokens, for the message.
        default: Layers with full attention of a file without the field.
        supported: Kinds that the family has with these other fields.

    Raises:
        InputError: The field has another number of layers, or a kind that is not supported.
    """
    if layer_types is None:
        return tuple(default)
    if len(layer_types) != num_layers or not set(layer_types) <= set(supported):
        raise InputError(
            f"Invalid layer_types in config.json: expected {' or '.join(supported)} for each of {num_layers} layers "
            f"(sliding_window is {window}), got {truncate_repr(layer_types, 200)}. Take the config.json that belongs to the "
            "weights, or another checkpoint."
        )
    return tuple(layer for layer, kind in enumerate(layer_types) if kind == FULL)


def write_layer_types(config: ModelConfig) -> list[str]:
    """The field of config.json: a kind per layer."""
    full = range(config.num_layers) if config.sliding_window is None else config.full_attention_layers
    return [FULL if layer in full else SLIDING for layer in range(config.num_layers)]
