"""The compiled programs of generation by themselves, and the bookkeeping of rows and slots."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import Loaded, load, random_segments
from zephyr_jax.config.sampling import MAX_STOP_IDS, SamplingParams
from zephyr_jax.generate.decode import DecodeState, decode, idle_state, key_data, prefill
from zephyr_jax.generate.engine import cache_bytes, num_slots
from zephyr_jax.generate.sampling import RowSampling, filter_logits, sample_tokens
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.cached import CachedModel, FlatWeights, KVCache

ROWS, SLOTS = 4, 64


@pytest.fixture(scope="module")
def gqa(golden: Any) -> Loaded:
    return load(golden / "models" / "gqa")


@pytest.fixture(scope="module")
def model(gqa: Loaded) -> CachedModel:
    return CachedModel(gqa.model.config, gqa.model.compute)


@pytest.fixture(scope="module")
def weights(gqa: Loaded, model: CachedModel) -> FlatWeights:
    return jax.jit(model.flatten)(gqa.parameters)


def cache_of(model: CachedModel, weights: FlatWeights, prompts: dict[int, np.ndarray], *sizes: int) -> KVCache:
    """A cache with prompts in some of its rows, written in chunks of these sizes."""
    cache = model.empty_cache(ROWS, SLOTS)
    start = 0
    for size in sizes:
        rows = np.array([*prompts, *[ROWS] * (ROWS - len(prompts))], np.int32)
        tokens, segments, positions = (np.zeros((ROWS, 16), np.int32) for _ in range(3))
        positions[:] = start + np.arange(16)
        for line, prompt in enumerate(prompts.values()):
            part = prompt[start : start + size]
            tokens[line, : len(part)], segments[line, : len(part)] = part, 1
        cache = prefill(model, weights, cache, rows, tokens, SegmentInfo(segments, positions))
        start += size
    return cache


def state_of(**rows: Any) -> DecodeState:
    """All rows active from position 0 with these values in place of the defaults."""
    state = idle_state(ROWS)
    state.stop_ids[:] = -1
    state.token[:] = np.arange(3, 3 + ROWS)
    state.remaining[:] = 5
    return state._replace(**{name: np.asarray(value, np.int32) for name, value in rows.items()})


def test_the_chunks_of_a_prompt_do_not_matter(model: CachedModel, weights: FlatWeights) -> None:
    """Law: a prompt written in any pieces leaves the same keys and values; rows that are not named stay as they were."""
    prompts = dict(zip((2, 0), random_segments([12, 9]), strict=True))
    whole = cache_of(model, weights, prompts, 12)
    for sizes in ((1, 11), (4, 4, 4), (7, 5)):
        pieces = cache_of(model, weights, prompts, *sizes)
        for left, right in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
            np.testing.assert_allclose(left, right, atol=2e-5)
    filled = np.asarray(whole.info.segments).sum(axis=1)
    assert filled.tolist() == [9, 0, 12, 0]
    assert not any(np.asarray(keys)[[1, 3]].any() for keys in whole.keys)


def test_a_chunk_at_position_0_clears_its_row(model: CachedModel, weights: FlatWeights) -> None:
    """Also of an earlier request's NaN."""
    [long, short] = random_segments([14, 3])
    cache = cache_of(model, weights, {1: long}, 14)
    poisoned = cache._replace(values=tuple(value.at[1].set(jnp.nan) for value in cache.values))
    tokens, segments = np.zeros((1, 16), np.int32), np.zeros((1, 16), np.int32)
    tokens[0, :3], segments[0, :3] = short, 1
    info = SegmentInfo(segments, np.arange(16, dtype=np.int32)[None])
    reused = prefill(model, weights, poisoned, np.array([1], np.int32), tokens, info)
    fresh = cache_of(model, weights, {1: short}, 3)
    for left, right in zip(jax.tree.leaves(reused), jax.tree.leaves(fresh), strict=True):
        visible = np.asarray(fresh.info.segments)[1] > 0
        axis = 1 if left.ndim == 4 else 0
        np.testing.assert_allclose(np.compress(visible, left[1], axis), np.compress(visible, right[1], axis), atol=2e-5)
    assert np.asarray(reused.info.segments)[1].sum() == 3


def test_rows_end_where_their_budget_ends(model: CachedModel, weights: FlatWeights) -> None:
    """Law: a row gets exactly `remaining` tokens, an idle row none; what follows a row's end is -1, and its state stays."""
    state = state_of(remaining=[0, 1, 3, 8])
    tokens, after, _ = decode(model, weights, model.empty_cache(ROWS, SLOTS), state, steps=6)
    assert [int((row >= 0).sum()) for row in np.asarray(tokens)] == [0, 1, 3, 6]
    assert all((row[count:] == -1).all() for row, count in zip(np.asarray(tokens), (0, 1, 3, 6), strict=True))
    assert after.remaining.tolist() == [0, 0, 0, 2]
    assert after.num_generated.tolist() == after.position.tolist() == [0, 1, 3, 6]
    assert after.token[0] == 3 and after.token[3] == tokens[3, 5]


