"""Shared prompts: the tokens that the segments of an example begin with, laid into a row once.

`batch.SharedTokenBatch` is the layout; `model.attention.shared_prompt` reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zephyr_jax.batch import SharedTokenBatch
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.config.sections import DataOptions


@dataclass(frozen=True)
class UnsharedRows:
    """What examples take in the un-shared rows of attention, the second capacity of packing."""

    lengths: np.ndarray
    """int64 [N]: tokens of all segments of each example, the prompt counted in each."""
    capacity: int
    """Columns of an un-shared row."""


def shared_prompt_length(segments: Sequence[Segment]) -> int:
    """Number of tokens that all segments begin with before any of their targets; 0 for a single segment."""
    if len(segments) < 2:
        return 0
    first = segments[0]
    length = min(int(segment.targets.argmax()) if segment.targets.any() else len(segment) for segment in segments)
    for segment in segments[1:]:
        differs = segment.tokens[:length] != first.tokens[:length]
        length = int(differs.argmax()) if differs.any() else length
    return length


def packed_lengths(
    lengths: np.ndarray, prompt_lengths: np.ndarray, segments: int, data: DataOptions
) -> tuple[np.ndarray, UnsharedRows | None]:
    """What each example takes of a packed row and, where prompts are shared, of the un-shared row.

    Args:
        lengths: int64 [N]: tokens of all segments of each example.
        prompt_lengths: int64 [N]: of `shared_prompt_length`.
        segments: Segments of an example.
        data: `share_prompts` decides, and the lengths give the capacity.
    """
    if segments < 2 or not data.share_prompts:
        return lengths, None
    return lengths - (segments - 1) * prompt_lengths, UnsharedRows(lengths, data.unshared_row_length(segments))


def lay_out_shared(rows: SharedTokenBatch, line: int, examples: Sequence[Sequence[Segment]]) -> None:
    """Write the examples of one packed row, left to right, into line `line` of rows of padding."""
    length = rows.tokens.shape[1]
    copies = rows.copies.reshape(len(rows.copies), -1, length)
    column = unshared = number = 0
    for segments in examples:
        prompt = shared_prompt_length(segments)
        prompt_columns = np.arange(column, column + prompt)
        for index, segment in enumerate(segments):
            number += 1
            # The first segment brings the prompt; the others add what comes after it.
            written = 0 if index == 0 else prompt
            own = np.arange(column, column + len(segment) - written)
            columns = own if index == 0 else np.r_[prompt_columns, own]
            rows.tokens[line, own] = segment.tokens[written:]
            rows.targets[line, own] = segment.targets[written:]
            rows.segments[line, own] = number
            rows.positions[line, own] = np.arange(written, len(segment))
            rows.source[line, own] = np.r_[columns[:1], columns[:-1]][written:]
            span = np.arange(unshared, unshared + len(segment))
            rows.unshared_columns[line, span] = columns
            rows.unshared_segments[line, span] = number
            copies[line, index, prompt_columns] = span[:prompt]
            copies[line, 0, own] = span[written:]
            column, unshared = column + len(own), unshared + len(segment)
