"""What the three feedback verbs do alike: say what it will take, write rows, and tell what came of it."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from textwrap import shorten
from typing import Any

from zephyr_jax.errors import InputError, join_items
from zephyr_jax.feedback.plain_text import plain
from zephyr_jax.feedback.seeds import Seeds
from zephyr_jax.prepare.raw import REJECTED_FILE
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path, write_atomic

_QUOTED = 160  # letters of a reason


def open_folder(output: str) -> Path:
    """The output folder, made. Raises InputError."""
    folder = open_path(output)
    check_folder_creatable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(words: str) -> None:
    """Tell what is ahead, before it begins."""
    print(words, file=sys.stderr, flush=True)


def repeated(found: Seeds) -> str:
    """How many rows said nothing new, in words; nothing where there were none."""
    return f"; rows that repeat a prompt: {found.repeated:,}" if found.repeated else ""


def write_rows(folder: Path, rows: list[dict[str, Any]], aside: list[dict[str, Any]]) -> str:
    """Write what can be used and what cannot, and say how much that is. Raises InputError where nothing can be."""
    _write(folder / REJECTED_FILE, aside)
    told = reasons([row["reason"] for row in aside])
    if not rows:
        raise InputError(
            f"None of the rows can be used ({told}). {folder}/{REJECTED_FILE} says why for each; replies are kept."
        )
    _write(folder / "train.jsonl", rows)
    more = f"; set aside in {REJECTED_FILE}: {told}" if aside else ""
    return f"{len(rows):,} rows in {folder}/train.jsonl{more}"


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if content:
        write_atomic(path, content)
    else:
        path.unlink(missing_ok=True)


def reasons(said: list[str]) -> str:
    """How often each; those that differ in numbers only are one, and the first of them is quoted."""
    kinds = [re.sub(r"\d[\d,.]*", "", reason) for reason in said]
    first = dict(zip(reversed(kinds), reversed(said), strict=True))
    counted = Counter(kinds).most_common()
    return join_items(
        (f"{count:,} x {shorten(plain(first[kind]), _QUOTED, placeholder=' ...')}" for kind, count in counted), 4
    )
