"""Paths that are not there: whether the hub may have them, and what here is spelt much like them."""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from zephyr_jax.errors import InputError

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".txt", ".arrow", ".safetensors", ".yaml", ".gz")


def check_hub_id(path: str, kind: str) -> None:
    """Raise InputError for what is not here and is no name of the hub's either, so that nobody waits for an answer from there.

    `kind` says what it should have been.
    """
    if not _HUB_ID.fullmatch(path) or path.lower().endswith(_ENDINGS):
        raise InputError(
            f"{path!r} is no {kind} here.{suggest_path(path)} Check the spelling, and where you start this."
        )


def suggest_path(path: str | os.PathLike[str]) -> str:
    """Return ` Did you mean ...?` where something beside a missing local path is spelt much like it; else nothing."""
    missing = Path(path)
    try:
        names = sorted(each.name for each in missing.parent.iterdir())
    except (OSError, ValueError):
        return ""
    near = get_close_matches(missing.name[:200], names, n=1)
    return f" Did you mean `{missing.parent / near[0]}`?" if near else ""
