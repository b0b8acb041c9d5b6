"""Seed prompts: rows with a prompt, each once."""

import hashlib
from dataclasses import dataclass
from typing import Any

from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import InputError, shown

_COLUMNS = ("prompt", "instruction", "messages")


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
    rows = open_rows(path, split, limit=limit)
    if not set(_COLUMNS) & set(rows.column_names):
        raise InputError(
            f"{path} has the columns {', '.join(sorted(rows.column_names))}; prompts are read from `prompt`, `instruction` or "
            "`messages`. Rename one."
        )
    found: dict[str, Seed] = {}
    for place, row in enumerate(rows):
        seed = _seed(row, f"{path} row {place}")
        found.setdefault(seed.prompt, seed)
    owners: dict[str, Seed] = {}
    for seed in found.values():
        other = owners.setdefault(seed.prompt_id, seed)
        if other is not seed:
            raise InputError(
                f"{path} has two prompts with the prompt_id {shown(seed.prompt_id)}: {shown(other.prompt)} and "
                f"{shown(seed.prompt)}. Give each its own, or leave the column out."
            )
    return Seeds(list(found.values()), len(rows) - len(found))


def _seed(row: dict[str, Any], where: str) -> Seed:
    prompt = next((row[name] for name in _COLUMNS[:2] if row.get(name) is not None), None)
    messages = row.get("messages")
    if prompt is None and isinstance(messages, list):
        spoken = [each.get("content") for each in messages if isinstance(each, dict) and each.get("role") == "user"]
        prompt = spoken[0] if spoken else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError(f"{where} has the prompt {shown(prompt)}. It needs text: fix or remove the row.")
    identity, source = row.get("prompt_id"), row.get("source")
    digest = hashlib.sha256(prompt.encode()).hexdigest()
    named = identity if isinstance(identity, str) and identity else digest
    return Seed(prompt, named, source if isinstance(source, str) else "")
