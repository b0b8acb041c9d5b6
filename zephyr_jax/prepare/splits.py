"""Splits as Parquet files, one a split, in the schemas of UltraChat 200k and UltraFeedback binarized."""

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zephyr_jax.prepare.dialogue import Messages
from zephyr_jax.prepare.order import shares
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
_ROWS, _BYTES = 1000, 32 * 2**20  # a row group has at most so many rows, and is ended when its text is so large


class SplitFiles:
    """Parquet files of a folder that are written row by row and appear, all whole, when the block ends well."""

    def __init__(self, folder: Path, names: Sequence[str], schema: pa.Schema):
        self.counts = dict.fromkeys(names, 0)
        self._folder, self._schema, self._stack = folder, schema, ExitStack()
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        self._sizes = dict.fromkeys(names, 0)
        self._writers: dict[str, pq.ParquetWriter] = {}

    def __enter__(self) -> "SplitFiles":
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
        """Another row of a split."""
        self.counts[name] += 1
        self._rows[name].append(row)
        self._sizes[name] += sum(
            len(each["content"]) for column in row.values() if isinstance(column, list) for each in column
        )
        if len(self._rows[name]) == _ROWS or self._sizes[name] > _BYTES:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if self._rows[name]:
            self._writers[name].write_table(pa.Table.from_pylist(self._rows[name], self._schema))
        self._rows[name], self._sizes[name] = [], 0


def chat_split(prompt: str, test_fraction: float, gen_fraction: float) -> str:
    """The one split that a dialogue belongs to."""
    test, gen = shares(prompt)
    return f"{'test' if test < test_fraction else 'train'}_{'gen' if gen < gen_fraction else 'sft'}"


def pair_splits(prompt: str, test_fraction: float) -> list[str]:
    """The splits that a pair belongs to: three of training, or `test_prefs` and, for half of the pairs, the other two."""
    test, half = shares(prompt)
    if test >= test_fraction:
        return ["train_prefs", "train_sft", "train_gen"]
    return ["test_prefs", "test_sft", "test_gen"] if half < 0.5 else ["test_prefs"]


def for_split(name: str, messages: Messages) -> Messages:
    """Messages as a split holds them: in `gen` splits a model is to give the last answer, so it is not there."""
    return messages[:-1] if name.endswith("_gen") else messages
