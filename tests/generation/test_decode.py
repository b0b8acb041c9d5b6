"""Decoding: equal to the model without a cache, to torch, and whatever stands in the batch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import Loaded, load, logits, random_segments, whole_rows
from zephyr_jax.generation.decode import decode, pad_left
from zephyr_jax.generation.sampling import next_token, nucleus


def answers(
    loaded: Loaded, prompts: list[np.ndarray], new_tokens: int, stops: tuple[int, ...] = (2,), rows: int = 0, **how
):
    settings = {"temperature": 0.0, "top_p": 1.0, **how}
    rows = rows or len(prompts)
    tokens, lengths = pad_left(prompts, rows, 32)
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(0), number))(jnp.arange(rows))
    out = decode(
        loaded.model.definition, loaded.parameters, jnp.asarray(tokens), jnp.asarray(lengths), keys, jnp.array(stops),
        new_tokens=new_tokens, **settings,
    )  # fmt: skip
    return np.asarray(out)[: len(prompts)]


@pytest.mark.parametrize("variant", ["gqa", "window"])
def test_the_cache_changes_nothing(golden: Path, variant: str) -> None:
    """Greedy with a cache equals the argmax of whole forward passes, past the end of a window of 7."""
    loaded = load(golden / "models" / variant)
    prompt = random_segments([5])[0]
    found = answers(loaded, [prompt], 16, stops=(-5,))[0]
    row = np.zeros(24, np.int32)
    row[:5] = prompt
    for at in range(5, 21):
        row[at] = int(np.argmax(logits(loaded, whole_rows(row[None]))[0, at - 1]))
    np.testing.assert_array_equal(found, row[5:21])


def test_greedy_equals_torch(golden: Path, shared: Path) -> None:
    """120 tokens of stories260k from <s>, on one device and on eight."""
    expected = np.load(golden / "stories260k.npz")["greedy"]
    start = [expected[:1].astype(np.int32)]
    one = answers(load(shared / "models" / "stories260k"), start, 120)
    np.testing.assert_array_equal(one[0], expected[1:])
    eight = answers(load(shared / "models" / "stories260k", devices=8, data=2, fsdp=2, tensor=2), start * 4, 120)
    np.testing.assert_array_equal(eight, np.tile(expected[1:], (4, 1)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_depend_on_the_company(golden: Path, temperature: float) -> None:
    """Prompts of many lengths together, in another order, or alone in a larger batch: the same tokens for each."""
    loaded = load(golden / "models" / "gqa")
    prompts = random_segments([4, 19, 11, 7])
    together = answers(loaded, prompts, 12, temperature=temperature, top_p=0.9 if temperature else 1.0)
    alone = answers(loaded, prompts[:1], 12, rows=4, temperature=temperature, top_p=0.9 if temperature else 1.0)
    np.testing.assert_array_equal(together[0], alone[0])
    if temperature == 0:
        reversed_order = answers(loaded, prompts[::-1], 12)[::-1]
        np.testing.assert_array_equal(together, reversed_order)


def test_rows_end_at_their_stop_token(golden: Path) -> None:
    """The stop is kept, the rest of the row is -1, and other rows go on."""
    loaded = load(golden / "models" / "gqa")
    prompts = random_segments([4, 9])
    free = answers(loaded, prompts, 12, stops=(-5,))
    stop = int(free[0, 3])
    first = int(np.argmax(free[0] == stop))
    found = answers(loaded, prompts, 12, stops=(stop, 95))
    np.testing.assert_array_equal(found[0, : first + 1], free[0, : first + 1])
    assert (found[0, first + 1 :] == -1).all()
    if stop not in free[1]:
        np.testing.assert_array_equal(found[1], free[1])


def test_nucleus_keeps_the_smallest_set_that_reaches_p() -> None:
    """Probabilities .5 .3 .15 .05: 0.5 keeps one, 0.79 two, 0.81 three, 1 all."""
    row = jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]]))
    kept = {p: set(np.flatnonzero(np.asarray(nucleus(row, p)[0]) > -1e29).tolist()) for p in (0.5, 0.79, 0.81, 1.0)}
    assert kept == {0.5: {1}, 0.79: {1, 3}, 0.81: {0, 1, 3}, 1.0: {0, 1, 2, 3}}


def test_draws_follow_the_probabilities() -> None:
    """Chi-square of 20,000 draws over six tokens at temperature 0.7, below the 99.9 % point for five degrees."""
    row = jnp.array([0.3, -1.0, 1.2, 0.0, 0.5, -0.4])
    keys = jax.random.split(jax.random.key(3), 20_000)
    drawn = next_token(jnp.tile(row, (20_000, 1)), keys, 0.7, 1.0)
    counts = np.bincount(np.asarray(drawn), minlength=6)
    expected = np.asarray(jax.nn.softmax(row / 0.7)) * 20_000
    assert ((counts - expected) ** 2 / expected).sum() < 20.5
