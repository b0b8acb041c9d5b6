"""Plan + examples -> numpy batches, read ahead by grain, whose iterator state is part of every checkpoint."""

from typing import Any, SupportsIndex

import grain
import numpy as np

from zephyr_jax.batch import PairBatch, TokenBatch, empty_rows
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.pack import Plan

type Batch = TokenBatch | PairBatch


class BatchSource:
    """Random access to the batches of a plan; each process lays out only its own columns of rows.

    Batches are [A, B, L] with B the rows in `rows` (a slice of a microbatch's rows); conversations give a TokenBatch,
    pairs a PairBatch with the reference's log-prob sums from `reference` (float32 [N, 2], zeros when None).
    """

    def __init__(self, examples: Examples, plan: Plan, rows: slice, reference: np.ndarray | None = None):
        self._examples, self._plan, self._rows = examples, plan, rows
        self._reference = np.zeros((len(examples), 2), np.float32) if reference is None else reference

    def __len__(self) -> int:
        return len(self._plan.steps)

    def __getitem__(self, index: SupportsIndex) -> Batch:
        step = self._plan.steps[int(index)]
        size = self._plan.microbatch_rows
        parts = [step[start * size : (start + 1) * size] for start in range(self._plan.microbatches)]
        mine = [[*part, *[()] * (size - len(part))][self._rows] for part in parts]
        laid = [self._lay(rows) for rows in mine]
        return _stack(laid)

    def _lay(self, rows: list[tuple[int, ...]]) -> Batch:
        out = empty_rows(len(rows), self._plan.row_length)
        each, most = self._examples.segments_per_example, self._plan.examples_per_row
        reference = np.zeros((len(rows), each * most), np.float32)
        present = np.zeros((len(rows), most), np.bool_)
        for line, row in enumerate(rows):
            cursor, number = 0, 0
            for slot, example in enumerate(row):
                present[line, slot] = True
                reference[line, slot * each : (slot + 1) * each] = self._reference[example][:each]
                for segment in self._examples[example]:
                    number += 1
                    span = slice(cursor, cursor + len(segment))
                    out.tokens[line, span] = segment.tokens
                    out.segments[line, span] = number
                    out.positions[line, span] = np.arange(len(segment))
                    out.targets[line, span] = segment.targets
                    cursor = span.stop
        return out if each == 1 else PairBatch(out, reference, present)


class Numbered:
    """The same batches, each with its place in the plan."""

    def __init__(self, source: BatchSource):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> tuple[int, Batch]:
        return int(index), self._source[index]


def _stack(parts: list[Any]) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.stack(parts)
    return type(parts[0])(*(_stack(list(field)) for field in zip(*parts, strict=True)))


def iterate(source: BatchSource | Numbered, threads: int = 2, ahead: int = 4) -> grain.DatasetIterator:
    """Batches in order, prepared by `threads` while the device computes; `get_state` / `set_state` resume exactly."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
