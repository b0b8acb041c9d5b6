"""Tokenised examples: what the planner measures and the loader lays into rows.

An example is one segment (a conversation) or two (chosen and rejected of a pair). Tokens live in Arrow files that
`datasets` maps into memory and caches by content; lengths, ids and keys are small and live in memory.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import multiprocess
import numpy as np
from datasets import Dataset, Features, List, Value

from zephyr_jax.config import DataOptions
from zephyr_jax.data.chat import BadRow, OverLong
from zephyr_jax.data.sources import open_rows
from zephyr_jax.data.tokens import ChatTokenizer, Segment, conversation, preference
from zephyr_jax.errors import InputError, listing

_FEATURES = Features(
    {
        "id": Value("string"),
        "problem": Value("string"),
        "cut": Value("bool"),
        "tokens": List(Value("int32")),
        "targets": List(Value("uint8")),
        "lengths": List(Value("int32")),
        "keys": List(Value("string")),
    }
)
_VERSION = 3
type Tokenise = Callable[[dict[str, Any], bool], list[Segment]]
"""(row, whether to cut it when it is over-long) -> its segments."""


@dataclass(frozen=True)
class Examples:
    """Usable examples in the order of their source, and what was left out."""

    rows: Dataset
    lengths: np.ndarray
    """int64 [N]: tokens of all segments of each example."""
    segments_each: int
    """1 for conversations, 2 for pairs."""
    left_out: dict[str, list[str]]
    """Reason -> ids of the rows that could not be used."""
    cut: list[str]
    """Ids of the rows that were over-long and cut to fit."""
    places: np.ndarray
    """int64 [N]: the row of the source that each comes from."""
    scores: np.ndarray | None = None
    """float64 [N, 2]: `score_chosen` and `score_rejected`, where the rows of a source of pairs carry such numbers."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> list[Segment]:
        row = self.rows[int(index)]
        tokens = row.column("tokens")[0].values.to_numpy()
        targets = row.column("targets")[0].values.to_numpy().astype(np.bool_)
        ends = np.cumsum(row.column("lengths")[0].values.to_numpy())
        return [
            Segment(tokens[end - n : end], targets[end - n : end])
            for n, end in zip(np.diff(ends, prepend=0), ends, strict=True)
        ]

    def select(self, indices: np.ndarray) -> "Examples":
        """Only the examples at `indices`, in that order."""
        scores = None if self.scores is None else self.scores[indices]
        return Examples(
            self.rows.select(indices), self.lengths[indices], self.segments_each, {}, [], self.places[indices], scores
        )

    def ids(self) -> list[str]:
        """Ids of all examples."""
        return list(self.rows.with_format(None)["id"])

    def keys(self) -> np.ndarray:
        """str [N, segments_each]: content address of every segment."""
        return np.array(list(self.rows.with_format(None)["keys"]), dtype=np.str_).reshape(len(self), self.segments_each)

    def segment_lengths(self) -> np.ndarray:
        """int64 [N, segments_each]: tokens of every segment."""
        return np.array(list(self.rows.with_format(None)["lengths"]), np.int64).reshape(len(self), self.segments_each)

    def summary(self, name: str) -> str:
        """A few words per reason for people: counts and the first ids of what was left out."""
        lines = [f"{name}: {len(self):,} examples, {int(self.lengths.sum()):,} tokens"]
        if self.cut:
            lines.append(f"  {len(self.cut):,} cut to fit ({_some(self.cut)})")
        for reason, ids in sorted(self.left_out.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(ids):,} left out: {reason} ({_some(ids)})")
        return "\n".join(lines)


def _some(ids: list[str], most: int = 3) -> str:
    return listing([identity[:16] for identity in ids], most)


def load_conversations(data: DataOptions, tokenizer: ChatTokenizer, path: str, split: str) -> Examples:
    """Tokenised conversations from rows with a `messages` column. Raises InputError."""
    rows = open_rows(path, split, data.revision, data.limit)
    _need_columns(rows, path, ["messages"])
    tokenise = partial(_conversation, tokenizer, data.targets, data.max_length)
    return _tokenise(rows, tokenise, 1, data, tokenizer, f"{path}:{split}")


def load_preferences(data: DataOptions, tokenizer: ChatTokenizer, path: str, split: str) -> Examples:
    """Tokenised pairs from rows with `chosen` and `rejected` columns. Raises InputError."""
    rows = open_rows(path, split, data.revision, data.limit)
    _need_columns(rows, path, ["chosen", "rejected"])
    tokenise = partial(_preference, tokenizer, data.max_length, data.max_prompt_length)
    examples = _tokenise(rows, tokenise, 2, data, tokenizer, f"{path}:{split}")
    return replace(examples, scores=_scores(rows, examples.places))


def room_for(data: DataOptions, pairs: bool) -> DataOptions:
    """For verbs whose numbers do not depend on packing: a row length that was left at its default holds a pair, too."""
    unset = data.row_length == DataOptions().row_length
    return replace(data, row_length=max(data.row_length, 2 * data.max_length)) if pairs and unset else data


def _scores(rows: Dataset, places: np.ndarray) -> np.ndarray | None:
    """float64 [N, 2] of the rows at `places`, NaN where a row has none; None where the source has no such numbers."""
    names = ("score_chosen", "score_rejected")
    kinds = [rows.features.get(name) for name in names]
    if not all(isinstance(kind, Value) and kind.dtype.startswith(("float", "int", "uint")) for kind in kinds):
        return None
    table = rows.select_columns(list(names)).with_format("arrow")[:]
    return np.stack([table.column(name).cast("float64", safe=False).to_numpy()[places] for name in names], axis=1)


