"""Batches: rows as planned, the same on any number of processes, resumed exactly."""

import json
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import numpy as np
import pytest

from zephyr_jax.batch import Batch, PairBatch, TokenBatch, empty_rows
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.loader import BatchSource, iterate
from zephyr_jax.data.pack import PackingPlan, plan_evaluation, plan_training

LENGTH = 48


@dataclass(frozen=True)
class Made:
    """Examples held in memory, with what the loader asks of `Examples`."""

    examples: list[list[Segment]]

    columns: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def segments_per_example(self) -> int:
        return len(self.examples[0])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([sum(map(len, segments)) for segments in self.examples])

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> list[Segment]:
        return self.examples[int(index)]


def made(count: int, segments_per_example: int, seed: int = 0) -> Examples:
    random = np.random.default_rng(seed)

    def segment() -> Segment:
        length = int(random.integers(2, LENGTH // (2 * segments_per_example)))
        targets = random.random(length) < 0.5
        targets[0] = False
        return Segment(random.integers(3, 1000, length).astype(np.int32), targets)

    return cast(Examples, Made([[segment() for _ in range(segments_per_example)] for _ in range(count)]))


def plan_of(examples: Examples, batch: BatchOptions | None = None) -> PackingPlan:
    data = DataOptions(max_length=LENGTH, row_length=LENGTH, packing_window=16)
    return plan_training(examples.lengths, data, batch or BatchOptions(rows=4, microbatch_rows=2), 1, None, 3)


def batches_of(examples: Examples, plan: PackingPlan, rows: slice, sums: np.ndarray | None = None) -> BatchSource[Any]:
    """The batches that SFT or DPO would train on."""
    if examples.segments_per_example == 1:
        return BatchSource(examples, plan, rows, TokenBatch)
    columns = {"reference": np.zeros((len(examples), 2), np.float32) if sums is None else sums}
    return BatchSource(examples, plan, rows, PairBatch, columns)


def source_of(examples: Examples, rows: slice = slice(0, 2), sums: np.ndarray | None = None) -> BatchSource[Any]:
    return batches_of(examples, plan_of(examples), rows, sums)


def equal(one: Batch, other: Batch) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, other))


def lines(batch: Batch) -> list[TokenBatch]:
    """Every row of a batch [A, B, L], first to last."""
    rows = batch.rows
    microbatches, count, _ = rows.tokens.shape
    return [TokenBatch(*(field[a, b] for field in rows)) for a in range(microbatches) for b in range(count)]


# ---- rows ----


@pytest.mark.parametrize("each", [1, 2])
def test_rows_hold_the_planned_examples_and_nothing_else(each: int) -> None:
    """Law: a row is its examples' segments, left to right, then zeros; short steps end with empty rows."""
    examples = made(30, each)
    plan, source = plan_of(examples), source_of(examples)
    assert len(source) == len(plan.steps)
    for index, step in enumerate(plan.steps):
        found = lines(source[index])
        assert len(found) == plan.microbatches * plan.microbatch_rows
        for line, row in zip(found, [*step, *[()] * (len(found) - len(step))], strict=True):
            segments = [segment for example in row for segment in examples[example]]
            used = sum(map(len, segments))
            tokens = [token for segment in segments for token in segment.tokens.tolist()]
            targets = [target for segment in segments for target in segment.targets.tolist()]
            assert line.tokens[:used].tolist() == tokens
            assert line.targets[:used].tolist() == targets
            for array in line:
                assert not array[used:].any()


@pytest.mark.parametrize("each", [1, 2])
def test_segments_count_from_one_and_positions_restart(each: int) -> None:
    """Law: segments are 1, 2, ... from left to right; positions restart in each; no first is a target."""
    examples = made(30, each)
    source = source_of(examples)
    for index in range(len(source)):
        for line in lines(source[index]):
            starts = np.flatnonzero(np.diff(line.segments, prepend=0) != 0)
            starts = starts[line.segments[starts] > 0]
            assert line.segments[starts].tolist() == list(range(1, len(starts) + 1))
            for number, start in enumerate(starts, 1):
                length = int((line.segments == number).sum())
                assert line.positions[start : start + length].tolist() == list(range(length))
                assert not line.targets[start]


def test_dtypes_are_those_of_the_contract() -> None:
    """Law: int32 tokens, segments and positions, bool targets; the shape is [A, B, L] of the plan."""
    examples = made(9, 1)
    batch = source_of(examples)[0]
    assert isinstance(batch, TokenBatch)
    assert [field.dtype for field in batch] == [np.int32, np.int32, np.int32, np.bool_]
    assert {field.shape for field in batch} == {plan_of(examples).shape}


