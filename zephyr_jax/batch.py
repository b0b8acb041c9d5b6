"""The array contract between data and model. Letters: B rows, L row length, S segments of a row, A microbatches.

A *row* is a fixed-length line of tokens holding whole *segments* (one conversation each) side by side. Masks are
data: they are made together with the tokens and never inferred from token ids, so a padding id may equal EOS.
"""

from typing import Any, NamedTuple

import numpy as np

type Array = Any


class TokenBatch(NamedTuple):
    """Packed rows. Every field is [B, L] (or [A, B, L] when microbatches are stacked)."""

    tokens: Array
    """int32 token ids; 0 where padded."""
    segments: Array
    """int32; 0 is padding, 1, 2, ... number the segments of a row from left to right."""
    positions: Array
    """int32 position inside the segment, restarting at 0."""
    targets: Array
    """bool; targets[b, t] says that token t itself is to be predicted (the shift lives in `objective.logprob`)."""


class PairBatch(NamedTuple):
    """Rows of preference pairs: in a row, segments 2k+1 and 2k+2 are chosen and rejected of its k-th pair."""

    rows: TokenBatch
    reference: Array
    """float32 [B, S]: the frozen reference's log-prob sum of each segment; 0 where there is none."""
    present: Array
    """bool [B, S // 2]: whether the row has a k-th pair."""


def empty_rows(count: int, length: int) -> TokenBatch:
    """Rows of padding only, as numpy arrays of shape [count, length]."""
    zeros = [np.zeros((count, length), np.int32) for _ in range(3)]
    return TokenBatch(zeros[0], zeros[1], zeros[2], np.zeros((count, length), np.bool_))


def token_rows(batch: TokenBatch | PairBatch) -> TokenBatch:
    """The packed rows of either kind of batch."""
    return batch.rows if isinstance(batch, PairBatch) else batch
