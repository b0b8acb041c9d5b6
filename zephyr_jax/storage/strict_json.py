"""Strict JSON: UTF-8, bounded depth, and no name with two different values."""

import json
from typing import Any

from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.storage.files import Path, check_regular


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError with a short reason, also for conflicting names and for too deep nesting."""
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text, object_pairs_hook=reject_conflicting_names
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 from byte {error.start} on") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError naming the file."""
    check_regular(path)
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror or "no such file"
        raise InputError(f"Cannot read {path}: {reason}. A checkpoint folder needs this file.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}). Copy it again from its source.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a JSON object. Copy it again from its source.")
    return content


def reject_conflicting_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook`: a dict of the pairs. Raises ValueError when a name has two different values."""
    distinct = dict(pairs)
    if len(distinct) == len(pairs):
        return distinct
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique and unique[name] != value:
            raise ValueError(
                f"the name {truncate_repr(name)} has two values, {truncate_repr(unique[name])} and {truncate_repr(value)}"
            )
        unique[name] = value
    return unique
