"""Rows tokenized per second, by one process and by one for each core.

    python -m benchmarks.tokenizing --data preferences.jsonl --tokenizer FOLDER --rows 8000

The rows of the file are repeated, each copy with a number in its first user message, until there are `--rows`. The folder's
tokenizer has the default chat template; caches are in a temporary folder. Starting the processes is a part of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets

from zephyr_jax.chat.tokenizer import load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE


def numbered(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with a number before its first user message, in every dialogue and in `prompt`."""
    row = json.loads(json.dumps(row))
    for name in ("messages", "chosen", "rejected"):
        asked = [message for message in row.get(name, []) if message["role"] == "user"]
        if asked:
            asked[0]["content"] = f"{number} {asked[0]['content']}"
    if isinstance(row.get("prompt"), str):
        row["prompt"] = f"{number} {row['prompt']}"
    return row


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of conversations or pairs")
    parser.add_argument("--tokenizer", required=True, help="folder of a tokenizer")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    kind = PREFERENCE if "chosen" in rows[0] else CONVERSATION
    tokenizer = load_chat_tokenizer(None, load_tokenizer(options.tokenizer))
    print(
        f"{os.cpu_count()} cores, {options.rows} rows\n\n| processes | seconds | rows / s | tokens / s |\n|---|---|---|---|"
    )
    for workers in options.workers:
        with TemporaryDirectory() as folder:
            datasets.config.HF_DATASETS_CACHE = folder
            path = Path(folder) / "rows.jsonl"
            copies = (numbered(row, number) for number, row in enumerate(islice(cycle(rows), options.rows)))
            path.write_text("".join(json.dumps(row) + "\n" for row in copies))
            start = time.perf_counter()
            data = DataOptions(num_workers=workers).fitted(kind.segments_per_example)
            examples = load_examples(kind, data, tokenizer, str(path), "train")
            seconds = time.perf_counter() - start
        tokens = int(examples.lengths.sum())
        print(f"| {workers} | {seconds:.1f} | {options.rows / seconds:.0f} | {tokens / seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
