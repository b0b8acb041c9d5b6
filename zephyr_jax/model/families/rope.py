"""Rotary fields of a config.json, which the versions of transformers write in different places.

transformers 4 writes `rope_theta` and `rope_scaling`, whose kind is under `type` or `rope_type`; transformers 5 writes one
object `rope_parameters`. Manually edited files have both.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.families.base import HfConfig, is_number, unsupported
from zephyr_jax.model.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

_DEFAULT_THETA = 10_000.0
_KIND = ("rope_type", "type")
_ORIGINAL = "original_max_position_embeddings"
_SHARE = "partial_rotary_factor"
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)
_MSCALES = ("mscale", "mscale_all_dim")
_FLAGS = ("truncate", "finetuned")
_FIELDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": _LLAMA3,
    "yarn": ("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", *_MSCALES, "attn_factor", *_FLAGS),
}
"""Kind of scaling -> its fields."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {"factor": (1,), _SHARE: (1,)}
"""Further fields of a rope object, with the values that change nothing."""
_TRAINED_LENGTH = "max_sequence_length"


class RopeFields(NamedTuple):
    """Rotary embeddings as a config.json describes them."""

    theta: float
    scaling: RopeScaling | None
    share: float = 1.0
    """Share of a head's dimensions that is rotated."""


def read_rope(hf_config: HfConfig, *, default_theta: float = _DEFAULT_THETA, is_partial: bool = False) -> RopeFields:
    """The rotary embeddings, as transformers 5 reads them.

    Args:
        hf_config: A parsed config.json.
        default_theta: The family's base where the file gives none.
        is_partial: Whether the family rotates a part of a head where the file asks for it.

    Raises:
        InputError: The fields ask for a scaling or a part of the head that is not implemented, or give two bases.
    """
    objects = {name: _without_null(hf_config.get(name)) for name in ("rope_scaling", "rope_parameters")}
    bases = {"rope_theta": hf_config.get("rope_theta")}
    bases |= {f"{name}.rope_theta": fields.get("rope_theta") for name, fields in objects.items()}
    for name, base in bases.items():
        if base is not None and not is_number(base):
            raise _invalid(name, base)
    used = "rope_scaling" if objects["rope_scaling"] else "rope_parameters"
    theta = float(objects[used].get("rope_theta") or hf_config.get("rope_theta") or default_theta)
    share = {_SHARE: hf_config.get(_SHARE)} | {f"{name}.{_SHARE}": one.get(_SHARE) for name, one in objects.items()}
    for name, value in share.items():
        if value is not None and (not is_number(value) or value > 1 or (value != 1 and not is_partial)):
            raise unsupported(name.removesuffix(f".{_SHARE}"), objects.get(name.partition(".")[0], value))
    scalings = {name: read_scaling(name, fields, hf_config) for name, fields in objects.items() if fields}
    _check_equal("bases of the rotary embeddings", bases, theta)
    _check_equal("scalings of the rotary embeddings", scalings, scalings.get(used))
    _check_equal("shares of a head to rotate", share, next((one for one in share.values() if one is not None), 1.0))
    shares = [float(one) for one in share.values() if one is not None]
    return RopeFields(theta, scalings.get(used), shares[0] if shares else 1.0)


def read_scaling(name: str, fields: Mapping[str, Any], hf_config: HfConfig) -> RopeScaling | None:
    """The scaling that one rope object describes; None for the kind `default`.

    Args:
        name: Of the object, for messages.
        fields: The object.
        hf_config: The whole file.

    Raises:
        InputError: The kind is not implemented, or a field has an invalid value.
    """
    given = [fields[key] for key in _KIND if key in fields]
    kinds = {kind for kind in given if isinstance(kind, str)} or {"default"}
    kind = next(iter(kinds))
    known = _FIELDS.get(kind, ())
    further = {key: value for key, value in fields.items() if key not in (*_KIND, "rope_theta", _SHARE, *known)}
    if (
        len(kinds) > 1
        or not all(isinstance(one, str) for one in given)
        or kind not in _FIELDS
        or any(value not in _NEUTRAL.get(key, ()) for key, value in further.items())
    ):
        raise unsupported(name, dict(fields))
    numbers = {key: value for key, value in fields.items() if key in known and value is not None and key not in _FLAGS}
    if kind in ("llama3", "yarn"):
        # transformers 5: the top-level field has priority, and the longest sequence is the default.
        numbers[_ORIGINAL] = (
            hf_config.get(_ORIGINAL) or numbers.get(_ORIGINAL) or hf_config.get("max_position_embeddings")
        )
    for key in ("factor", *(_LLAMA3 if kind == "llama3" else ())) if kind != "default" else ():
        numbers.setdefault(key, None)
    for key, value in numbers.items():
        if not is_number(value) and not (key in _MSCALES and value == 0):
            raise _invalid(f"{name}.{key}", value)
    for key in _FLAGS:
        _check_flag(f"{name}.{key}", fields.get(key))
    return _scaling(name, kind, numbers, fields.get("truncate"))


