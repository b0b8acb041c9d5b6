"""Missing paths: whether one may be a hub id, and local paths with a similar name."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from zephyr_jax.errors import InputError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".arrow", ".safetensors", ".yaml", ".gz")


def is_hub_id(path: str) -> bool:
    """Whether a text has the form of a hub id: `name` or `owner/name`, without the ending of a data file."""
    return bool(_HUB_ID.fullmatch(path)) and not path.lower().endswith(_ENDINGS)


def check_hub_id(path: str, kind: str) -> None:
    """Raise InputError for a missing path that cannot be a hub id either, before the hub is asked.

    Args:
        path: A path that does not exist locally.
        kind: The expected kind of thing, for the message.
    """
    if not is_hub_id(path):
        raise InputError(
            f"{path!r} is not a local {kind}.{suggest_path(path)} Check the spelling and the working directory."
        )


def suggest_path(path: str | os.PathLike[str]) -> str:
    """Return ` Did you mean ...?` if the folder of a missing path holds a similar name, else an empty string."""
    missing = Path(path)
    try:
        names = sorted(path.name for path in missing.parent.iterdir())
    except (OSError, ValueError):
        return ""
    similar = get_close_matches(missing.name[:200], names, n=1)
    return f" Did you mean `{missing.parent / similar[0]}`?" if similar else ""
