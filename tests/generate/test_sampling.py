"""Draws: by the probabilities that the settings leave, each row by its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zephyr_jax.generate.sampling import RowSampling, filter_logits, sample_tokens


def params(rows: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> RowSampling:
    return RowSampling(
        jnp.full(rows, temperature, jnp.float32), jnp.full(rows, top_p, jnp.float32), jnp.full(rows, top_k, jnp.int32)
    )


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"),
    [
        (0.5, 0, {1}), (0.79, 0, {1, 3}), (0.81, 0, {0, 1, 3}), (1.0, 0, {0, 1, 2, 3}), (1.0, 2, {1, 3}), (1.0, 9, {0, 1, 2, 3}),
        (0.6, 2, {1}), (0.65, 2, {1, 3}), (0.99, 1, {1}),
    ],
)  # fmt: skip
def test_top_k_then_top_p(top_p: float, top_k: int, kept: set[int]) -> None:
    """Probabilities .15 .5 .05 .3. Top-k comes first; of what it leaves, .5 and .3, the first has .625."""
    row = jnp.log(jnp.array([[0.15, 0.5, 0.05, 0.3]]))
    filtered = filter_logits(row, params(1, 1.0, top_p, top_k))[0]
    assert set(np.flatnonzero(np.asarray(filtered) > -1e29).tolist()) == kept


CHI_SQUARE = {5: 20.5, 2: 13.8}
"""99.9 % points, by degrees of freedom."""


@pytest.mark.parametrize(("top_k", "degrees"), [(0, 5), (3, 2)])
def test_draws_follow_the_probabilities(top_k: int, degrees: int) -> None:
    """Chi-square of 20,000 draws over six tokens at temperature 0.7."""
    row = jnp.array([0.3, -1.0, 1.2, 0.0, 0.5, -0.4])
    keys = jax.random.split(jax.random.key(3), 20_000)
    drawn = sample_tokens(jnp.tile(row, (20_000, 1)), keys, params(20_000, 0.7, 1.0, top_k))
    counts = np.bincount(np.asarray(drawn), minlength=6)
    kept = jnp.where(row >= jnp.sort(row)[-top_k], row, -jnp.inf) if top_k else row
    expected = np.asarray(jax.nn.softmax(kept / 0.7)) * 20_000
    assert not counts[expected == 0].any()
    counts, expected = counts[expected > 0], expected[expected > 0]
    assert ((counts - expected) ** 2 / expected).sum() < CHI_SQUARE[degrees]


def test_rows_have_their_own_settings() -> None:
    """The likeliest, one of two, and any: side by side, each as alone."""
    rows = jnp.tile(jnp.array([0.3, -1.0, 1.2, 0.0, 0.5, -0.4]), (3, 1))
    mixed = RowSampling(jnp.array([0.0, 1.0, 2.0]), jnp.array([1.0, 1.0, 0.9]), jnp.array([0, 2, 0]))
    draw = jax.jit(sample_tokens)
    for seed in range(30):
        keys = jax.random.split(jax.random.key(seed), 3)
        together = np.asarray(draw(rows, keys, mixed))
        for row in range(3):
            own = RowSampling(*(values[row : row + 1] for values in mixed))
            assert together[row] == np.asarray(draw(rows[:1], keys[row : row + 1], own))[0]
        assert together[0] == 2
        assert together[1] in (2, 4)


@pytest.mark.parametrize("top_p", [5e-324, 1e-45, 1e-40, 1e-6])
def test_a_tiny_nucleus_is_greedy(top_p: float) -> None:
    """Also one that the device flushes to zero."""
    rows = jnp.tile(jnp.array([0.3, -1.0, 1.2, 0.0]), (8, 1))
    drawn = sample_tokens(rows, jax.random.split(jax.random.key(1), 8), params(8, 1.0, top_p))
    assert set(np.asarray(drawn).tolist()) == {2}


@pytest.mark.parametrize("top_k", [4, 5, 2**31 - 1])
def test_top_k_of_the_vocabulary_or_more_changes_nothing(top_k: int) -> None:
    """Draws are those without top-k."""
    rows = jnp.tile(jnp.array([0.3, -1.0, 1.2, 0.0]), (50, 1))
    keys = jax.random.split(jax.random.key(2), 50)
    np.testing.assert_array_equal(
        sample_tokens(rows, keys, params(50, top_k=top_k)), sample_tokens(rows, keys, params(50))
    )
