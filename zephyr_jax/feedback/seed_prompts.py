"""Seed prompts: the distinct first user messages of a data set."""

import hashlib
from dataclasses import dataclass
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.data.row_reader import Columns
from zephyr_jax.data.rows import COLUMNS, to_prompt
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError, join_items, truncate_repr

_PROMPT_COLUMNS = {name for name in COLUMNS if name not in ("id", "prompt_id")}


@dataclass(frozen=True)
class SeedPrompt:
    """A prompt to start from."""

    prompt: str
    prompt_id: str
    """From the row, else the SHA-256 of the prompt, as in UltraChat and UltraFeedback."""
    source: str


@dataclass(frozen=True)
class SeedPrompts:
    """Distinct prompts, in their order, and the number of rows that repeat one."""

    prompts: list[SeedPrompt]
    num_repeated: int

    def note(self) -> str:
        """A clause about repeated prompts for a summary; empty without any."""
        return f"; repeated prompts: {self.num_repeated:,}" if self.num_repeated else ""


def read_seed_prompts(path: str, split: str, limit: int | None) -> SeedPrompts:
    """Read prompts from rows in any format that has one. Raises InputError for other rows, and for a prompt_id of two prompts."""
    columns, num_rows = Columns(COLUMNS | {"source"}), 0
    by_prompt: dict[str, SeedPrompt] = {}
    by_id: dict[str, SeedPrompt] = {}
    for row in read_rows(path, split, limit=limit, columns=columns):
        num_rows += 1
        if not _PROMPT_COLUMNS & columns.fields.keys():
            raise InputError(
                f"{path}: expected a column `prompt`, `instruction`, `messages` or `conversations`, got "
                f"{join_items(sorted(columns.fields))}. Rename the column with the prompts."
            )
        seed = _seed_prompt(row.content, row.location)
        if seed.prompt in by_prompt:
            continue
        by_prompt[seed.prompt] = seed
        other = by_id.setdefault(seed.prompt_id, seed)
        if other is not seed:
            raise InputError(
                f"{path}: expected one prompt per prompt_id, got {truncate_repr(other.prompt)} and {truncate_repr(seed.prompt)} "
                f"for {truncate_repr(seed.prompt_id)}. Make the ids unique, or remove the column."
            )
    return SeedPrompts(list(by_prompt.values()), num_rows - len(by_prompt))


def _seed_prompt(row: dict[str, Any], location: str) -> SeedPrompt:
    try:
        prompt = to_prompt(row).first_user_text
    except SkippedRow as error:
        raise InputError(f"{location} has no prompt: {error}. Fix or remove the row.") from error
    prompt_id, source = row.get("prompt_id"), row.get("source")
    if not isinstance(prompt_id, str) or not prompt_id:
        prompt_id = hashlib.sha256(prompt.encode()).hexdigest()
    return SeedPrompt(prompt, prompt_id, source if isinstance(source, str) else "")
