"""Seed prompts: rows with a prompt, each once."""

import hashlib
from dataclasses import dataclass
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.data.row_reader import Columns
from zephyr_jax.data.rows import COLUMNS, to_prompt
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError, truncate_repr

_COLUMNS = {name for name in COLUMNS if name not in ("id", "prompt_id")}


@dataclass(frozen=True)
class Seed:
    """A prompt to begin with."""

    prompt: str
    prompt_id: str
    """The row's own, or the SHA-256 of the prompt, as UltraChat and UltraFeedback have it."""
    source: str


@dataclass(frozen=True)
class Seeds:
    """Prompts, each once, and how many rows said nothing new."""

    seeds: list[Seed]
    repeated: int


def read_seeds(path: str, split: str, limit: int | None) -> Seeds:
    """Prompts from rows with `prompt`, `instruction` or `messages` (its first user message). Raises InputError."""
    columns, count = Columns(COLUMNS | {"source"}), 0
    found: dict[str, Seed] = {}
    for row in read_rows(path, split, limit=limit, columns=columns):
        count += 1
        if not _COLUMNS & columns.fields.keys():
            raise InputError(
                f"{path} has the columns {', '.join(sorted(columns.fields))}; prompts are read from `prompt`, `instruction`, "
                "`messages` or `conversations`. Rename one."
            )
        seed = _seed(row.content, row.place)
        found.setdefault(seed.prompt, seed)
    owners: dict[str, Seed] = {}
    for seed in found.values():
        other = owners.setdefault(seed.prompt_id, seed)
        if other is not seed:
            raise InputError(
                f"{path} has two prompts with the prompt_id {truncate_repr(seed.prompt_id)}: {truncate_repr(other.prompt)} and "
                f"{truncate_repr(seed.prompt)}. Give each its own, or leave the column out."
            )
    return Seeds(list(found.values()), count - len(found))


def _seed(row: dict[str, Any], where: str) -> Seed:
    try:
        prompt = to_prompt(row).first_user_text
    except SkippedRow as error:
        raise InputError(f"{where} has no prompt: {error}. Fix or remove the row.") from error
    identity, source = row.get("prompt_id"), row.get("source")
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    named = identity if isinstance(identity, str) and identity else digest
    return Seed(prompt, named, source if isinstance(source, str) else "")
