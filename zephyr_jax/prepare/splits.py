"""Splits as Parquet files, one a split, in the schemas of UltraChat 200k and UltraFeedback binarized."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zephyr_jax.prepare.dialogue import Messages
from zephyr_jax.prepare.sorted_rows import split_draws
from zephyr_jax.storage.files import Path, atomic_file

CHAT_SPLITS = ("train_sft", "test_sft", "train_gen", "test_gen")
PAIR_SPLITS = ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen")

_MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))
CHAT_SCHEMA = pa.schema([("prompt", pa.string()), ("prompt_id", pa.string()), ("messages", _MESSAGES)])
PAIR_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("prompt_id", pa.string()),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("messages", _MESSAGES),
        ("score_chosen", pa.float64()),
        ("score_rejected", pa.float64()),
    ]
)
_GROUP_ROWS, _GROUP_BYTES = 1000, 32 * 2**20  # limits of a Parquet row group


class SplitWriter:
    """Parquet files of a folder, written row by row; all appear, complete, when the `with` block ends without an error."""

    def __init__(self, folder: Path, names: Sequence[str], schema: pa.Schema):
        self.counts = dict.fromkeys(names, 0)
        self._folder, self._schema, self._stack = folder, schema, ExitStack()
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self._sizes = dict.fromkeys(names, 0)
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> "SplitWriter":
        for name in self.counts:
            file = self._stack.enter_context(atomic_file(self._folder / f"{name}.parquet"))
            self._writers[name] = self._stack.enter_context(pq.ParquetWriter(file, self._schema))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            for name in self.counts if error is None else ():
                self._flush(name)
        except BaseException as failure:
            self._stack.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._stack.__exit__(kind, error, at)

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Add a row to a split."""
        self.counts[name] += 1
        self._rows[name].append(row)
        self._sizes[name] += sum(
            len(message["content"]) for column in row.values() if isinstance(column, list) for message in column
        )
        if len(self._rows[name]) == _GROUP_ROWS or self._sizes[name] > _GROUP_BYTES:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if self._rows[name]:
            self._writers[name].write_table(pa.Table.from_pylist(self._rows[name], self._schema))
        self._rows[name], self._sizes[name] = [], 0


def chat_split(prompt: str, test_fraction: float, gen_fraction: float) -> str:
    """Name of the one split that a dialogue belongs to."""
    test, gen = split_draws(prompt)
    return f"{'test' if test < test_fraction else 'train'}_{'gen' if gen < gen_fraction else 'sft'}"


def pair_splits(prompt: str, test_fraction: float) -> list[str]:
    """The splits that a pair belongs to: three of training, or `test_prefs` and, for half of the pairs, the other two."""
    test, half = split_draws(prompt)
    if test >= test_fraction:
        return ["train_prefs", "train_sft", "train_gen"]
    return ["test_prefs", "test_sft", "test_gen"] if half < 0.5 else ["test_prefs"]


def messages_of_split(name: str, messages: Messages) -> Messages:
    """Messages for a split: `gen` splits leave the last answer to a model, so it is removed."""
    return messages[:-1] if name.endswith("_gen") else messages
