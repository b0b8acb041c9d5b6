"""Packing and the plan: nothing lost, nothing twice, little padding."""

import math
from bisect import bisect_left, insort
from collections import Counter
from itertools import chain
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.pack import PackingPlan, best_fit, plan_evaluation, plan_training
from zephyr_jax.data.shared_prompt import UnsharedRows

CAPACITY = 64
LENGTHS = np.random.default_rng(0).integers(1, CAPACITY + 1, 97)
DATA = DataOptions(max_length=CAPACITY, row_length=CAPACITY, packing_window=32)
full_row = st.sets(st.integers(1, CAPACITY - 1), max_size=12).map(
    lambda cuts: np.diff([0, *sorted(cuts), CAPACITY]).tolist()
)
"""Lengths that fill one row exactly."""
many_lengths = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=80).map(np.array)


def training(
    lengths: np.ndarray = LENGTHS,
    data: DataOptions = DATA,
    batch: BatchOptions | None = None,
    epochs: int = 1,
    max_steps: int | None = None,
    seed: int = 7,
) -> PackingPlan:
    return plan_training(lengths, data, batch or BatchOptions(rows=4), epochs, max_steps, seed)


def examples_of(plan: PackingPlan) -> list[int]:
    return [example for step in plan.steps for row in step for example in row]


def padding(plan: PackingPlan, lengths: np.ndarray) -> float:
    rows = sum(len(step) for step in plan.steps)
    return 1 - lengths[examples_of(plan)].sum() / (rows * plan.row_length)


def preference_lengths(pairs: int = 4000) -> np.ndarray:
    """Token counts like UltraFeedback's: a prompt twice and two answers."""
    random = np.random.default_rng(1)

    def draw(median: float, deviation: float, low: int, high: int) -> np.ndarray:
        return np.clip(random.lognormal(math.log(median), deviation, pairs), low, high).astype(int)

    prompt = draw(150, 0.9, 8, 480)
    return 2 * prompt + draw(260, 0.55, 50, 500) + draw(260, 0.55, 50, 500)


# ---- rows ----


@given(many_lengths)
def test_best_fit_puts_every_example_into_one_row_that_holds_it(lengths: np.ndarray) -> None:
    """Law: packing moves examples and drops none; no row is over its capacity; no row is empty."""
    rows = best_fit(lengths, CAPACITY)
    assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
    assert all(0 < lengths[row].sum() <= CAPACITY for row in rows)


@given(st.lists(full_row, min_size=1, max_size=30), st.randoms())
def test_best_fit_needs_few_rows(rows: list[list[int]], random: Random) -> None:
    """Law: at most 11/9 of the fewest rows plus one. These lengths can fill N rows to the last slot."""
    lengths = list(chain.from_iterable(rows))
    random.shuffle(lengths)
    fewest = math.ceil(sum(lengths) / CAPACITY)
    assert fewest == len(rows)
    assert fewest <= len(best_fit(np.array(lengths), CAPACITY)) <= 11 / 9 * fewest + 1


@given(many_lengths)
def test_best_fit_chooses_the_fullest_row_that_has_room(lengths: np.ndarray) -> None:
    """Law: longest first, ties by position, each into the fullest row with room, as done naively."""
    rows: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fits = [row for row in rows if lengths[row].sum() + lengths[position] <= CAPACITY]
        if fits:
            max(fits, key=lambda row: lengths[row].sum()).append(position)
        else:
            rows.append([position])
    assert [sorted(row) for row in best_fit(lengths, CAPACITY)] == [sorted(row) for row in rows]


def best_fit_of_one_list(lengths: np.ndarray, capacity: int, unshared: UnsharedRows) -> list[list[int]]:
    """Rows by a search in one sorted list of (room, row), as plans were made before November 30, 2026."""
    rows: list[list[int]] = []
    other_room: list[int] = []
    open_rows: list[tuple[int, int]] = []
    for position in np.argsort(-lengths, kind="stable").tolist():
        size, other = int(lengths[position]), int(unshared.lengths[position])
        slot = bisect_left(open_rows, (size, 0))
        while slot < len(open_rows) and other_room[open_rows[slot][1]] < other:
            slot += 1
        if slot == len(open_rows):
            room, row = capacity, len(rows)
            rows.append([])
            other_room.append(unshared.capacity)
        else:
            room, row = open_rows.pop(slot)
        rows[row].append(position)
        other_room[row] -= other
        insort(open_rows, (room - size, row))
    return [sorted(row) for row in rows]


@pytest.mark.parametrize("other_capacity", [None, 3072, 2560, 2304])
def test_rows_are_those_of_earlier_versions(other_capacity: int | None) -> None:
    """Law: a run that an earlier version began resumes with the same plan: rows are bit-identical, with two capacities too."""
    rng = np.random.default_rng(5)
    prompts, lengths = rng.integers(8, 480, (2, 3000))
    lengths += prompts + rng.integers(50, 500, 3000)
    unshared = UnsharedRows(lengths + prompts, other_capacity) if other_capacity else None
    free = UnsharedRows(np.zeros_like(lengths), 0)
    assert best_fit(lengths, 2048, unshared) == best_fit_of_one_list(lengths, 2048, unshared or free)


