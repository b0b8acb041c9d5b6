"""The array contract between data and model; axis letters are in `zephyr_jax.model`.

A *row* is a fixed-length line of tokens holding whole *segments* (one conversation each) side by side; an *example* is one
or more segments next to each other. Masks are data: they are made together with the tokens and never inferred from token
ids, so a padding id may equal EOS.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

type Array = Any

type Axes = tuple[str | None, ...]
"""Logical axis of each dimension of an array, such as ("batch", "length", "model"); None: not sharded."""


class Batch(Protocol):
    """Packed rows with what a method needs of each example: a NamedTuple of arrays, filled by field name (`make_batch`).

    Besides `rows` a field is `present` (bool [B, P]: the example slots in use) or the name of a column of the examples, as
    [B, P] with one value per example or [B, S] with one per segment; unused slots are 0. Stacked microbatches have a leading A.
    """

    @property
    def rows(self) -> "Rows":
        """The packed rows."""


class TokenBatch(NamedTuple):
    """Packed rows. Every field is [B, L] (or [A, B, L] when microbatches are stacked)."""

    tokens: Array
    """int32 token ids; 0 where padded."""
    segments: Array
    """int32; 0 is padding, 1, 2, ... number the segments of a row from left to right."""
    positions: Array
    """int32 position inside the segment, restarting at 0."""
    targets: Array
    """bool; targets[b, t]: token t itself is to be predicted (the shift lives in `objective.logprob`)."""

    @property
    def rows(self) -> "TokenBatch":
        """Itself, so that every batch has `rows`."""
        return self


class SharedTokenBatch(NamedTuple):
    """Packed rows that hold what the segments of an example begin with, their *shared prompt*, once.

    A row reads `prompt chosen rejected`; the *un-shared row* of U columns, `prompt chosen prompt rejected`, exists in attention
    only. Layers do the rest of their work on L columns. E is the number of segments of an example.
    """

    tokens: Array
    """int32 [B, L] token ids; 0 where padded."""
    segments: Array
    """int32 [B, L]; 0 is padding; a shared prompt has the number of the first segment that it begins."""
    positions: Array
    """int32 [B, L] position inside the segment: those of every answer continue the prompt's."""
    targets: Array
    """bool [B, L]; whether the token is to be predicted; false in shared prompts."""
    source: Array
    """int32 [B, L]: column whose hidden state predicts the token: the one before it in its segment; of a first token, its own."""
    unshared_columns: Array
    """int32 [B, U]: column of the row that each column of the un-shared row copies; any column where padded."""
    unshared_segments: Array
    """int32 [B, U]: segment of each column of the un-shared row; 0 is padding."""
    copies: Array
    """int32 [B, E * L]: columns of the un-shared row that copy each column of the row, E blocks of L; -1 for no such copy. The
    first block is -1 for padding only."""

    @property
    def rows(self) -> "SharedTokenBatch":
        """Itself, so that every batch has `rows`."""
        return self


type Rows = TokenBatch | SharedTokenBatch


class PairBatch(NamedTuple):
    """Rows of preference pairs: in a row, segments 2k+1 and 2k+2 are chosen and rejected of its k-th pair (`split`)."""

    rows: Rows
    reference: Array
    """float32 [B, S]: the frozen reference's log-prob sum of each segment; 0 in unused slots."""
    present: Array
    """bool [B, P]: whether the row has a k-th pair."""

    @staticmethod
    def split(values: Array) -> tuple[Array, Array]:
        """The values of chosen and rejected answers, each [B, P], from one value per segment, [B, S]."""
        return values[:, 0::2], values[:, 1::2]


def field_names(batch_type: type[Batch]) -> tuple[str, ...]:
    """The fields of a batch type in their order."""
    return tuple(batch_type.__annotations__)


def make_batch[B: Batch](batch_type: type[B], arrays: Mapping[str, Array]) -> B:
    """A batch from arrays by field name: those of the rows' type become `rows`, the others are further fields of the type."""
    rows_type = SharedTokenBatch if arrays.keys() >= set(SharedTokenBatch._fields) else TokenBatch
    rows = rows_type(*(arrays[name] for name in rows_type._fields))
    fields = {**arrays, "rows": rows}
    return batch_type(*(fields[name] for name in field_names(batch_type)))


def batch_arrays(batch: Batch) -> dict[str, Array]:
    """All arrays of a batch by field name, as `make_batch` takes them."""
    fields = {name: getattr(batch, name) for name in field_names(type(batch)) if name != "rows"}
    return {**batch.rows._asdict(), **fields}


def empty_rows(count: int, length: int) -> TokenBatch:
    """Rows of padding only, as numpy arrays of shape [count, length]."""
    zeros = [np.zeros((count, length), np.int32) for _ in range(3)]
    return TokenBatch(zeros[0], zeros[1], zeros[2], np.zeros((count, length), np.bool_))


def empty_shared_rows(count: int, length: int, unshared_length: int, segments: int) -> SharedTokenBatch:
    """Rows of padding only with shared prompts, as numpy arrays.

    Args:
        count: B.
        length: L.
        unshared_length: U, at least L.
        segments: E, segments of an example.
    """
    # Padding copies columns in turn instead of one: gathers of a device then do not all read one address.
    columns = np.arange(unshared_length, dtype=np.int32) % length
    return SharedTokenBatch(
        *empty_rows(count, length),
        source=np.tile(np.arange(length, dtype=np.int32), (count, 1)),
        unshared_columns=np.tile(columns, (count, 1)),
        unshared_segments=np.zeros((count, unshared_length), np.int32),
        copies=np.full((count, segments * length), -1, np.int32),
    )