def test_calls_of_any_length_generate_the_same(model: CachedModel, weights: FlatWeights) -> None:
    """Law: tokens depend on the seed and their number, not on how many steps one call makes."""
    sampling = RowSampling(np.full(ROWS, 1.5, np.float32), np.ones(ROWS, np.float32), np.zeros(ROWS, np.int32))
    start = state_of()._replace(sampling=sampling)
    start.key_data[:] = [key_data((7, row)) for row in range(ROWS)]
    once, _, _ = decode(model, weights, model.empty_cache(ROWS, SLOTS), start, steps=5)
    state, cache, parts = start, model.empty_cache(ROWS, SLOTS), []
    for _ in range(3):
        part, state, cache = decode(model, weights, cache, state, steps=2)
        parts.append(np.asarray(part))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1)[:, :5], once)
    assert len({tuple(row) for row in np.asarray(once).tolist()}) > 1


def test_a_stop_id_ends_its_own_row(model: CachedModel, weights: FlatWeights) -> None:
    """It is part of the output; the same id does not end a row that does not name it."""
    tokens, _, _ = decode(model, weights, model.empty_cache(ROWS, SLOTS), state_of(token=[5] * ROWS), steps=5)
    assert (np.asarray(tokens) == np.asarray(tokens)[0]).all(), "equal rows answer equally"
    greedy = np.asarray(tokens)[0].tolist()
    stopping = state_of(token=[5] * ROWS)
    stopping.stop_ids[1, MAX_STOP_IDS - 1] = greedy[2]
    tokens, after, _ = decode(model, weights, model.empty_cache(ROWS, SLOTS), stopping, steps=5)
    first = greedy.index(greedy[2]) + 1
    assert np.asarray(tokens)[1].tolist() == greedy[:first] + [-1] * (5 - first)
    assert np.asarray(tokens)[0].tolist() == greedy and after.remaining.tolist() == [0, 0, 0, 0]


# ---- the engine's bookkeeping ----


def test_cache_bytes_are_those_of_the_cache(gqa: Loaded) -> None:
    """Law: what is announced before weights are loaded is what the cache takes, without its slots' positions."""
    for context in (1, 64, 65, 500):
        slots = num_slots(gqa.model.config, context)
        assert slots % 64 == 0 and slots >= context
        cache = jax.eval_shape(
            lambda slots=slots: CachedModel(gqa.model.config, gqa.model.compute).empty_cache(3, slots)
        )
        stored = sum(leaf.size * leaf.dtype.itemsize for leaf in (*cache.keys, *cache.values))
        assert cache_bytes(gqa.model, 3, context) == stored


def test_seeds_are_distinct_in_every_part() -> None:
    """Law: each integer of a seed counts, with its place, up to 64 bits."""
    seeds = [(0,), (1,), (2**32,), (0, 0), (0, 1), (1, 0), (0, 2**32), (0, 0, 0), (2**63 - 1,)]
    assert len({tuple(key_data(seed).tolist()) for seed in seeds}) == len(seeds)
    np.testing.assert_array_equal(key_data((5,)), jax.random.key_data(jax.random.key(5)))
    assert SamplingParams().temperature == 0, "greedy by default, so that no seed matters"


# ---- the distribution that is sampled from ----


def kept_by_definition(row: np.ndarray, top_p: float, top_k: int) -> set[int]:
    """Tokens that top-k, then top-p keep: the likeliest ones until their mass reaches `top_p`."""
    order = np.argsort(-row)[: top_k or len(row)]
    probs = np.exp(row[order] - row.max())
    before = np.cumsum(probs / probs.sum()) - probs / probs.sum()
    return {int(token) for token, mass in zip(order, before, strict=True) if mass < top_p or token == order[0]}


@pytest.mark.parametrize("seed", range(4))
def test_filters_keep_what_their_definition_keeps(seed: int) -> None:
    """Random rows, each with its own settings."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (16, 40)).astype(np.float32)
    top_p, top_k = rng.uniform(0.05, 1, 16).astype(np.float32), rng.integers(0, 45, 16).astype(np.int32)
    filtered = np.asarray(filter_logits(jnp.asarray(logits), RowSampling(np.ones(16, np.float32), top_p, top_k)))
    for row, out, p, k in zip(logits, filtered, top_p, top_k, strict=True):
        kept = set(np.flatnonzero(out > -1e29).tolist())
        assert kept == kept_by_definition(row, float(p), int(k) if k < 40 else 0)
        np.testing.assert_array_equal(out[list(kept)], row[list(kept)])


def test_a_constant_added_to_logits_changes_no_draw() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 2, (32, 20)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 32)
    sampling = RowSampling(jnp.full(32, 0.8), jnp.full(32, 0.9), jnp.full(32, 10, jnp.int32))
    np.testing.assert_array_equal(sample_tokens(logits, keys, sampling), sample_tokens(logits + 8, keys, sampling))
    greedy = RowSampling(jnp.full(32, 5.0), jnp.ones(32), jnp.ones(32, jnp.int32))
    np.testing.assert_array_equal(sample_tokens(logits, keys, greedy), jnp.argmax(logits, axis=-1))
