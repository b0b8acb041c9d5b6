"""The plan: which examples share a row, which rows share a step, for every epoch, from lengths and a seed alone.

Every host computes the same plan, so the global order is a property of the seed and never of the number of hosts.
Rows hold whole examples (best-fit: the longest left goes into the fullest row that still has room for it). Where prompts are
shared, a row has a second capacity: that of the un-shared row of attention.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.shared_prompt import UnsharedRows

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
    unshared_length: int | None = None
    """Columns of the un-shared row of attention, where rows share prompts."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """[A, B, L] of every batch."""
        return self.microbatches, self.microbatch_rows, self.row_length


def best_fit(lengths: np.ndarray, capacity: int, unshared: UnsharedRows | None = None) -> list[list[int]]:
    """Rows of positions into `lengths`, ascending, such that each row's lengths sum to at most `capacity`.

    Best-fit decreasing: within 11/9 of the fewest rows possible plus one, and close to it at real lengths. Ties are
    broken by position, so the result depends on the lengths only.

    Args:
        lengths: int64 [N]: what each example takes of a row.
        capacity: What a row holds.
        unshared: The same for un-shared rows; every example must fit into an empty one.
    """
    if not len(lengths):
        return []
    order = np.argsort(-lengths, kind="stable")
    sizes = lengths[order].tolist()
    row_of = np.empty(len(lengths), np.int64)
    if unshared is None:
        row_of[order] = _fit(sizes, capacity)
    else:
        row_of[order] = _fit_both(sizes, unshared.lengths[order].tolist(), capacity, unshared.capacity)
    positions = np.argsort(row_of, kind="stable").tolist()
    ends = np.cumsum(np.bincount(row_of)).tolist()
    return [positions[start:end] for start, end in pairwise([0, *ends])]


def _fit(sizes: list[int], capacity: int) -> list[int]:
    """The row of each size, which come in descending order.

    Rows with room are kept by that room. Few distinct amounts of room exist, so a search is a bisection among them, and its time
    does not grow with the number of rows. This loop and that of `_fit_both` bound the planning of large data sets.
    """
    smallest = sizes[-1]
    rooms: list[int] = []  # of rows that may take more, ascending
    rows_of: defaultdict[int, list[int]] = defaultdict(
        list
    )  # by room, each a heap: the first row of equal ones is taken
    num_rows = 0
    assigned = []
    for size in sizes:
        slot = bisect_left(rooms, size)
        if slot == len(rooms):
            room, row = capacity, num_rows
            num_rows += 1
        else:
            room = rooms[slot]
            rows = rows_of[room]
            row = heappop(rows)
            if not rows:
                del rooms[slot]
        assigned.append(row)
        room -= size
        if room >= smallest:  # else nothing fits: searches need not pass it
            rows = rows_of[room]
            if not rows:
                insort(rooms, room)
            heappush(rows, row)
    return assigned


def _fit_both(sizes: list[int], others: list[int], capacity: int, other_capacity: int) -> list[int]:
    """`_fit` with a second size of each example and a second capacity of each row."""
    smallest, smallest_other = sizes[-1], min(others)
    rooms: list[int] = []
    rows_of: defaultdict[int, list[int]] = defaultdict(list)
    other_room: list[int] = []  # of each row
    assigned = []
    for size, other in zip(sizes, others, strict=True):
        for slot in range(bisect_left(rooms, size), len(rooms)):
            room = rooms[slot]
            rows = rows_of[room]
            if other_room[rows[0]] >= other:
                row = heappop(rows)
            elif len(rows) == 1 or (row := _pop_later(rows, other_room, other)) < 0:
                continue
            if not rows:
                del rooms[slot]
            break
        else:
            room, row = capacity, len(other_room)
            other_room.append(other_capacity)
        assigned.append(row)
        room -= size
        other_room[row] -= other
        if room >= smallest and other_room[row] >= smallest_other:
            rows = rows_of[room]
            if not rows:
                insort(rooms, room)
            heappush(rows, row)
    return assigned


def _pop_later(rows: list[int], other_room: list[int], other: int) -> int:
    """Take the first row that has `other_room` for `other` off a heap of rows; -1: none has."""
    fits = [row for row in rows if other_room[row] >= other]
    if not fits:
        return -1
    row = min(fits)
    rows.remove(row)
    heapify(rows)
    return row


def plan_training(
    lengths: np.ndarray,
    data: DataOptions,
    batch: BatchOptions,
    epochs: int,
    max_steps: int | None,
    seed: int,
    unshared: UnsharedRows | None = None,
) -> PackingPlan:
    """Steps of `epochs` passes, each shuffled by (seed, epoch); every example appears once in each epoch.

    With `batch.rows` every step has that many rows, with `batch.examples` that many examples; the last step of an epoch may
    have fewer.

    Args:
        lengths: int64 [N]: tokens that each example takes of a row.
        data: Row length and packing.
        batch: Size of a step and of its microbatches.
        epochs: Number of passes.
        max_steps: Maximum number of steps; None: all.
        seed: Data seed.
        unshared: What examples take of un-shared rows, where rows share prompts (`packed_lengths`).
    """
    steps: list[PackedStep] = []
    for epoch in range(epochs):
        if max_steps is not None and len(steps) >= max_steps:
            break
        steps += _epoch_steps(np.random.default_rng([seed, epoch]), lengths, unshared, data, batch)
    return _plan(steps[:max_steps], data.row_length, batch.microbatch_rows or batch.rows or 1, unshared)


def plan_evaluation(
    lengths: np.ndarray, data: DataOptions, microbatch_rows: int, unshared: UnsharedRows | None = None
) -> PackingPlan:
    """One pass over everything in source order, one microbatch a step; arguments as those of `plan_training`."""
    rows = _pack(np.arange(len(lengths)), lengths, unshared, data)
    return _plan(_chunks(rows, microbatch_rows), data.row_length, microbatch_rows, unshared)


def _epoch_steps(
    rng: np.random.Generator,
    lengths: np.ndarray,
    unshared: UnsharedRows | None,
    data: DataOptions,
    batch: BatchOptions,
) -> list[PackedStep]:
    order = rng.permutation(len(lengths))
    if batch.examples is not None:
        return [tuple(_pack(group, lengths, unshared, data)) for group in _cut(order, batch.examples)]
    rows: list[PackedRow] = []
    for window in _cut(order, data.packing_window):
        packed = _pack(window, lengths, unshared, data)
        rows += [packed[index] for index in rng.permutation(len(packed))]
    return _chunks(rows, batch.rows or len(rows))


def _pack(group: np.ndarray, lengths: np.ndarray, unshared: UnsharedRows | None, data: DataOptions) -> list[PackedRow]:
    if not data.packing:
        return [(index,) for index in group.tolist()]
    of_group = replace(unshared, lengths=unshared.lengths[group]) if unshared else None
    rows = best_fit(lengths[group], data.row_length, of_group)
    examples = group.tolist()
    return [tuple([examples[position] for position in row]) for row in rows]


def _cut(order: np.ndarray, size: int) -> list[np.ndarray]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _chunks(rows: list[PackedRow], size: int) -> list[PackedStep]:
    return [tuple(rows[start : start + size]) for start in range(0, len(rows), size)]


def _plan(steps: list[PackedStep], row_length: int, microbatch_rows: int, unshared: UnsharedRows | None) -> PackingPlan:
    most_rows = max(len(step) for step in steps)
    most_examples = max(len(row) for step in steps for row in step)
    return PackingPlan(
        steps=tuple(steps),
        row_length=row_length,
        microbatches=-(-most_rows // microbatch_rows),
        microbatch_rows=microbatch_rows,
        examples_per_row=most_examples,
        unshared_length=unshared.capacity if unshared else None,
    )
