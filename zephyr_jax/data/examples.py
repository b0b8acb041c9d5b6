"""Tokenized examples: what the planner measures and the loader lays into rows.

An example is one segment (a conversation) or two (chosen and rejected of a pair). Tokens live in Arrow files that
`datasets` maps into memory and caches by content; lengths, ids and keys are small and live in memory.
"""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from hashlib import blake2b
from itertools import islice

import numpy as np
from datasets import Dataset

from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.config.sections import ROW_MULTIPLE, DataOptions
from zephyr_jax.data.example_rows import FEATURES, example_record, examples_of_rows, short_id, whole_row
from zephyr_jax.data.filter_stats import FilterStats, filter_stats
from zephyr_jax.data.row_formats import find_format
from zephyr_jax.data.rows import COLUMNS, unused_columns
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE, ExampleKind
from zephyr_jax.data.shared_prompt import UnsharedRows, packed_lengths
from zephyr_jax.data.sources import Rows, open_rows
from zephyr_jax.data.workers import workers
from zephyr_jax.errors import InputError, join_items

_VERSION = 10
_BATCH = 64  # rows that become examples at a time
_SAMPLE = 1000  # rows whose formats are named
_ROWS_PER_WORKER = 4000  # are worth the start of another process


@dataclass(frozen=True)
class Examples:
    """Usable examples in the order of their source, and the rows that were skipped or truncated."""

    rows: Dataset
    lengths: np.ndarray
    """int64 [N]: tokens of all segments of each example."""
    segments: tuple[str, ...]
    """Names of the segments of each example, such as chosen and rejected."""
    skipped: dict[str, list[str]]
    """Reason -> ids of the rows that could not be used."""
    truncated: list[str]
    """Ids of the rows that were over-long and cut to fit."""
    row_indices: np.ndarray
    """int64 [N]: the row of the source that each comes from; several have one row under `data.multi_turn: last`."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the kind of example has beside tokens, by name: [N] or [N, values], such as `scores` of pairs."""
    formats: tuple[str, ...] = ()
    """Names of the formats of its first rows."""
    notes: tuple[str, ...] = ()
    """What the user should know about the source: files that are not read, columns that are not used."""
    stats: FilterStats = FilterStats()
    """What was skipped and truncated, by reason, with token shares."""

    @property
    def segments_per_example(self) -> int:
        """1 for conversations, 2 for pairs."""
        return len(self.segments)

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
        return Examples(
            rows=self.rows.select(indices),
            lengths=self.lengths[indices],
            segments=self.segments,
            skipped={},
            truncated=[],
            row_indices=self.row_indices[indices],
            columns={name: values[indices] for name, values in self.columns.items()},
        )

    def ids(self) -> list[str]:
        """Ids of all examples."""
        return list(self.rows.with_format(None)["id"])

    def keys(self) -> np.ndarray:
        """str [N, segments_per_example]: content address of every segment."""
        keys = list(self.rows.with_format(None)["keys"])
        return np.array(keys, np.str_).reshape(len(self), self.segments_per_example)

    def segment_lengths(self) -> np.ndarray:
        """int64 [N, segments_per_example]: tokens of every segment."""
        lengths = list(self.rows.with_format(None)["lengths"])
        return np.array(lengths, np.int64).reshape(len(self), self.segments_per_example)

    def prompt_lengths(self) -> np.ndarray:
        """int64 [N]: tokens of the prompt that the segments of each example share; 0 for conversations."""
        return np.array(list(self.rows.with_format(None)["prompt"]), np.int64)

    def packed_lengths(self, data: DataOptions) -> tuple[np.ndarray, UnsharedRows | None]:
        """int64 [N]: tokens that each example takes of a row under `data`; and of un-shared rows, where prompts are shared."""
        if self.segments_per_example == 1:
            return self.lengths, None
        return packed_lengths(self.lengths, self.prompt_lengths(), self.segments_per_example, data)

    def summary(self, name: str) -> str:
        """Several lines: counts, notes, and the first ids of truncated and skipped rows by reason."""
        lines = [f"{name}: {len(self):,} examples, {int(self.lengths.sum()):,} tokens"]
        lines += [f"  {note}" for note in self.notes]
        if self.truncated:
            lines.append(f"  {len(self.truncated):,} truncated ({_some(self.truncated)})")
        for reason, ids in sorted(self.skipped.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(ids):,} skipped: {reason} ({_some(ids)})")
        if self.stats.lost_tokens:
            lines.append(f"  skipped or truncated: {self.stats.lost_tokens:.1%} of all tokens")
        return "\n".join(lines)


