"""JSON as files from elsewhere must hold it: UTF-8, not too deep, and nothing said twice."""

import json
from typing import Any

from zephyr_jax.errors import shown


def parsed(text: str | bytes) -> Any:
    """JSON that says each thing once. Raises ValueError, with a few words, for all else."""
    try:
        return json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=_once)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 from byte {error.start} on") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found and found[name] != value:
            raise ValueError(f"it says {shown(name)} twice, {shown(found[name])} and {shown(value)}")
        found[name] = value
    return found
