"""Layout and packing of rows with shared prompts: whatever the lengths, attention gets every segment whole."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import write_rows
from zephyr_jax.batch import PairBatch, SharedTokenBatch, batch_arrays, make_batch
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.batch_file import read_batch, write_batch
from zephyr_jax.data.examples import Examples, examples_of, load_examples
from zephyr_jax.data.loader import BatchSource
from zephyr_jax.data.pack import best_fit, plan_evaluation, plan_training
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.data.shared_prompt import UnsharedRows, packed_lengths, shared_prompt_length
from zephyr_jax.errors import InputError

CI = settings(max_examples=60, deadline=None, derandomize=True)
LENGTH = 96
DATA = DataOptions(max_length=64, row_length=LENGTH, packing_window=16)


def segment(tokens: list[int], first_target: int) -> Segment:
    return Segment(np.array(tokens, np.int32), np.arange(len(tokens)) >= first_target)


@st.composite
def examples(draw: st.DrawFn, each: int) -> Examples:
    """Examples that fit a row; few token ids, so that answers often begin alike, and prompts of some differ."""
    token = st.integers(3, 5)

    def example() -> list[Segment]:
        prompt = draw(st.lists(token, min_size=1, max_size=14))
        made = []
        for _ in range(each):
            answer = draw(st.lists(token, min_size=1, max_size=8))
            own = prompt if draw(st.integers(0, 9)) else draw(st.lists(token, min_size=1, max_size=10))
            made.append(segment([*own, *answer], len(own)))
        return made

    return examples_of([example() for _ in range(draw(st.integers(1, 12)))], tuple("abcd"[:each]))


@pytest.mark.parametrize("each", [2, 4])
@CI
@given(st.data())
def test_attention_sees_every_segment_whole(each: int, data: st.DataObject) -> None:
    """Law: the un-shared row has the tokens, positions and numbers of all segments, left to right; each column of a row is
    copied where `copies` says, and predicted from the column before it in its segment; a target is in the row once."""
    some = data.draw(examples(each))
    lengths, unshared = some.packed_lengths(DATA)
    assert unshared is not None
    plan = plan_evaluation(lengths, DATA, 2, unshared)
    assert plan.unshared_length == unshared.capacity == DATA.unshared_row_length(each)
    source: BatchSource[Any] = BatchSource(some, plan, slice(0, 2), SharedTokenBatch)
    for step, batch in zip(plan.steps, (source[index] for index in range(len(source))), strict=True):
        for line, row in enumerate([*step, *[()] * (2 - len(step))]):
            rows = SharedTokenBatch(*(array[0, line] for array in batch))
            segments = [one for example in row for one in some[example]]
            _check_row(rows, segments, int(lengths[list(row)].sum()), each)


def _check_row(rows: SharedTokenBatch, segments: list[Segment], used: int, each: int) -> None:
    total = sum(map(len, segments))
    columns = rows.unshared_columns[:total]
    numbers = [number for number, one in enumerate(segments, 1) for _ in range(len(one))]
    assert rows.tokens[columns].tolist() == [token for one in segments for token in one.tokens.tolist()]
    assert rows.positions[columns].tolist() == [at for one in segments for at in range(len(one))]
    assert rows.targets[columns].tolist() == [target for one in segments for target in one.targets.tolist()]
    assert rows.unshared_segments.tolist() == numbers + [0] * (len(rows.unshared_segments) - total)
    assert (rows.segments > 0).tolist() == [True] * used + [False] * (len(rows.tokens) - used)
    assert not any(field[used:].any() for field in (rows.tokens, rows.targets, rows.positions))
    assert int(rows.targets.sum()) == sum(int(one.targets.sum()) for one in segments)
    copies = rows.copies.reshape(each, -1)
    assert (copies[0] >= 0).tolist() == (rows.segments > 0).tolist()
    copied = sorted((int(place), column) for column, places in enumerate(copies.T) for place in places if place >= 0)
    assert copied == list(enumerate(columns.tolist()))
    before = -1
    for one in segments:
        own = columns[before + 1 : before + 1 + len(one)]
        before += len(one)
        assert rows.source[own].tolist() == [own[0], *own[:-1]]
    targets = np.flatnonzero(rows.targets)
    assert [numbers[copies[0, column]] for column in targets] == rows.segments[targets].tolist()


@pytest.mark.parametrize(
    ("segments", "length"),
    [
        ([segment([5, 6, 7, 8], 2)], 0),
        ([segment([5, 6, 7, 8], 2), segment([5, 6, 9], 2)], 2),
        ([segment([5, 6, 7, 8], 2), segment([5, 6, 7, 9], 3)], 2),
        ([segment([5, 6, 7, 8], 3), segment([5, 4, 7, 8], 3)], 1),
        ([segment([4, 6, 7, 8], 3), segment([5, 6, 7, 8], 3)], 0),
        ([segment([5, 6, 7], 2), segment([5, 6, 7], 2), segment([5, 3, 7], 2)], 1),
    ],
)
def test_the_shared_prompt_ends_before_the_first_target_or_difference(segments: list[Segment], length: int) -> None:
    assert shared_prompt_length(segments) == length


# ---- packing ----


@st.composite
def sizes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """int [N] prompt lengths and lengths of both answers together; each pair fits a row of 96 and 144 tokens un-shared."""
    pairs = draw(st.lists(st.tuples(st.integers(1, 48), st.integers(2, 48)), min_size=1, max_size=60))
    prompts, answers = np.array(pairs).T
    return prompts, answers


@CI
@given(sizes())
def test_packing_respects_both_capacities(found: tuple[np.ndarray, np.ndarray]) -> None:
    """Law: every pair is in one row; no row holds more than either capacity; each goes to the fullest row that has room."""
    prompts, answers = found
    lengths, other = prompts + answers, UnsharedRows(2 * prompts + answers, 144)
    rows = best_fit(lengths, 96, other)
    assert sorted(chain.from_iterable(rows)) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= 96 and other.lengths[row].sum() <= 144 for row in rows)
    naive: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        fits = [
            row
            for row in naive
            if lengths[row].sum() + lengths[position] <= 96
            and other.lengths[row].sum() + other.lengths[position] <= 144
        ]
        if fits:
            max(fits, key=lambda row: lengths[row].sum()).append(position)
        else:
            naive.append([position])
    assert [sorted(row) for row in rows] == [sorted(row) for row in naive]


@CI
@given(st.integers(1, 4096), st.integers(1, 4096), st.integers(2, 5), st.data())
def test_an_example_that_fits_a_row_fits_the_unshared_row(
    max_length: int, row_length: int, each: int, data: st.DataObject
) -> None:
    """Law: no example is left out because of the second capacity, whatever the lengths; attention's blocks divide it."""
    options = DataOptions(max_length=max_length, row_length=max(max_length, row_length))
    prompt = data.draw(st.integers(0, max_length))
    answers = data.draw(st.lists(st.integers(0, max_length - prompt), min_size=each, max_size=each))
    total = np.array([each * prompt + sum(answers)])
    lengths, unshared = packed_lengths(total, np.array([prompt]), each, options)
    assert unshared is not None and unshared.capacity % 128 == 0 and unshared.capacity >= options.row_length
    if lengths[0] <= options.row_length:
        assert total[0] <= unshared.capacity


