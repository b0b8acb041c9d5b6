"""Plan + examples -> numpy batches, read ahead by grain, whose iterator state is part of every checkpoint."""

from collections.abc import Mapping
from typing import SupportsIndex

import grain
import numpy as np

from zephyr_jax.batch import Array, Batch, TokenBatch, empty_rows, empty_shared_rows, field_names, make_batch
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.pack import PackingPlan
from zephyr_jax.data.shared_prompt import lay_out_shared


class BatchSource[B: Batch]:
    """Random access to the batches of a plan; each process lays out only its own rows of every microbatch.

    Args:
        examples: Tokens, and columns with one or more values per example.
        plan: Which examples share a row, and which rows a step.
        rows: The rows of a microbatch to lay out, a slice of `plan.microbatch_rows`.
        batch_type: The batches' type; its fields name the columns to lay out.
        columns: Further columns by name, [N] or [N, segments per example].
    """

    def __init__(
        self,
        examples: Examples,
        plan: PackingPlan,
        rows: slice,
        batch_type: type[B],
        columns: Mapping[str, np.ndarray] | None = None,
    ):
        self._examples, self._plan, self._rows, self._batch_type = examples, plan, rows, batch_type
        fields = {**examples.columns, **(columns or {})}
        names = field_names(batch_type)
        self._columns = {name: fields[name].reshape(len(examples), -1) for name in names if name in fields}

    def __len__(self) -> int:
        return len(self._plan.steps)

    def __getitem__(self, index: SupportsIndex) -> B:
        """The batch of a step: every array is [A, B, ...] with B the rows of this process."""
        step, size = self._plan.steps[int(index)], self._plan.microbatch_rows
        microbatches = [step[start * size : (start + 1) * size] for start in range(self._plan.microbatches)]
        rows = [row for part in microbatches for row in [*part, *[()] * (size - len(part))][self._rows]]
        arrays = self._lay_out(rows)
        return make_batch(
            self._batch_type,
            {name: array.reshape(len(microbatches), -1, array.shape[-1]) for name, array in arrays.items()},
        )

    def _lay_out(self, rows: list[tuple[int, ...]]) -> dict[str, Array]:
        """Arrays by field name, each with one line per row."""
        slots = self._plan.examples_per_row
        present = np.zeros((len(rows), slots), np.bool_)
        columns = {
            name: np.zeros((len(rows), slots * values.shape[1]), values.dtype) for name, values in self._columns.items()
        }
        for line, row in enumerate(rows):
            present[line, : len(row)] = True
            for name, values in self._columns.items():
                columns[name][line, : len(row) * values.shape[1]] = values[list(row)].reshape(-1)
        return {**self._lay_out_tokens(rows), "present": present, **columns}

    def _lay_out_tokens(self, rows: list[tuple[int, ...]]) -> dict[str, Array]:
        """The arrays of `TokenBatch` or, where the plan shares prompts, of `SharedTokenBatch`."""
        length, unshared = self._plan.row_length, self._plan.unshared_length
        if unshared is not None:
            shared = empty_shared_rows(len(rows), length, unshared, self._examples.segments_per_example)
            for line, row in enumerate(rows):
                lay_out_shared(shared, line, [self._examples[example] for example in row])
            return shared._asdict()
        tokens = empty_rows(len(rows), length)
        for line, row in enumerate(rows):
            lay_out_segments(tokens, line, [segment for example in row for segment in self._examples[example]])
        return tokens._asdict()


def lay_out_segments(rows: TokenBatch, line: int, segments: list[Segment]) -> None:
    """Write the segments, left to right, into line `line` of rows of padding."""
    start = 0
    for number, segment in enumerate(segments, 1):
        span = slice(start, start + len(segment))
        rows.tokens[line, span] = segment.tokens
        rows.segments[line, span] = number
        rows.positions[line, span] = np.arange(len(segment))
        rows.targets[line, span] = segment.targets
        start = span.stop


def iterate[B: Batch](source: BatchSource[B], threads: int = 2, ahead: int = 4) -> grain.DatasetIterator[tuple[int, B]]:
    """(index, batch) of every step in order, prepared by `threads` while the device computes.

    `get_state` / `set_state` of the iterator resume exactly, with a state that goes into JSON.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    batches = grain.MapDataset.source(source).map_with_index(lambda index, batch: (index, batch))
    return iter(batches.to_iter_dataset(options))
