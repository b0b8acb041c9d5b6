"""Checks of a whole config: required settings, types and bounds of each field, rules between fields.

The command line calls `validate` once, after card and arguments are merged. A Python program that builds a config calls it
before the pipeline; pipelines do not check again.
"""

from dataclasses import fields, is_dataclass
from functools import cache
from operator import attrgetter
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from zephyr_jax.config.constraints import RESUMABLE
from zephyr_jax.errors import InputError, truncate_repr


def validate(config: Any, prefix: str = "") -> None:
    """Check a config dataclass and its sections.

    A config class may have `REQUIRED: ClassVar[dict[str, str]]`, the full names of settings that must be given with what they
    hold, and `check()`, which raises InputError for fields that contradict each other.

    Args:
        config: The config, or one of its sections.
        prefix: Full name of the section with a dot at the end, for messages.

    Raises:
        InputError: For the first setting that is missing, of another type, out of bounds or contradicted by another one.
    """
    for name, meaning in getattr(config, "REQUIRED", {}).items():
        require(attrgetter(name)(config), name, meaning)
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            validate(value, f"{prefix}{item.name}.")
        else:
            convert(type(config), item.name, value, prefix)
    if hasattr(config, "check"):
        config.check()


def require(value: str | None, name: str, meaning: str) -> None:
    """Raise InputError where the setting `name` is empty; `meaning` is what it should hold."""
    if not value:
        raise InputError(f"`{name}` is not set: expected {meaning}. Pass `--{name} ...` or set it in the card.")


def convert(kind: type, name: str, value: Any, prefix: str = "", where: str = "") -> Any:
    """`value` as the type of the field `name` of the dataclass `kind`; `where` begins messages.

    Raises:
        InputError: For a value of another type or out of bounds; a bool is not a number, and text must not hold NUL.
    """
    hint, adapter = _field_types(kind)[name]
    if isinstance(value, bool) and hint is not bool:
        raise InputError(f"{where}`{prefix}{name}`: expected {_type_name(hint)}, got {value!r}.")
    if isinstance(value, str) and "\0" in value:
        raise InputError(f"{where}`{prefix}{name}`: expected text without NUL characters, got {truncate_repr(value)}.")
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        expected = "; ".join(dict.fromkeys(_expected(detail["msg"]) for detail in error.errors()))
        raise InputError(f"{where}`{prefix}{name}`: expected {expected}, got {truncate_repr(value)}.") from error


def resumable_settings(kind: type, prefix: str = "") -> tuple[str, ...]:
    """Full names of the settings and sections that a resumed run may change."""
    names: list[str] = []
    hints = get_type_hints(kind)
    for item in fields(kind):
        if item.metadata.items() >= RESUMABLE.items():
            names.append(prefix + item.name)
        elif is_dataclass(hints[item.name]):
            names += resumable_settings(hints[item.name], f"{prefix}{item.name}.")
    return tuple(names)


@cache
def _field_types(kind: type) -> dict[str, tuple[Any, TypeAdapter[Any]]]:
    hints = get_type_hints(kind, include_extras=True)
    return {item.name: (hints[item.name], TypeAdapter(hints[item.name])) for item in fields(kind)}


def _type_name(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    inner = [argument for argument in get_args(hint) if argument is not NoneType]
    wraps = get_origin(hint) is Annotated or NoneType in get_args(hint)
    return _type_name(inner[0]) if inner and wraps else getattr(hint, "__name__", str(hint))


def _expected(message: str) -> str:
    """`a number greater than 0` from pydantic's `Input should be greater than 0`."""
    text = message.partition(", unable to parse")[0].removeprefix("Input should be ")
    return f"a number {text}" if text.startswith(("greater", "less")) else text