def examples_of(segments: Sequence[Segment]) -> Examples:
    """Examples of one segment each, from tokens that are in memory."""
    rows = [
        {
            "id": str(place), "problem": "", "cut": False, "tokens": segment.tokens,
            "targets": segment.targets.astype(np.uint8), "lengths": [len(segment)], "keys": [segment.key],
        }
        for place, segment in enumerate(segments)
    ]  # fmt: skip
    table = Dataset.from_list(rows, features=_FEATURES).with_format("arrow")
    return Examples(table, np.array([len(each) for each in segments], np.int64), 1, {}, [], np.arange(len(segments)))


def _conversation(
    tokenizer: ChatTokenizer, targets: str, longest: int, row: dict[str, Any], cut: bool
) -> list[Segment]:
    return conversation(tokenizer, row, targets, longest, cut)


def _preference(tokenizer: ChatTokenizer, longest: int, prompt: int, row: dict[str, Any], cut: bool) -> list[Segment]:
    return preference(tokenizer, row, longest, prompt, cut)


def _instead(there: list[str]) -> str:
    """What to do with rows that have these columns, where that is known."""
    if "completions" in there:
        return " These look like rated answers: `zephyr-jax prepare ultrafeedback` makes preferences of them."
    if "chosen" in there and "rejected" in there:
        return " These look like preferences: give them to `reference` and `dpo`."
    if "messages" in there:
        return " These look like conversations: give them to `sft`."
    return " Rename or rewrite the columns that hold them."


def _need_columns(rows: Dataset, path: str, needed: list[str]) -> None:
    missing = [name for name in needed if name not in rows.column_names]
    if missing:
        raise InputError(
            f"{path} has no column {listing(missing)}; it has {listing(rows.column_names)}. "
            f"{'Preferences' if 'chosen' in needed else 'Conversations'} need {listing(needed)} with "
            f"[{{role, content}}, ...] in each row.{_instead(rows.column_names)}"
        )
    if not len(rows):
        raise InputError(f"{path} has no rows. Give a file or split with at least one.")


def _tokenise(
    rows: Dataset, tokenise: Tokenise, segments_each: int, data: DataOptions, tokenizer: ChatTokenizer, name: str
) -> Examples:
    rule = (
        _VERSION, segments_each, data.targets, data.max_length, data.max_prompt_length, data.on_bad_row,
        tokenizer.fingerprint, rows._fingerprint,
    )  # fmt: skip
    if data.workers > 1:  # a fork of a process in which JAX runs may deadlock
        multiprocess.set_start_method("forkserver", force=True)
    table = rows.map(
        partial(_row, tokenise, data.on_bad_row == "truncate"),
        with_indices=True,
        remove_columns=rows.column_names,
        features=_FEATURES,
        num_proc=data.workers if data.workers > 1 else None,
        new_fingerprint=blake2b(repr(rule).encode(), digest_size=16).hexdigest(),
        desc="tokenising",
    )
    problems = table.data.column("problem").to_pylist()
    good = np.array([index for index, problem in enumerate(problems) if not problem], np.int64)
    left_out = _left_out(table, problems)
    if data.on_bad_row == "error" and left_out:
        counts = Counter({reason: len(ids) for reason, ids in left_out.items()})
        reason, count = counts.most_common(1)[0]
        raise InputError(
            f"{name}: {sum(counts.values())} of {len(problems)} rows cannot be used; {count} because: {reason} "
            f"(ids {_some(left_out[reason], 5)}). Fix the rows, or set data.on_bad_row to `drop` or `truncate`."
        )
    if not len(good):
        reason, ids = max(left_out.items(), key=lambda item: len(item[1]))
        raise InputError(
            f"{name}: of {len(problems)} rows none can be used; {len(ids)} because: {reason} "
            f"(ids {_some(ids)}). Fix the rows, or the settings that leave them out."
        )
    kept = (table.select(good) if len(good) < len(problems) else table).with_format("arrow")
    lengths = np.array([sum(each) for each in kept.with_format(None)["lengths"]], np.int64)
    if lengths.max() > data.row_length:
        raise InputError(
            f"{name}: the longest example has {lengths.max()} tokens and data.row_length is {data.row_length}. A row holds "
            f"whole examples: set data.row_length to {segments_each * data.max_length}, or lower data.max_length."
        )
    cut = [
        identity
        for identity, was_cut in zip(kept.with_format(None)["id"], kept.with_format(None)["cut"], strict=True)
        if was_cut
    ]
    return Examples(kept, lengths, segments_each, left_out, cut, good)


def _left_out(table: Dataset, problems: list[str]) -> dict[str, list[str]]:
    left_out: dict[str, list[str]] = {}
    for identity, problem in zip(table.data.column("id").to_pylist(), problems, strict=True):
        if problem:
            left_out.setdefault(problem, []).append(identity)
    return left_out


def _row(tokenise: Tokenise, may_cut: bool, row: dict[str, Any], index: int) -> dict[str, Any]:
    names = [str(row[name]) for name in ("prompt_id", "id") if row.get(name) not in (None, "")]
    identity = names[0] if names else f"row {index}"
    segments, problem, cut = [], "", False
    try:
        try:
            segments = tokenise(row, False)
        except OverLong:
            cut = may_cut
            segments = tokenise(row, may_cut)
    except BadRow as error:
        problem = str(error)
    return {
        "id": identity,
        "problem": problem,
        "cut": cut and not problem,
        "tokens": np.concatenate([segment.tokens for segment in segments] or [np.zeros(0, np.int32)]),
        "targets": np.concatenate([segment.targets for segment in segments] or [np.zeros(0, bool)]).astype(np.uint8),
        "lengths": [len(segment) for segment in segments],
        "keys": [segment.key for segment in segments],
    }