def _some(ids: list[str], limit: int = 3) -> str:
    return join_items([short_id(identity) for identity in ids], limit)


def load_examples(kind: ExampleKind, data: DataOptions, tokenizer: ChatTokenizer, path: str, split: str) -> Examples:
    """Tokenize the rows of a split.

    Args:
        kind: What an example is.
        data: Lengths, targets and what happens to rows that cannot be used; `path` and `split` are not read from it.
        tokenizer: Tokenizer with the chat template.
        path: A file, a folder or a hub id.
        split: The split to read.

    Raises:
        InputError: No column is what the kind needs, no row can be used, one cannot under `data.on_bad_row: error`, or an
            example is longer than a packed row.
    """
    columns = COLUMNS.union(*(known.columns + known.optional for known in kind.formats))
    rows = open_rows(path, split, data.revision, data.limit, columns)
    _need_columns(rows, path, kind)
    examples = _tokenize(rows.table, kind, data, tokenizer, f"{path}:{split}")
    return replace(_described(examples, rows, kind), columns=kind.columns(rows, examples.row_indices))


def _described(examples: Examples, rows: Rows, kind: ExampleKind) -> Examples:
    """The examples with the formats of the first rows, and with notes on the source."""
    sample = [find_format(row, kind.formats) for row in islice(rows, _SAMPLE)]
    used = list(dict.fromkeys(known for known in sample if known))
    unused = unused_columns(rows.fields, used)
    notes = (*rows.notes, f"unused columns: {join_items(unused)}") if unused else rows.notes
    return replace(examples, formats=tuple(known.name for known in used), notes=(*examples.notes, *notes))


def examples_of(examples: Sequence[list[Segment]], segments: tuple[str, ...] = ("text",)) -> Examples:
    """Examples from tokens that are in memory; `segments` names the segments of each."""
    rows = [
        example_record(str(index), example, row=index, problem="", truncated=False, overlong="", size=0, characters=0)
        for index, example in enumerate(examples)
    ]
    return Examples(
        rows=Dataset.from_list(rows, features=FEATURES).with_format("arrow"),
        lengths=np.array([sum(map(len, example)) for example in examples], np.int64),
        segments=segments,
        skipped={},
        truncated=[],
        row_indices=np.arange(len(examples)),
    )


def _suggestion(columns: Collection[str]) -> str:
    """What to do with rows that have these columns, if that is known."""
    if {"completion", "label"} <= set(columns):
        return " These look like rows for KTO (an answer with a label), which `sft` and `dpo` do not train on."
    if "completions" in columns:
        return " These look like rated answers: `zephyr-jax prepare ultrafeedback` makes preferences of them."
    for kind in (PREFERENCE, CONVERSATION):
        if any(set(known.columns) <= set(columns) for known in kind.formats):
            return f" These look like {kind.name.lower()}: give them to {kind.used_by}."
    return " Rename or rewrite the columns that hold them."


def _need_columns(rows: Rows, path: str, kind: ExampleKind) -> None:
    """Raise InputError for a source without rows, or one whose columns are those of no format."""
    recognized = any(set(known.columns) <= rows.fields.keys() for known in kind.formats)
    if not rows.fields or (recognized and not len(rows)):
        raise InputError(f"{path} has no rows. Give a file or split with at least one.")
    if recognized:
        return
    missing = [name for name in kind.required if name not in rows.fields]
    others = [known.name for known in kind.formats if known.columns != kind.required]
    raise InputError(
        f"{path} has no column {join_items(missing)}; it has {join_items(rows.fields)}.{_near_columns(missing, rows)} "
        f"{kind.name} need {join_items(kind.required)} with [{{role, content}}, ...] in each row, or another format: "
        f"{join_items(others, 20)}.{_suggestion(rows.fields)}"
    )


def _near_columns(missing: Sequence[str], rows: Rows) -> str:
    """A suggestion for a misspelled column; empty without one."""
    near = {name: get_close_matches(name, rows.fields, n=1) for name in missing}
    return "".join(f" Did you mean `{name}` for `{match}`?" for name, matches in near.items() for match in matches)


