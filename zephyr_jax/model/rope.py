"""Rotary settings of a config.json, which the versions of transformers write in different places.

transformers 4 writes `rope_theta` and `rope_scaling`, whose kind stands under `type` or `rope_type`; transformers 5 writes one
object `rope_parameters`. Hand-edited configs hold both.
"""

from typing import Any

from zephyr_jax.errors import InputError, join_items, truncate_repr

_DEFAULT_THETA = 10_000.0
_KIND = ("rope_type", "type")
_NEUTRAL: dict[str, tuple[Any, ...]] = {"factor": (1,), "partial_rotary_factor": (1,)}
"""Further fields of a rope object that change nothing, by the values that change nothing."""


def rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary frequencies, as transformers 5 reads it.

    Raises InputError where the fields ask for scaled or partial rotary embeddings, and where they give two bases.
    """
    objects = {name: _without_null(config.get(name)) for name in ("rope_scaling", "rope_parameters")}
    for name, fields in objects.items():
        _check_unscaled(name, fields)
    if config.get("partial_rotary_factor") not in (None, 1):
        raise InputError(_refusal("partial_rotary_factor", config["partial_rotary_factor"]))
    given = {"rope_theta": config.get("rope_theta")}
    given |= {f"{name}.rope_theta": fields.get("rope_theta") for name, fields in objects.items()}
    used = objects["rope_scaling"] or objects["rope_parameters"]
    theta = float(used.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA)
    bases = {name: float(value) for name, value in given.items() if value is not None}
    if any(base != theta for base in bases.values()):
        readings = join_items(f"{name} {base:,.0f}" for name, base in bases.items())
        raise InputError(
            f"config.json gives several bases of the rotary embeddings: {readings}. transformers 5 uses {theta:,.0f} here and "
            "other readers another. Keep the one that the model was trained with, and remove the others."
        )
    return theta


def _without_null(value: Any) -> dict[str, Any]:
    return {name: field for name, field in (value or {}).items() if field is not None}


def _check_unscaled(name: str, fields: dict[str, Any]) -> None:
    kinds = [fields[key] for key in _KIND if key in fields]
    other = {key: value for key, value in fields.items() if key not in (*_KIND, "rope_theta")}
    changing = [key for key, value in other.items() if value not in _NEUTRAL.get(key, ())]
    if any(kind != "default" for kind in kinds) or changing:
        raise InputError(_refusal(name, fields))


def _refusal(name: str, value: Any) -> str:
    return (
        f"config.json sets `{name}` to {truncate_repr(value, 200)}, which this model does not compute. Its numbers would be "
        "wrong, so it is refused: choose a checkpoint without it."
    )
