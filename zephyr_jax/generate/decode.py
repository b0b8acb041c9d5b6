"""The compiled programs of generation: `prefill` writes prompts into the KV cache, `copy_prefix` copies the beginning of one from
another row, `decode` generates.

B is the rows of the cache, or those of one prefill.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from zephyr_jax.config.sampling import MAX_STOP_IDS
from zephyr_jax.generate.sampling import RowSampling, sample_tokens
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.cached import CACHE_AXES, CachedModel, FlatWeights, KVCache, unembed

NON_FINITE = -2
"""Output instead of a token id where logits are NaN or infinite."""


class DecodeState(NamedTuple):
    """State of every row, of shape [B] unless noted."""

    token: Any
    """int32: the last token, which is not in the cache yet."""
    position: Any
    """int32: position of that token."""
    remaining: Any
    """int32: tokens that may still be generated; 0: the row is idle."""
    num_generated: Any
    """int32: tokens generated so far; the t-th one is sampled with fold_in(key, t)."""
    key_data: Any
    """uint32 [B, 2]: data of a PRNG key."""
    stop_ids: Any
    """int32 [B, MAX_STOP_IDS]: ids that end the row, padded with -1."""
    sampling: RowSampling


def idle_state(batch_size: int) -> DecodeState:
    """State of rows without requests, as NumPy arrays."""

    def zeros(dtype: Any, *trailing: int) -> np.ndarray:
        return np.zeros((batch_size, *trailing), dtype)

    return DecodeState(
        token=zeros(np.int32),
        position=zeros(np.int32),
        remaining=zeros(np.int32),
        num_generated=zeros(np.int32),
        key_data=zeros(np.uint32, 2),
        stop_ids=zeros(np.int32, MAX_STOP_IDS),
        sampling=RowSampling(zeros(np.float32), np.ones(batch_size, np.float32), zeros(np.int32)),
    )


def key_data(seed: tuple[int, ...]) -> np.ndarray:
    """Data of the PRNG key of a seed: `jax.random.key` of its first integer with the others folded in.

    Args:
        seed: integers from 0 to 2**63 - 1. All 64 bits count, though `jax.random.key` and `fold_in` take 32.

    Returns:
        uint32 [2].
    """
    first, *others = seed
    key = jax.random.wrap_key_data(jnp.array(divmod(first, 2**32), jnp.uint32))
    for number in others:
        high, low = divmod(number, 2**32)
        key = jax.random.fold_in(key, np.uint32(low))
        key = jax.random.fold_in(key, np.uint32(high)) if high else key
    return np.asarray(jax.random.key_data(key))


@partial(jax.jit, static_argnames=("model", "steps"), donate_argnames="cache")
def decode(
    model: CachedModel, weights: FlatWeights, cache: KVCache, state: DecodeState, *, steps: int
) -> tuple[Array, DecodeState, KVCache]:
    """Generate up to `steps` tokens in every active row; stops early when no row is active.

    A row ends with one of its stop ids (which is part of the output), when `remaining` is used up, or with NON_FINITE.

    Args:
        model: static description of the model.
        weights: its weights.
        cache: keys and values, donated.
        state: state of the rows.
        steps: T, the number of decode steps.

    Returns:
        int32 [B, T] tokens with -1 after a row's end, the new state and the new cache.
    """
    B = state.token.shape[0]

    def step(loop: tuple[Array, Array, DecodeState, KVCache]) -> tuple[Array, Array, DecodeState, KVCache]:
        index, out_BT, state, cache = loop
        active_B = state.remaining > 0
        where = SegmentInfo(active_B.astype(jnp.int32)[:, None], state.position[:, None])
        hidden_B1D, cache = model.extend(weights, state.token[:, None], where, cache)
        keys_B = jax.vmap(lambda data, t: jax.random.fold_in(jax.random.wrap_key_data(data), t))(
            state.key_data, state.num_generated
        )
        logits_BV = unembed(weights, hidden_B1D[:, 0], model.config)
        finite_B = jnp.all(jnp.isfinite(logits_BV), axis=-1)
        sampled_B = jnp.where(finite_B, sample_tokens(logits_BV, keys_B, state.sampling), NON_FINITE)
        out_BT = jax.lax.dynamic_update_slice(out_BT, jnp.where(active_B, sampled_B, -1)[:, None], (0, index))
        ended_B = jnp.any(sampled_B[:, None] == state.stop_ids, axis=1) | ~finite_B
        one_B = active_B.astype(jnp.int32)
        state = state._replace(
            token=jnp.where(active_B & finite_B, sampled_B, state.token),
            position=state.position + one_B,
            remaining=jnp.where(ended_B, 0, state.remaining - one_B),
            num_generated=state.num_generated + one_B,
        )
        return index + 1, out_BT, state, cache

    def unfinished(loop: tuple[Array, Array, DecodeState, KVCache]) -> Array:
        return (loop[0] < steps) & jnp.any(loop[2].remaining > 0)

    start = (jnp.int32(0), jnp.full((B, steps), -1, jnp.int32), state, cache)
    _, out_BT, state, cache = jax.lax.while_loop(unfinished, step, start)
    return out_BT, state, cache


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
    model: CachedModel, weights: FlatWeights, cache: KVCache, rows_B: Array, tokens_BL: Array, info: SegmentInfo
) -> KVCache:
    """Write one chunk of tokens into some rows of the cache.

    Args:
        model: static description of the model.
        weights: its weights.
        cache: keys and values of all rows, donated.
        rows_B: int32 [B] rows of the cache; an index past the last row is unused.
        tokens_BL: int32 [B, L] tokens of the chunk.
        info: [B, L] segment (0 for padding) and position of each token. A chunk that begins at position 0 clears its row.

    Returns:
        The new cache.
    """
    first_B1 = info.positions[:, :1] == 0
    rows = jax.tree.map(lambda leaf: leaf.at[rows_B].get(mode="clip"), cache)
    # masking slots is not enough to clear a row: attention multiplies them by 0, which keeps the NaN of an earlier request
    keys, values = jax.tree.map(
        lambda leaf: jnp.where(first_B1[:, :, None, None], jnp.zeros((), leaf.dtype), leaf), (rows.keys, rows.values)
    )
    slots = SegmentInfo(jnp.where(first_B1, 0, rows.info.segments), rows.info.positions)
    _, rows = model.extend(weights, tokens_BL, info, KVCache(keys, values, slots))
    updated: KVCache = jax.tree.map(lambda leaf, new: leaf.at[rows_B].set(new, mode="drop"), cache, rows)
    return updated


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def copy_prefix(model: CachedModel, cache: KVCache, source: Any, target: Any, length: Any) -> KVCache:
    """Let a row begin with the tokens of another one, and clear the rest of it.

    Args:
        model: static description of the model.
        cache: keys and values of all rows, donated.
        source: int32: the row to copy from, whose ring has not wrapped.
        target: int32: the row to copy to; may be the same.
        length: int32: number of tokens to copy, all of them prefilled.

    Returns:
        The new cache.
    """
    copied_J = jnp.arange(cache.slots) < length

    def updated(leaf: Array) -> Array:
        copied = copied_J[None, :, None] if leaf.ndim == 4 else copied_J
        row = jnp.where(copied, leaf[source], jnp.zeros((), leaf.dtype))
        result: Array = model.compute.placement.constrain(leaf.at[target].set(row), *CACHE_AXES[leaf.ndim])
        return result

    result: KVCache = jax.tree.map(updated, cache)
    return result
