"""The plan: which examples share a row, which rows share a step, for every epoch, from lengths and a seed alone.

Every host computes the same plan, so the global order is a property of the seed and never of the number of hosts.
Rows hold whole examples (best-fit: the longest left goes into the fullest row that still has room for it).
"""

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions

type PackedRow = tuple[int, ...]
"""Indices of the examples that share a row."""
type PackedStep = tuple[PackedRow, ...]


@dataclass(frozen=True)
class PackingPlan:
    """Steps of a whole run (or one pass of evaluation). A step is rows; a row is example indices, left to right."""

    steps: tuple[PackedStep, ...]
    row_length: int
    microbatches: int
    """Microbatches of the largest step; smaller steps are padded with empty rows."""
    microbatch_rows: int
    examples_per_row: int
    """Most examples in one row."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """[A, B, L] of every batch."""
        return self.microbatches, self.microbatch_rows, self.row_length


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of positions into `lengths` such that each row's lengths sum to at most `capacity`.

    Best-fit decreasing: within 11/9 of the fewest rows possible plus one, and close to it at real lengths. Ties are
    broken by position, so the result depends on the lengths only.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room left, row), sorted: the first with enough room fits best
    for position in np.argsort(-lengths, kind="stable"):
        size = int(lengths[position])
        slot = bisect_left(open_rows, (size, 0))
        if slot == len(open_rows):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room, row = open_rows.pop(slot)
        rows[row].append(int(position))
        insort(open_rows, (room - size, row))
    return rows


def plan_training(
    lengths: np.ndarray, data: DataOptions, batch: BatchOptions, epochs: int, max_steps: int | None, seed: int
) -> PackingPlan:
    """Steps of `epochs` passes, each shuffled by (seed, epoch); every example appears once in each epoch.

    With `batch.rows` every step has that many rows, with `batch.examples` that many examples; the last step of an epoch may
    have fewer.
    """
    steps: list[PackedStep] = []
    for epoch in range(epochs):
        if max_steps is not None and len(steps) >= max_steps:
            break
        steps += _epoch_steps(np.random.default_rng([seed, epoch]), lengths, data, batch)
    return _plan(steps[:max_steps], data.row_length, batch.microbatch_rows or batch.rows or 1)


def plan_evaluation(lengths: np.ndarray, data: DataOptions, microbatch_rows: int) -> PackingPlan:
    """One pass over everything in source order, one microbatch a step."""
    rows = _pack(np.arange(len(lengths)), lengths, data)
    return _plan(_chunks(rows, microbatch_rows), data.row_length, microbatch_rows)


def _epoch_steps(
    rng: np.random.Generator, lengths: np.ndarray, data: DataOptions, batch: BatchOptions
) -> list[PackedStep]:
    order = rng.permutation(len(lengths))
    if batch.examples is not None:
        return [tuple(_pack(group, lengths, data)) for group in _cut(order, batch.examples)]
    rows: list[PackedRow] = []
    for window in _cut(order, data.packing_window):
        packed = _pack(window, lengths, data)
        rows += [packed[index] for index in rng.permutation(len(packed))]
    return _chunks(rows, batch.rows or len(rows))


def _pack(group: np.ndarray, lengths: np.ndarray, data: DataOptions) -> list[PackedRow]:
    if not data.packing:
        return [(int(index),) for index in group]
    return [tuple(int(group[at]) for at in sorted(row)) for row in best_fit(lengths[group], data.row_length)]


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _chunks(rows: list[PackedRow], size: int) -> list[PackedStep]:
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]


def _plan(steps: list[PackedStep], row_length: int, microbatch_rows: int) -> PackingPlan:
    most_rows = max(len(step) for step in steps)
    most_examples = max(len(row) for step in steps for row in step)
    return PackingPlan(tuple(steps), row_length, -(-most_rows // microbatch_rows), microbatch_rows, most_examples)
