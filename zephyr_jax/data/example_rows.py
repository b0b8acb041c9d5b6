"""Batches of a source's rows -> rows of the table of tokenized examples; run by worker processes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from datasets import Features, List, Value

from zephyr_jax.chat.message import OverLengthRow, SkippedRow
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.data.segments import TURN_MARK
from zephyr_jax.data.shared_prompt import shared_prompt_length
from zephyr_jax.data.sources import decode

FEATURES = Features(
    {
        "id": Value("string"),
        "row": Value("int64"),
        "problem": Value("string"),
        "truncated": Value("bool"),
        "tokens": List(Value("int32")),
        "targets": List(Value("uint8")),
        "lengths": List(Value("int32")),
        "prompt": Value("int32"),
        "keys": List(Value("string")),
        "overlong": Value("string"),
        "size": Value("int64"),
        "characters": Value("int64"),
    }
)
"""Columns of the table."""

type Turns = Callable[[Mapping[str, Any]], list[tuple[str, Mapping[str, Any]]]]


def whole_row(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """A row as one example."""
    return [("", row)]


def examples_of_rows(
    tokenize: Callable[[Any], list[Segment]],
    split: Turns,
    may_truncate: bool,
    cells: dict[str, list[str | None]],
    indices: list[int],
) -> dict[str, list[Any]]:
    """The examples of a batch of rows, as columns of `FEATURES`."""
    records = []
    for at, index in enumerate(indices):
        row = decode({name: values[at] for name, values in cells.items()})
        names = [str(row[name]) for name in ("prompt_id", "id") if row.get(name) not in (None, "")]
        identity = names[0] if names else f"row {index}"
        for suffix, part in split(row):
            records.append(_example(tokenize, may_truncate, part, identity + suffix, index))
    return {name: [record[name] for record in records] for name in FEATURES}


def _example(
    tokenize: Callable[[Any], list[Segment]],
    may_truncate: bool,
    row: Mapping[str, Any],
    identity: str,
    index: int,
) -> dict[str, Any]:
    segments: list[Segment] = []
    problem, truncated, overlong, size = "", False, "", 0
    try:
        try:
            segments = tokenize(row)
        except OverLengthRow as error:
            overlong, size = str(error), error.tokens
            if not may_truncate:
                raise
            truncated, segments = True, error.truncate()
    except SkippedRow as error:
        problem = str(error)
    return example_record(
        identity,
        segments,
        row=index,
        problem=problem,
        truncated=truncated and not problem,
        overlong=overlong,
        size=size,
        characters=_characters(row),
    )


def example_record(identity: str, segments: list[Segment], size: int, **facts: Any) -> dict[str, Any]:
    """A row of `FEATURES`; `size` is the number of tokens before truncation, 0 where nothing was cut."""
    return {
        "id": identity,
        "tokens": np.concatenate([segment.tokens for segment in segments] or [np.zeros(0, np.int32)]),
        "targets": np.concatenate([segment.targets for segment in segments] or [np.zeros(0, bool)]).astype(np.uint8),
        "lengths": [len(segment) for segment in segments],
        "prompt": shared_prompt_length(segments),
        "keys": [segment.key for segment in segments],
        "size": size or sum(map(len, segments)),
        **facts,
    }


def _characters(value: Any) -> int:
    """Characters of all texts in a row, at any depth."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def short_id(identity: str) -> str:
    """The first 16 characters of an id, with the turn of its conversation where it has one."""
    start, mark, turn = identity.rpartition(TURN_MARK)
    return f"{start[:16]}{mark}{turn}" if mark else identity[:16]
