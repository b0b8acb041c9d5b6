"""Tokenised examples: what the planner measures and the loader lays into rows.

An example is one segment (a conversation) or two (chosen and rejected of a pair). Tokens live in Arrow files that
`datasets` maps into memory and caches by content; lengths, ids and keys are small and live in memory.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any

import multiprocess
import numpy as np
from datasets import Dataset, Features, List, Value

from zephyr_jax.chat.message import OverLengthRow, SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.config.sections import DataOptions, is_unset
from zephyr_jax.data.filter_stats import FilterStats, filter_stats
from zephyr_jax.data.row_formats import CONVERSATION_FORMATS, PREFERENCE_FORMATS, RowFormat, find_format
from zephyr_jax.data.rows import SCORE_COLUMNS, parse_score, unused_columns
from zephyr_jax.data.segments import conversation, preference
from zephyr_jax.data.sources import Rows, decode, open_rows
from zephyr_jax.errors import InputError, join_items

_FEATURES = Features(
    {
        "id": Value("string"),
        "problem": Value("string"),
        "cut": Value("bool"),
        "tokens": List(Value("int32")),
        "targets": List(Value("uint8")),
        "lengths": List(Value("int32")),
        "keys": List(Value("string")),
        "overlong": Value("string"),
        "size": Value("int64"),
        "characters": Value("int64"),
    }
)
_VERSION = 6
_SAMPLE = 1000  # rows whose formats are named
type Tokenise = Callable[[dict[str, Any], bool], list[Segment]]
"""(row, whether to cut it when it is over-long) -> its segments."""


@dataclass(frozen=True)
class Examples:
    """Usable examples in the order of their source, and what was left out."""

    rows: Dataset
    lengths: np.ndarray
    """int64 [N]: tokens of all segments of each example."""
    segments_per_example: int
    """1 for conversations, 2 for pairs."""
    skipped: dict[str, list[str]]
    """Reason -> ids of the rows that could not be used."""
    truncated: list[str]
    """Ids of the rows that were over-long and cut to fit."""
    row_indices: np.ndarray
    """int64 [N]: the row of the source that each comes from."""
    scores: np.ndarray | None = None
    """float64 [N, 2]: `score_chosen` and `score_rejected`, where the rows of a source of pairs carry such numbers."""
    formats: tuple[str, ...] = ()
    """Names of the formats of its first rows."""
    notes: tuple[str, ...] = ()
    """What the user should know about the source: files that are not read, columns that are not used."""
    stats: FilterStats = FilterStats()
    """What was skipped and truncated, by reason, with token shares."""

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
            self.rows.select(indices),
            self.lengths[indices],
            self.segments_per_example,
            {},
            [],
            self.row_indices[indices],
            scores,
        )

    def ids(self) -> list[str]:
        """Ids of all examples."""
        return list(self.rows.with_format(None)["id"])

    def keys(self) -> np.ndarray:
        """str [N, segments_per_example]: content address of every segment."""
        return np.array(list(self.rows.with_format(None)["keys"]), dtype=np.str_).reshape(
            len(self), self.segments_per_example
        )

    def segment_lengths(self) -> np.ndarray:
        """int64 [N, segments_per_example]: tokens of every segment."""
        return np.array(list(self.rows.with_format(None)["lengths"]), np.int64).reshape(
            len(self), self.segments_per_example
        )

    def summary(self, name: str) -> str:
        """A few words per reason for people: counts and the first ids of what was left out."""
        lines = [f"{name}: {len(self):,} examples, {int(self.lengths.sum()):,} tokens"]
        lines += [f"  {note}" for note in self.notes]
        if self.truncated:
            lines.append(f"  {len(self.truncated):,} cut to fit ({_some(self.truncated)})")
        for reason, ids in sorted(self.skipped.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(ids):,} left out: {reason} ({_some(ids)})")
        if self.stats.lost_tokens:
            lines.append(f"  left out or cut off: {self.stats.lost_tokens:.1%} of all tokens")
        return "\n".join(lines)


def _some(ids: list[str], most: int = 3) -> str:
    return join_items([identity[:16] for identity in ids], most)


def load_conversations(data: DataOptions, tokenizer: ChatTokenizer, path: str, split: str) -> Examples:
    """Tokenised conversations from rows in one of the formats `CONVERSATION_FORMATS`. Raises InputError."""
    rows = open_rows(path, split, data.revision, data.limit)
    _need_columns(rows, path, "Conversations", CONVERSATION_FORMATS)
    tokenise = partial(_conversation, tokenizer, data.targets, data.max_length, data.allow_contradictions)
    examples = _tokenise(rows.table, tokenise, 1, data, tokenizer, f"{path}:{split}")
    return _described(examples, rows, CONVERSATION_FORMATS)


def load_preferences(data: DataOptions, tokenizer: ChatTokenizer, path: str, split: str) -> Examples:
    """Tokenised pairs from rows in one of the formats `PREFERENCE_FORMATS`. Raises InputError."""
    rows = open_rows(path, split, data.revision, data.limit)
    _need_columns(rows, path, "Preferences", PREFERENCE_FORMATS)
    tokenise = partial(_preference, tokenizer, data.max_length, data.max_prompt_length, data.allow_contradictions)
    examples = _tokenise(rows.table, tokenise, 2, data, tokenizer, f"{path}:{split}")
    return replace(_described(examples, rows, PREFERENCE_FORMATS), scores=_scores(rows, examples.row_indices))


def holds_pairs(data: DataOptions) -> bool:
    """Whether the rows of `data.path` are preferences. Raises InputError."""
    fields = open_rows(data.path, data.split, data.revision, data.limit).fields
    return "chosen" in fields


def _described(examples: Examples, rows: Rows, formats: Sequence[RowFormat[Any]]) -> Examples:
    """The examples with the formats of the first rows, and with notes on the source."""
    sample = [find_format(row, formats) for row in islice(rows, _SAMPLE)]
    found = list(dict.fromkeys(each for each in sample if each))
    unused = unused_columns(rows.fields, found)
    notes = (*rows.notes, f"unused columns: {join_items(unused)}") if unused else rows.notes
    return replace(examples, formats=tuple(each.name for each in found), notes=notes)


def room_for(data: DataOptions, pairs: bool) -> DataOptions:
    """For verbs whose numbers do not depend on packing: a row length that was left at its default holds a pair, too."""
    unset = is_unset(data.row_length) or data.row_length == DataOptions().row_length
    return replace(data, row_length=max(data.row_length, 2 * data.max_length)) if pairs and unset else data


def _scores(rows: Rows, places: np.ndarray) -> np.ndarray | None:
    """float64 [N, 2] of the rows at `places`, NaN where a row has none; None where the source has no such numbers."""
    names = next((pair for pair in SCORE_COLUMNS if set(pair) <= rows.fields.keys()), None)
    if names is None:
        return None
    columns = [[parse_score(value) for value in rows.values(name)] for name in names]
    scores = np.array(columns, np.float64).T[places]  # None becomes NaN
    return None if np.isnan(scores).all() else scores


def examples_of(segments: Sequence[Segment]) -> Examples:
    """Examples of one segment each, from tokens that are in memory."""
    rows = [
        {
            "id": str(place), "problem": "", "cut": False, "tokens": segment.tokens,
            "targets": segment.targets.astype(np.uint8), "lengths": [len(segment)], "keys": [segment.key],
            "overlong": "", "size": len(segment), "characters": 0,
        }
        for place, segment in enumerate(segments)
    ]  # fmt: skip
    table = Dataset.from_list(rows, features=_FEATURES).with_format("arrow")
    return Examples(table, np.array([len(each) for each in segments], np.int64), 1, {}, [], np.arange(len(segments)))


def _conversation(
    tokenizer: ChatTokenizer, targets: str, longest: int, contradictions: bool, row: dict[str, Any], cut: bool
) -> list[Segment]:
    return conversation(tokenizer, row, targets, longest, cut, contradictions)


def _preference(
    tokenizer: ChatTokenizer, longest: int, prompt: int, contradictions: bool, row: dict[str, Any], cut: bool
) -> list[Segment]:
    return preference(tokenizer, row, longest, prompt, cut, contradictions)


def _instead(there: Collection[str]) -> str:
    """What to do with rows that have these columns, where that is known."""
    if {"completion", "label"} <= set(there):
        return " These look like rows for KTO (an answer with a label), and no command trains on these."
    if "completions" in there:
        return " These look like rated answers: `zephyr-jax prepare ultrafeedback` makes preferences of them."
    if "chosen" in there and "rejected" in there:
        return " These look like preferences: give them to `reference` and `dpo`."
    if any(set(each.columns) <= set(there) for each in CONVERSATION_FORMATS):
        return " These look like conversations: give them to `sft`."
    return " Rename or rewrite the columns that hold them."


def _need_columns(rows: Rows, path: str, kind: str, formats: Sequence[RowFormat[Any]]) -> None:
    """Raise InputError for a source without rows, or one whose columns are those of no format."""
    known = any(set(each.columns) <= rows.fields.keys() for each in formats)
    if not rows.fields or (known and not len(rows)):
        raise InputError(f"{path} has no rows. Give a file or split with at least one.")
    if known:
        return
    needed = ["messages"] if formats is CONVERSATION_FORMATS else ["chosen", "rejected"]
    missing = [name for name in needed if name not in rows.fields]
    others = [each.name for each in formats if each.columns != tuple(needed)]
    raise InputError(
        f"{path} has no column {join_items(missing)}; it has {join_items(rows.fields)}. {kind} need {join_items(needed)} with "
        f"[{{role, content}}, ...] in each row, or the columns {join_items(others, 20)}.{_instead(rows.fields)}"
    )


def _tokenise(
    rows: Dataset, tokenise: Tokenise, segments_per_example: int, data: DataOptions, tokenizer: ChatTokenizer, name: str
) -> Examples:
    rule = (
        _VERSION, segments_per_example, data.targets, data.max_length, data.max_prompt_length, data.on_bad_row,
        data.allow_contradictions,
        tokenizer.fingerprint, rows._fingerprint,
    )  # fmt: skip
    if data.num_workers > 1:  # a fork of a process in which JAX runs may deadlock
        multiprocess.set_start_method("forkserver", force=True)
    table = rows.map(
        partial(_row, tokenise, data.on_bad_row == "truncate"),
        with_indices=True,
        remove_columns=rows.column_names,
        features=_FEATURES,
        num_proc=data.num_workers if data.num_workers > 1 else None,
        new_fingerprint=blake2b(repr(rule).encode(), digest_size=16).hexdigest(),
        desc="tokenising",
    )
    problems = table.data.column("problem").to_pylist()
    good = np.array([index for index, problem in enumerate(problems) if not problem], np.int64)
    skipped = _skipped(table, problems)
    if data.on_bad_row == "error" and skipped:
        counts = Counter({reason: len(ids) for reason, ids in skipped.items()})
        reason, count = counts.most_common(1)[0]
        raise InputError(
            f"{name}: {sum(counts.values())} of {len(problems)} rows cannot be used; {count} because: {reason} "
            f"(ids {_some(skipped[reason], 5)}). Fix the rows, or set data.on_bad_row to `drop` or `truncate`."
        )
    if not len(good):
        reason, ids = max(skipped.items(), key=lambda item: len(item[1]))
        raise InputError(
            f"{name}: of {len(problems)} rows none can be used; {len(ids)} because: {reason} "
            f"(ids {_some(ids)}). Fix the rows, or the settings that leave them out."
        )
    kept = (table.select(good) if len(good) < len(problems) else table).with_format("arrow")
    lengths = np.array([sum(each) for each in kept.with_format(None)["lengths"]], np.int64)
    if lengths.max() > data.row_length:
        raise InputError(
            f"{name}: the longest example has {lengths.max()} tokens and data.row_length is {data.row_length}. A row holds "
            f"whole examples: set data.row_length to {segments_per_example * data.max_length}, or lower data.max_length."
        )
    cut = [
        identity
        for identity, was_cut in zip(kept.with_format(None)["id"], kept.with_format(None)["cut"], strict=True)
        if was_cut
    ]
    return Examples(kept, lengths, segments_per_example, skipped, cut, good, stats=_stats(table, problems))


def _stats(table: Dataset, problems: list[str]) -> FilterStats:
    columns = table.data
    kept = np.array([sum(each) for each in columns.column("lengths").to_pylist()], np.int64)
    characters, sizes = (columns.column(name).to_numpy() for name in ("characters", "size"))
    return filter_stats(problems, columns.column("overlong").to_pylist(), characters, sizes, kept)


def _skipped(table: Dataset, problems: list[str]) -> dict[str, list[str]]:
    skipped: dict[str, list[str]] = {}
    for identity, problem in zip(table.data.column("id").to_pylist(), problems, strict=True):
        if problem:
            skipped.setdefault(problem, []).append(identity)
    return skipped


def _row(tokenise: Tokenise, may_cut: bool, cells: dict[str, str | None], index: int) -> dict[str, Any]:
    row = decode(cells)
    names = [str(row[name]) for name in ("prompt_id", "id") if row.get(name) not in (None, "")]
    identity = names[0] if names else f"row {index}"
    segments, problem, cut, overlong, size = [], "", False, "", 0
    try:
        try:
            segments = tokenise(row, False)
        except OverLengthRow as error:
            cut, overlong, size = may_cut, str(error), error.tokens
            segments = tokenise(row, may_cut)
    except SkippedRow as error:
        problem = str(error)
    return {
        "id": identity,
        "problem": problem,
        "cut": cut and not problem,
        "tokens": np.concatenate([segment.tokens for segment in segments] or [np.zeros(0, np.int32)]),
        "targets": np.concatenate([segment.targets for segment in segments] or [np.zeros(0, bool)]).astype(np.uint8),
        "lengths": [len(segment) for segment in segments],
        "keys": [segment.key for segment in segments],
        "overlong": overlong,
        "size": size or sum(map(len, segments)),
        "characters": _characters(row),
    }


def _characters(value: Any) -> int:
    """Characters of all texts in a row, at any depth."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
