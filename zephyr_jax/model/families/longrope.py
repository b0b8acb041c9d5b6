"""LongRoPE in a config.json of Phi-3 and Phi-4-mini: read up to the original length, and written back whole.

transformers divides the frequencies by `short_factor` for a batch of at most `original_max_position_embeddings` positions and by
`long_factor` for a longer one, whose first tokens then have other values, too. Only the first is computed.
"""

import math
from collections.abc import Mapping
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.model.families.base import HfConfig, is_number, unsupported
from zephyr_jax.model.rope import LongRopeScaling

_KINDS = ("longrope", "su", "yarn")
"""What transformers computes as longrope for a phi3."""
_ORIGINAL, _SHORT, _LONG = "original_max_position_embeddings", "short_factor", "long_factor"
_DEFAULT_POSITIONS = 4096
_SHARED = ("rope_theta", "partial_rotary_factor")
"""Fields of a rope object that other kinds have, too."""
_OWN = (_SHORT, _LONG, _ORIGINAL, "factor", "attention_factor", "rope_type", "type")


def read_longrope(hf_config: HfConfig) -> tuple[LongRopeScaling | None, HfConfig]:
    """The scaling, None for a file of another kind, and the file without its fields.

    Raises:
        InputError: A field is missing, of another type, or contradicts another one.
    """
    given = [name for name in ("rope_scaling", "rope_parameters") if hf_config.get(name)]
    names = [name for name in given if _is_longrope(hf_config[name])]
    if not names:
        return None, hf_config
    scalings = [_read(name, hf_config[name], hf_config) for name in names]
    if names != given or scalings[0] != scalings[-1]:
        raise InputError(
            "config.json gives two rotary scalings that differ, longrope in one of rope_scaling and rope_parameters. "
            "transformers 5 uses the first. Keep the one that the model was trained with and remove the other."
        )
    shared = {name: {key: hf_config[name][key] for key in _SHARED if key in hf_config[name]} for name in names}
    return scalings[0], {**hf_config, **shared}


def write_longrope(scaling: LongRopeScaling) -> tuple[HfConfig, HfConfig | None]:
    """The object for `rope_parameters`, without a base, and that for `rope_scaling`.

    transformers 4 takes three fields in `rope_scaling` and computes the magnitude; transformers 5 reads `rope_scaling` before
    `rope_parameters`. It is None where the magnitude is another one, so that both read the same.
    """
    factors = {_SHORT: list(scaling.short_factors), _LONG: list(scaling.long_factors)}
    parameters = {
        "rope_type": "longrope",
        **factors,
        _ORIGINAL: scaling.original_max_positions,
        "attention_factor": scaling.magnitude,
    }
    default = _magnitude(
        scaling.extended_max_positions / scaling.original_max_positions, scaling.original_max_positions
    )
    return parameters, {"type": "longrope", **factors} if scaling.magnitude == default else None


def _is_longrope(fields: Any) -> bool:
    return isinstance(fields, Mapping) and any(fields.get(name) in _KINDS for name in ("rope_type", "type"))


def _read(name: str, fields: Mapping[str, Any], hf_config: HfConfig) -> LongRopeScaling:
    if any(value is not None for key, value in fields.items() if key not in (*_OWN, *_SHARED)):
        raise unsupported(name, dict(fields))
    # transformers 5 ignores the field of the object, other readers the one on top.
    original = hf_config.get(_ORIGINAL) or _DEFAULT_POSITIONS
    inner = fields.get(_ORIGINAL)
    if not _is_length(original) or inner not in (None, original):
        raise InputError(
            f"Invalid {_ORIGINAL} in config.json: expected one positive number of tokens, got {truncate_repr(original)} for the "
            f"whole file (by default {_DEFAULT_POSITIONS:,}) and {truncate_repr(inner)} in {name}. Set both to the length that "
            "the model was first trained with."
        )
    for key in ("factor", "attention_factor"):
        if fields.get(key) is not None and not is_number(fields[key]):
            raise _invalid(f"{name}.{key}", fields[key], "a positive number")
    extended = hf_config.get("max_position_embeddings") or _DEFAULT_POSITIONS
    growth = float(fields.get("factor") or extended / original)
    return LongRopeScaling(
        short_factors=_factors(name, _SHORT, fields),
        long_factors=_factors(name, _LONG, fields),
        original_max_positions=original,
        extended_max_positions=extended,
        magnitude=float(fields.get("attention_factor") or _magnitude(growth, original)),
    )


def _factors(name: str, key: str, fields: Mapping[str, Any]) -> tuple[float, ...]:
    values = fields.get(key)
    if not isinstance(values, list) or not values or not all(map(is_number, values)):
        raise _invalid(f"{name}.{key}", values, "a list of positive numbers")
    return tuple(map(float, values))


def _magnitude(growth: float, original: int) -> float:
    """`attention_factor` of a file without it."""
    return math.sqrt(1 + math.log(growth) / math.log(original)) if growth > 1 else 1.0


def _is_length(value: Any) -> bool:
    return type(value) is int and value > 1


def _invalid(name: str, value: Any, expected: str) -> InputError:
    return InputError(
        f"Invalid {name} in config.json: expected {expected}, got {truncate_repr(value)}. Take the config.json that belongs to "
        "the weights."
    )