def test_sharing_needs_fewer_rows_and_off_is_as_before() -> None:
    """Law: at lengths like UltraFeedback's a fifth fewer rows; without sharing nothing depends on prompts."""
    rng = np.random.default_rng(0)
    prompts, answers = rng.integers(20, 500, 2000), rng.integers(100, 900, 2000)
    total, data = 2 * prompts + answers, DataOptions(max_length=1024, row_length=2048)
    batch = BatchOptions(rows=8)
    off = packed_lengths(total, prompts, 2, replace(data, share_prompts=False))
    assert off[1] is None and off[0] is total
    plans = [
        plan_training(lengths, data, batch, 1, None, 0, unshared)
        for lengths, unshared in (packed_lengths(total, prompts, 2, data), off)
    ]
    shared, plain = (sum(map(len, plan.steps)) for plan in plans)
    assert shared < 0.8 * plain
    assert plans[1] == plan_training(total, data, batch, 1, None, 0)


# ---- files ----


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    backend = load_tokenizer(str(tiny_model))
    return ChatTokenizer(backend, load_template("zephyr", backend))


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    ask = [{"role": "user", "content": question}]
    return {
        "chosen": [*ask, {"role": "assistant", "content": chosen}],
        "rejected": [*ask, {"role": "assistant", "content": rejected}],
    }


def test_prompts_of_rows_are_found_and_long_pairs_fit(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: the shared prompt is all that comes before the answers; a pair that fits a row with its prompt once is kept, and one
    that does not is refused with its size, not dropped."""
    path = str(
        write_rows(tmp_path / "pairs.jsonl", [pair("Why? " * 30, "Yes. " * 9, "No. " * 9), pair("So?", "A", "B")])
    )
    data = DataOptions(max_length=512, max_prompt_length=256, row_length=1024, on_bad_row="drop")
    some = load_examples(PREFERENCE, data, tokenizer, path, "train")
    for index, prompt in enumerate(some.prompt_lengths()):
        assert [int(side.targets.argmax()) for side in some[index]] == [prompt, prompt]
    total, longest = int(some.lengths[0]), int(some.packed_lengths(data)[0].max())
    assert longest == total - some.prompt_lengths()[0]
    between = replace(data, max_length=total // 2 + 40, row_length=total - 1)
    assert len(load_examples(PREFERENCE, between, tokenizer, path, "train")) == 2
    with pytest.raises(InputError, match=f"the longest example has {total} tokens and data.row_length is {total - 1}"):
        load_examples(PREFERENCE, replace(between, share_prompts=False), tokenizer, path, "train")
    with pytest.raises(InputError, match=rf"has {longest} tokens \(its prompt counted once\) .* is {longest - 1}\."):
        load_examples(PREFERENCE, replace(between, row_length=longest - 1), tokenizer, path, "train")


def test_a_batch_with_shared_prompts_is_written_and_read(tmp_path: Path) -> None:
    """Law: a saved batch has its layout, so `debug-step` computes what training computed."""
    some = examples_of([[segment([5, 6, 7, 8], 2), segment([5, 6, 9], 2)]], ("chosen", "rejected"))
    lengths, unshared = some.packed_lengths(DATA)
    plan = plan_evaluation(lengths, DATA, 2, unshared)
    columns = {"reference": np.array([[-1.0, -2.0]], np.float32)}
    batch = cast(PairBatch, BatchSource(some, plan, slice(0, 2), PairBatch, columns)[0])
    assert isinstance(batch.rows, SharedTokenBatch)
    write_batch(tmp_path / "batch.safetensors", batch, {})
    read = make_batch(PairBatch, read_batch(str(tmp_path / "batch.safetensors"))[0])
    assert isinstance(read.rows, SharedTokenBatch)
    for name, array in batch_arrays(batch).items():
        np.testing.assert_array_equal(array, batch_arrays(read)[name])
