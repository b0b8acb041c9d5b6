"""What the three feedback verbs do alike: say what it will take, write rows, and tell what came of it."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

from zephyr_jax.errors import InputError, listing
from zephyr_jax.feedback.estimate import Estimate
from zephyr_jax.feedback.plain import plain
from zephyr_jax.storage.files import Path, check_can_be_made, open_path, write_whole


def open_folder(output: str) -> Path:
    """The output folder, made. Raises InputError."""
    folder = open_path(output)
    check_can_be_made(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(estimate: Estimate) -> str:
    """Tell what is ahead; the same words are given back."""
    print(estimate.words(), file=sys.stderr, flush=True)
    return estimate.words()


def write_rows(folder: Path, rows: list[dict[str, Any]], aside: list[dict[str, Any]]) -> str:
    """Write what can be used and what cannot, and say how much that is. Raises InputError where nothing can be."""
    _write(folder / "aside.jsonl", aside)
    reasons = Counter(_short(row["reason"]) for row in aside)
    told = listing((f"{count:,} x {reason}" for reason, count in reasons.most_common()), 4)
    if not rows:
        raise InputError(
            f"None of the rows can be used ({told}). {folder}/aside.jsonl says why for each; replies are kept."
        )
    _write(folder / "train.jsonl", rows)
    more = f"; set aside in aside.jsonl: {told}" if aside else ""
    return f"{len(rows):,} rows in {folder}/train.jsonl{more}"


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if content:
        write_whole(path, content)
    else:
        path.unlink(missing_ok=True)


def _short(reason: str) -> str:
    return plain(" ".join(reason.split())[:100])