def _scaling(name: str, kind: str, numbers: dict[str, float], truncate: Any) -> RopeScaling | None:
    factor = float(numbers.get("factor", 1))
    if kind == "linear":
        return LinearScaling(factor=factor)
    if kind == "llama3":
        low, high = float(numbers["low_freq_factor"]), float(numbers["high_freq_factor"])
        if low >= high:
            raise _invalid(f"{name}.high_freq_factor", high, f"a number above low_freq_factor ({low:g})")
        original = int(numbers[_ORIGINAL])
        return Llama3Scaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_positions=original)
    if kind == "yarn":
        return YarnScaling(
            factor=factor,
            original_max_positions=int(numbers[_ORIGINAL]),
            magnitude=_yarn_magnitude(name, factor, numbers),
            beta_fast=float(numbers.get("beta_fast", 32)),
            beta_slow=float(numbers.get("beta_slow", 1)),
            truncate=truncate is not False,
        )
    return None


def _yarn_magnitude(name: str, factor: float, numbers: dict[str, float]) -> float:
    """`attention_factor`, or what transformers computes in its place.

    Raises:
        InputError: The object has an `attn_factor` other than 1: YaRN's own code multiplies by it, transformers ignores it.
    """

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1 if factor > 1 else 1.0

    further = numbers.get("attn_factor", 1)
    if further != 1:
        raise InputError(
            f"Unsupported {name}.attn_factor in config.json: expected 1, got {further:.12g}. transformers ignores this factor of "
            f"YaRN's magnitude, other readers multiply by it. Remove it, and set {name}.attention_factor to the magnitude that "
            f"the model was trained with: {further * magnitude(1):.12g} with the factor, {magnitude(1):.12g} without it."
        )
    if "attention_factor" in numbers:
        return float(numbers["attention_factor"])
    if all(numbers.get(name) for name in _MSCALES):  # transformers takes 0 for absent
        return magnitude(numbers["mscale"]) / magnitude(numbers["mscale_all_dim"])
    return magnitude(1)


def with_shared_truncate(rope: RopeFields, truncate: Any) -> RopeFields:
    """A yarn's `truncate` where `rope_parameters` holds one object per kind of layer, as transformers 5 reads it.

    Args:
        rope: Rotary embeddings of one object.
        truncate: The field beside the objects. transformers 5 reads this one, other readers the one inside.

    Raises:
        InputError: It is false inside the object only.
    """
    _check_flag("rope_parameters.truncate", truncate)
    if not isinstance(rope.scaling, YarnScaling):
        return rope
    if truncate is not False and not rope.scaling.truncate:
        raise InputError(
            "config.json sets truncate to false for the yarn of layers with full attention. transformers 5 ignores it there and "
            "reads `rope_parameters.truncate`, other readers use it. Set `rope_parameters.truncate` to false, too, or remove the "
            "field, as the model was trained."
        )
    return rope._replace(scaling=replace(rope.scaling, truncate=truncate is not False))


def shared_truncate(scaling: RopeScaling | None) -> HfConfig:
    """The field that `with_shared_truncate` reads; empty for its default."""
    return {"truncate": False} if isinstance(scaling, YarnScaling) and not scaling.truncate else {}


def scaled_positions(max_positions: int, scaling: RopeScaling | None, hf_config: HfConfig) -> int:
    """Longest sequence, in tokens, of a model whose file may give the length before its embeddings were scaled.

    Args:
        max_positions: `max_position_embeddings`.
        scaling: Of the rotary embeddings. `linear` and `yarn` extend the context by their factor.
        hf_config: The file; `max_sequence_length` in it (Vicuna, YaRN) is the product.
    """
    match scaling:
        case LinearScaling():
            extended = scaling.factor * max_positions
        case YarnScaling():
            extended = scaling.factor * scaling.original_max_positions
        case _:
            return max_positions
    trained: Any = hf_config.get(_TRAINED_LENGTH)
    return max(max_positions, trained if is_number(trained) else int(extended))


def write_rope(theta: float, scaling: RopeScaling | None = None, share: float = 1.0) -> HfConfig:
    """Rotary fields in the spellings of transformers 4 and 5."""
    fields = scaling_fields(scaling)
    partial = {} if share == 1 else {_SHARE: share}
    return {
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, **fields, **partial},
        "rope_scaling": fields or None,
        **partial,
    }


def scaling_fields(scaling: RopeScaling | None) -> dict[str, Any]:
    """The rope object of a scaling, without a base; empty for none."""
    match scaling:
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case Llama3Scaling():
            values = (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_positions)
            return {"rope_type": "llama3", **dict(zip(_LLAMA3, values, strict=True))}
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                _ORIGINAL: scaling.original_max_positions,
                "attention_factor": scaling.magnitude,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                **({} if scaling.truncate else {"truncate": False}),
            }
    return {}


def _without_null(value: dict[str, Any] | None) -> dict[str, Any]:
    return {name: field for name, field in (value or {}).items() if field is not None}


def _check_equal(values_name: str, values: Mapping[str, Any], used: Any) -> None:
    """Raise InputError where values that are given differ from the one that transformers 5 uses."""
    given = {name: value for name, value in values.items() if value is not None}
    if any(value != used for value in given.values()):
        readings = join_items(f"{name} {_format(value)}" for name, value in given.items())
        raise InputError(
            f"config.json gives several {values_name}: {readings}. transformers 5 uses {_format(used)}, other readers another. "
            "Keep the one that the model was trained with and remove the others."
        )


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool | None):
        raise _invalid(name, value, "true or false")


def _format(value: Any) -> str:
    return f"{value:,.12g}" if isinstance(value, int | float) else str(value)


def _invalid(name: str, value: Any, expected: str = "a positive number") -> InputError:
    return InputError(
        f"Invalid {name} in config.json: expected {expected}, got {truncate_repr(value)}. Take the config.json that belongs to "
        "the weights."
    )
