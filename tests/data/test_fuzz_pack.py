"""Random lengths, batches and pairs: every example once an epoch, in rows that hold it, whole and in its place."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyr_jax.batch import PairBatch, TokenBatch
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.examples import Examples
from zephyr_jax.data.loader import BatchSource
from zephyr_jax.data.pack import PackingPlan, plan_evaluation, plan_training

CI = settings(max_examples=50, deadline=None, derandomize=True)
by_rows = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(
    lambda sizes: BatchOptions(rows=sizes[0] * sizes[1], microbatch_rows=sizes[1])
)
by_examples = st.builds(BatchOptions, examples=st.integers(1, 20), microbatch_rows=st.integers(1, 6))


@dataclass(frozen=True)
class Made:
    """Examples held in memory, with what the loader asks of `Examples`; every token says whose and where it is."""

    sizes: list[list[int]]
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def segments_per_example(self) -> int:
        return len(self.sizes[0])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([sum(sizes) for sizes in self.sizes])

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> list[Segment]:
        return [
            Segment(np.arange(size, dtype=np.int32) + 1000 * (2 * int(index) + side + 1), np.arange(size) % 3 == 2)
            for side, size in enumerate(self.sizes[int(index)])
        ]


@st.composite
def runs(draw: st.DrawFn, each: int) -> tuple[Made, DataOptions, BatchOptions, int, int]:
    """Examples of `each` segments, settings under which they fit, epochs and a seed."""
    capacity = draw(st.integers(each, 60))
    size = st.integers(1, capacity // each)
    sizes = draw(st.lists(st.lists(size, min_size=each, max_size=each), min_size=1, max_size=50))
    data = DataOptions(
        max_length=capacity, row_length=capacity, packing=draw(st.booleans()), packing_window=draw(st.integers(1, 60))
    )
    return (
        Made(sizes),
        data,
        draw(st.one_of(by_rows, by_examples)),
        draw(st.integers(1, 3)),
        draw(st.integers(0, 2**63)),
    )


def planned(run: tuple[Made, DataOptions, BatchOptions, int, int], max_steps: int | None = None) -> PackingPlan:
    examples, data, batch, epochs, seed = run
    return plan_training(examples.lengths, data, batch, epochs, max_steps, seed)


def order(plan: PackingPlan) -> list[int]:
    return [example for step in plan.steps for row in step for example in row]


@CI
@given(st.one_of(runs(1), runs(2)))
def test_every_example_comes_once_an_epoch_in_a_row_that_holds_it(run: Any) -> None:
    """Law: each epoch is a permutation; no row is empty or over capacity; batches are as large as was asked for."""
    examples, data, batch, epochs, _ = run
    plan, count = planned(run), len(examples)
    found = order(plan)
    for epoch in range(epochs):
        assert Counter(found[epoch * count : (epoch + 1) * count]) == dict.fromkeys(range(count), 1)
    assert len(found) == epochs * count
    for step in plan.steps:
        assert all(0 < examples.lengths[list(row)].sum() <= data.row_length for row in step)
        assert len(step) <= plan.microbatches * plan.microbatch_rows
        assert batch.rows is None or len(step) <= batch.rows
        assert batch.examples is None or sum(map(len, step)) <= batch.examples
    assert data.packing or all(len(row) == 1 for step in plan.steps for row in step)


@CI
@given(st.one_of(runs(1), runs(2)), st.integers(1, 20))
def test_a_shorter_run_is_the_start_of_the_longer_one(run: Any, most: int) -> None:
    """Law: `max_steps` takes steps off the end, and the same seed gives the same plan."""
    whole = planned(run)
    assert planned(run) == whole
    assert planned(run, most).steps == whole.steps[:most]


@CI
@given(st.one_of(runs(1), runs(2)), st.integers(1, 6))
def test_an_evaluation_sees_each_example_once(run: Any, rows: int) -> None:
    """Law: one pass, every example in it once, one microbatch a step."""
    examples, data, *_ = run
    plan = plan_evaluation(examples.lengths, data, rows)
    assert sorted(order(plan)) == list(range(len(examples)))
    assert plan.microbatches == 1
    assert all(examples.lengths[list(row)].sum() <= data.row_length for step in plan.steps for row in step)


@pytest.mark.parametrize("each", [1, 2])
@CI
@given(st.data())
def test_rows_hold_whole_segments_in_their_places(each: int, data: st.DataObject) -> None:
    """Law: segments count from 1, positions restart, the rest is zero, and the two sides of a pair are neighbours."""
    run = data.draw(runs(each))
    examples, plan = run[0], planned(run)
    reference = -np.arange(2 * len(examples), dtype=np.float32).reshape(-1, 2) - 1
    whole, batch_type = slice(0, plan.microbatch_rows), PairBatch if each == 2 else TokenBatch
    source: BatchSource[Any] = BatchSource(cast(Examples, examples), plan, whole, batch_type, {"reference": reference})
    for step, batch in zip(plan.steps, (source[index] for index in range(len(source))), strict=True):
        rows = [field.reshape(-1, plan.row_length) for field in batch.rows]
        assert len(rows[0]) == plan.microbatches * plan.microbatch_rows
        for line, row in enumerate([*step, *[()] * (len(rows[0]) - len(step))]):
            tokens, segments, positions, targets = (field[line] for field in rows)
            said = [segment for example in row for segment in examples[example]]
            used = sum(map(len, said))
            assert tokens[:used].tolist() == [token for segment in said for token in segment.tokens.tolist()]
            assert targets[:used].tolist() == [target for segment in said for target in segment.targets.tolist()]
            assert segments[:used].tolist() == [n for n, segment in enumerate(said, 1) for _ in range(len(segment))]
            assert positions[:used].tolist() == [at for segment in said for at in range(len(segment))]
            assert not any(field[line][used:].any() for field in rows)
        if isinstance(batch, PairBatch):
            _pairs_have_their_references(batch, plan, step, reference)


def _pairs_have_their_references(batch: PairBatch, plan: PackingPlan, step: Any, reference: np.ndarray) -> None:
    sums = batch.reference.reshape(-1, plan.examples_per_row, 2)
    present = batch.present.reshape(-1, plan.examples_per_row)
    for line, row in enumerate([*step, *[()] * (len(sums) - len(step))]):
        assert present[line].tolist() == [slot < len(row) for slot in range(plan.examples_per_row)]
        assert sums[line, : len(row)].tolist() == reference[list(row)].tolist()
        assert not sums[line, len(row) :].any()
