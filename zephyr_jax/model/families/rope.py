"""Rotary fields of a config.json, which the versions of transformers write in different places.

transformers 4 writes `rope_theta` and `rope_scaling`, whose kind is under `type` or `rope_type`; transformers 5 writes one
object `rope_parameters`. Manually edited files have both.
"""

from typing import Any

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.model.families.base import HfConfig, check_supported, is_number, unsupported

_DEFAULT_THETA = 10_000.0
_KIND = ("rope_type", "type")
_NEUTRAL: dict[str, tuple[Any, ...]] = {"factor": (1,), "partial_rotary_factor": (1,)}
"""Further fields of a rope object, with the values that change nothing."""


def read_rope_theta(hf_config: HfConfig) -> float:
    """The base of the rotary frequencies, as transformers 5 reads it.

    Raises:
        InputError: The fields ask for scaled or partial rotary embeddings, or give two bases.
    """
    objects = {name: _without_null(hf_config.get(name)) for name in ("rope_scaling", "rope_parameters")}
    for name, fields in objects.items():
        _check_unscaled(name, fields)
    check_supported(hf_config, {"partial_rotary_factor": (1,)})
    bases = {"rope_theta": hf_config.get("rope_theta")}
    bases |= {f"{name}.rope_theta": fields.get("rope_theta") for name, fields in objects.items()}
    used = objects["rope_scaling"] or objects["rope_parameters"]
    theta = float(used.get("rope_theta") or hf_config.get("rope_theta") or _DEFAULT_THETA)
    given = {name: float(base) for name, base in bases.items() if base is not None}
    if any(base != theta for base in given.values()):
        readings = join_items(f"{name} {base:,.0f}" for name, base in given.items())
        raise InputError(
            f"config.json gives several bases of the rotary embeddings: {readings}. transformers 5 uses {theta:,.0f}, other "
            "readers another. Keep the one that the model was trained with and remove the others."
        )
    return theta


def write_rope(theta: float) -> HfConfig:
    """Unscaled rotary fields in the spellings of transformers 4 and 5."""
    return {
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_scaling": None,
    }


def _without_null(value: dict[str, Any] | None) -> dict[str, Any]:
    return {name: field for name, field in (value or {}).items() if field is not None}


def _check_unscaled(name: str, fields: dict[str, Any]) -> None:
    theta = fields.get("rope_theta", 1)
    if not is_number(theta):
        raise InputError(
            f"Invalid {name}.rope_theta in config.json: expected a positive number, got {truncate_repr(theta)}. Take the "
            "config.json that belongs to the weights."
        )
    kinds = [fields[key] for key in _KIND if key in fields]
    further = {key: value for key, value in fields.items() if key not in (*_KIND, "rope_theta")}
    changing = [key for key, value in further.items() if value not in _NEUTRAL.get(key, ())]
    if any(kind != "default" for kind in kinds) or changing:
        raise unsupported(name, fields)