# ---- epochs and steps ----


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("batch", [BatchOptions(rows=4), BatchOptions(examples=10, microbatch_rows=2)])
def test_every_example_comes_once_an_epoch(packing: bool, batch: BatchOptions) -> None:
    """Law: in each of E epochs every example appears exactly once, so all tokens do."""
    plan = training(
        data=DataOptions(max_length=64, row_length=64, packing_window=32, packing=packing),
        batch=batch,
        epochs=3,
    )
    assert Counter(examples_of(plan)) == dict.fromkeys(range(len(LENGTHS)), 3)
    assert LENGTHS[examples_of(plan)].sum() == 3 * LENGTHS.sum()
    order, size = examples_of(plan), len(LENGTHS)
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert all(LENGTHS[list(row)].sum() <= 64 for step in plan.steps for row in step)
    assert packing or all(len(row) == 1 for step in plan.steps for row in step)


def test_a_step_of_rows_has_so_many_rows() -> None:
    """Law: with `batch.rows` each step has exactly so many rows, the last of an epoch perhaps fewer."""
    sizes = [len(step) for step in training().steps]
    assert set(sizes[:-1]) == {4}
    assert 1 <= sizes[-1] <= 4


def test_a_step_of_examples_has_so_many_examples() -> None:
    """Law: with `batch.examples` each step has exactly so many examples, the last of an epoch the rest."""
    plan = training(batch=BatchOptions(examples=10, microbatch_rows=2), epochs=2)
    counts = [sum(len(row) for row in step) for step in plan.steps]
    assert counts == [*[10] * 9, 7, *[10] * 9, 7]


@pytest.mark.parametrize(
    "batch", [BatchOptions(rows=6, microbatch_rows=2), BatchOptions(examples=10, microbatch_rows=4)]
)
def test_the_shape_of_a_batch_holds_its_largest_step(batch: BatchOptions) -> None:
    """Law: all batches have one shape, with as many microbatches as the largest step needs and no more."""
    plan = training(batch=batch)
    most = max(len(step) for step in plan.steps)
    assert plan.shape == (math.ceil(most / plan.microbatch_rows), batch.microbatch_rows, CAPACITY)
    assert plan.examples_per_row == max(len(row) for step in plan.steps for row in step)


def test_max_steps_ends_the_plan_early() -> None:
    """Law: `max_steps` gives the first steps of the plan without it, across epochs."""
    whole = training(epochs=3)
    per_epoch = len(whole.steps) // 3
    for most in (1, per_epoch, per_epoch + 2, 10**6):
        assert training(epochs=3, max_steps=most).steps == whole.steps[:most]


# ---- order ----


def test_the_plan_is_a_function_of_lengths_and_seed() -> None:
    """Law: the same seed gives the same plan; another seed, and another epoch, gives another order."""
    assert training() == training()
    assert training(seed=8).steps != training().steps
    steps = training(epochs=2).steps
    first, second = steps[: len(steps) // 2], steps[len(steps) // 2 :]
    assert first == training().steps, "later epochs do not change earlier ones"
    assert [set(row) for step in first for row in step] != [set(row) for step in second for row in step]
    assert examples_of(training()) != sorted(examples_of(training()))


def test_long_and_short_examples_are_mixed_over_the_epoch() -> None:
    """Law: a window's rows are shuffled, so that the order of examples shows nothing of their length."""
    lengths = preference_lengths(2000)
    data = DataOptions(row_length=2048, packing_window=512)
    order = lengths[examples_of(training(lengths, data, BatchOptions(rows=16)))]
    where = np.arange(len(order))
    assert abs(np.corrcoef(where, order)[0, 1]) < 0.1


def test_evaluation_sees_everything_once() -> None:
    """Law: an evaluation's plan has every example once, in steps of one microbatch, the same every time."""
    plan = plan_evaluation(LENGTHS, DATA, 4)
    assert sorted(examples_of(plan)) == list(range(len(LENGTHS)))
    assert plan.microbatches == 1
    assert plan == plan_evaluation(LENGTHS, DATA, 4)


def test_an_evaluation_without_packing_keeps_the_order_of_its_source() -> None:
    """Law: one example a row, first to last."""
    plan = plan_evaluation(LENGTHS, DataOptions(max_length=64, row_length=64, packing=False), 4)
    assert examples_of(plan) == list(range(len(LENGTHS)))


# ---- padding ----


def test_preferences_pack_with_little_padding() -> None:
    """Law: at lengths like UltraFeedback's less than a twentieth of all slots are padding."""
    lengths = preference_lengths()
    plan = training(lengths, DataOptions(row_length=2048), BatchOptions(rows=16))
    assert padding(plan, lengths) < 0.05


def test_packing_beats_one_pair_a_row() -> None:
    """Law: without packing the same pairs leave far more empty."""
    lengths = preference_lengths(500)
    packed, alone = (
        padding(training(lengths, DataOptions(row_length=2048, packing=packing), BatchOptions(rows=16)), lengths)
        for packing in (True, False)
    )
    assert packed < alone / 4