def _table(rows: Dataset, kind: ExampleKind, data: DataOptions, tokenizer: ChatTokenizer) -> Dataset:
    """The table of tokenized examples with columns `FEATURES`, from the cache where it has it."""
    rule = (
        _VERSION,
        kind.name,
        data.targets,
        data.multi_turn,
        data.max_length,
        data.max_prompt_length,
        data.on_bad_row,
        data.allow_contradictions,
        tokenizer.fingerprint,
        rows._fingerprint,
    )
    num_workers = data.num_workers or min(os.cpu_count() or 1, -(-len(rows) // _ROWS_PER_WORKER))
    with workers() if num_workers > 1 else nullcontext():
        return rows.map(
            partial(
                examples_of_rows,
                partial(kind.tokenize, tokenizer, data),
                partial(kind.split_turns, tokenizer, data) if kind.split_turns and _splits(kind, data) else whole_row,
                data.on_bad_row == "truncate",
            ),
            with_indices=True,
            batched=True,
            batch_size=_BATCH,
            remove_columns=rows.column_names,
            features=FEATURES,
            num_proc=num_workers if num_workers > 1 else None,
            new_fingerprint=blake2b(repr(rule).encode(), digest_size=16).hexdigest(),
            desc="tokenizing",
        )


def _splits(kind: ExampleKind, data: DataOptions) -> bool:
    """Whether each answer of a row is an example."""
    return kind.split_turns is not None and data.multi_turn == "last"


def _tokenize(rows: Dataset, kind: ExampleKind, data: DataOptions, tokenizer: ChatTokenizer, name: str) -> Examples:
    table = _table(rows, kind, data, tokenizer)
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
            f"(ids {_some(ids)}). Fix the rows, or the settings that skip them."
        )
    kept = (table.select(good) if len(good) < len(problems) else table).with_format("arrow")
    lengths = np.array([sum(segments) for segments in kept.with_format(None)["lengths"]], np.int64)
    row_indices = np.array(table.data.column("row").to_numpy()[good], np.int64)
    ids, was_truncated = (kept.with_format(None)[name] for name in ("id", "truncated"))
    truncated = [identity for identity, flag in zip(ids, was_truncated, strict=True) if flag]
    examples = Examples(
        rows=kept,
        lengths=lengths,
        segments=kind.segments,
        skipped=skipped,
        truncated=truncated,
        row_indices=row_indices,
        notes=(_turn_counts(row_indices),) if _splits(kind, data) else (),
        stats=_stats(table, problems),
    )
    _check_row_length(examples, data, name)
    return examples


def _check_row_length(examples: Examples, data: DataOptions, name: str) -> None:
    """Raise InputError unless a row holds the longest example."""
    lengths, unshared = examples.packed_lengths(data)
    longest = int(lengths.max())
    if longest <= data.row_length:
        return
    if unshared is None:
        size, enough = f"{longest} tokens", examples.segments_per_example * data.max_length
    else:
        size, enough = f"{longest} tokens (its prompt counted once)", -(-longest // ROW_MULTIPLE) * ROW_MULTIPLE
    raise InputError(
        f"{name}: the longest example has {size} and data.row_length is {data.row_length}. A row holds whole examples: set "
        f"data.row_length to {enough}, or lower data.max_length."
    )


def _turn_counts(row_indices: np.ndarray) -> str:
    conversations = len(np.unique(row_indices))
    return (
        f"{conversations:,} conversations became {len(row_indices):,} examples, one per answer (data.multi_turn: last)"
    )


def _stats(table: Dataset, problems: list[str]) -> FilterStats:
    columns = table.data
    kept = np.array([sum(segments) for segments in columns.column("lengths").to_pylist()], np.int64)
    characters, sizes = (columns.column(name).to_numpy() for name in ("characters", "size"))
    return filter_stats(problems, columns.column("overlong").to_pylist(), characters, sizes, kept)


def _skipped(table: Dataset, problems: list[str]) -> dict[str, list[str]]:
    skipped: dict[str, list[str]] = {}
    for identity, problem in zip(table.data.column("id").to_pylist(), problems, strict=True):
        if problem:
            skipped.setdefault(problem, []).append(identity)
    return skipped