def test_the_two_answers_of_a_pair_lie_side_by_side() -> None:
    """Law: segments 2k+1, 2k+2 are chosen and rejected of a row's k-th pair; their sums are at 2k, 2k+1."""
    examples = made(24, 2)
    sums = -np.arange(48, dtype=np.float32).reshape(24, 2) - 1
    plan, source = plan_of(examples), source_of(examples, sums=sums)
    for index, step in enumerate(plan.steps):
        batch = source[index]
        assert isinstance(batch, PairBatch)
        assert batch.reference.shape == (*plan.shape[:2], 2 * plan.examples_per_row)
        assert batch.present.shape == (*plan.shape[:2], plan.examples_per_row)
        references = batch.reference.reshape(-1, 2 * plan.examples_per_row)
        present = batch.present.reshape(-1, plan.examples_per_row)
        assert present.sum() == sum(map(len, step))
        for line, row, reference, there in zip(lines(batch), step, references, present, strict=False):
            for slot, example in enumerate(row):
                assert there[slot]
                assert reference[2 * slot : 2 * slot + 2].tolist() == sums[example].tolist()
                for side, segment in enumerate(examples[example]):
                    where = line.segments == 2 * slot + side + 1
                    assert line.tokens[where].tolist() == segment.tokens.tolist()
            assert not there[len(row) :].any()
            assert not reference[2 * len(row) :].any()


def test_a_pair_without_a_reference_has_zeros() -> None:
    """Law: before the reference pass the sums are 0, not missing."""
    batch = source_of(made(8, 2))[0]
    assert isinstance(batch, PairBatch)
    assert not batch.reference.any()
    assert batch.reference.dtype == np.float32


def test_empty_rows_are_padding() -> None:
    """Law: a row of padding has segment 0 everywhere and no target."""
    rows = empty_rows(2, 5)
    assert [field.shape for field in rows] == [(2, 5)] * 4
    assert not any(field.any() for field in rows)


# ---- processes ----


@pytest.mark.parametrize("each", [1, 2])
@pytest.mark.parametrize("parts", [[slice(0, 1), slice(1, 4)], [slice(i, i + 1) for i in range(4)]])
def test_the_parts_of_all_processes_are_the_whole(each: int, parts: list[slice]) -> None:
    """Law: each process lays out its own rows of a microbatch; side by side they are what one would make."""
    examples = made(40, each)
    plan = plan_of(examples, BatchOptions(rows=8, microbatch_rows=4))
    sums = np.random.default_rng(1).normal(size=(40, 2)).astype(np.float32)
    whole = batches_of(examples, plan, slice(0, 4), sums)
    shares = [batches_of(examples, plan, part, sums) for part in parts]
    for index in range(len(plan.steps)):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *(share[index] for share in shares))
        assert equal(joined, whole[index])


def test_batches_by_examples_are_padded_with_empty_rows() -> None:
    """Law: with `batch.examples` the number of rows varies; what a step lacks of the shape is padding."""
    examples = made(25, 1)
    plan = plan_of(examples, BatchOptions(examples=10, microbatch_rows=2))
    source = batches_of(examples, plan, slice(0, 2))
    for index, step in enumerate(plan.steps):
        found = lines(source[index])
        assert [bool(line.segments.any()) for line in found] == [True] * len(step) + [False] * (len(found) - len(step))


# ---- iteration ----


def test_iteration_is_the_plan_in_order() -> None:
    """Law: reading ahead in threads changes neither the order nor the content of batches."""
    source = source_of(made(30, 1))
    batches = list(iterate(source))
    assert len(batches) == len(source)
    assert [index for index, _ in batches] == list(range(len(source)))
    assert all(equal(batch, source[index]) for index, batch in batches)


@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_resumed_iterator_goes_on_with_the_very_next_batch(done: int) -> None:
    """Law: the state after k batches, written as JSON, makes a new iterator give batch k, k+1, ..."""
    source = source_of(made(40, 2))
    first = iterate(source)
    for _ in range(done):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    rest = list(first)
    second = iterate(source)
    second.set_state(state)
    resumed = list(second)
    assert len(resumed) == len(source) - done
    assert [index for index, _ in resumed] == [index for index, _ in rest]
    assert all(equal(one, other) for (_, one), (_, other) in zip(rest, resumed, strict=True))


def test_a_state_is_that_of_the_batches_taken_not_of_those_read_ahead() -> None:
    """Law: batches prepared ahead of time but not yet used are given again after a resume."""
    source = source_of(made(40, 1))
    slow = iterate(source, threads=2, ahead=8)
    next(slow)
    again = iterate(source, threads=1, ahead=1)
    again.set_state(slow.get_state())
    index, batch = next(again)
    assert index == 1 and equal(batch, source[1])


def test_evaluation_batches_cover_the_plan() -> None:
    """Law: one pass of evaluation holds every token once."""
    examples = made(20, 1)
    plan = plan_evaluation(examples.lengths, DataOptions(max_length=LENGTH, row_length=LENGTH), 4)
    batches = list(iterate(batches_of(examples, plan, slice(0, 4))))
    assert sum(int((batch.rows.segments > 0).sum()) for _, batch in batches) == examples.lengths.sum()
