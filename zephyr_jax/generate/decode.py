"""The two programs of generation: prompts go into the cache, and rows make tokens from it.

Letters: B rows of the cache, P rows of a prefill, C tokens of its chunk, T new tokens, M stop ids, S slots.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from zephyr_jax.generate.sampling import Sampling, next_token
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.cached import CachedModel, FlatWeights, KVCache, unembed

NOT_FINITE = -2
"""Stands for a token where logits were NaN or infinite."""


class Rows(NamedTuple):
    """What each row is at. Every field is [B] unless said."""

    token: Any
    """int32: its last token, which is not in the cache yet."""
    position: Any
    """int32: where that token stands."""
    left: Any
    """int32: how many tokens it may still make; 0: the row is idle."""
    made: Any
    """int32: how many it has made; its t-th token is drawn with fold_in(key, t)."""
    key: Any
    """uint32 [B, 2]: data of a PRNG key."""
    stops: Any
    """int32 [B, M]: ids that end it; -1 where there are fewer."""
    how: Sampling


@partial(jax.jit, static_argnames=("model", "steps"), donate_argnames="cache")
def decode(
    model: CachedModel, weights: FlatWeights, cache: KVCache, rows: Rows, *, steps: int
) -> tuple[Array, Rows, KVCache]:
    """int32 [B, T] next tokens of every row that is not idle, T = `steps`; -1 after a row's end. And rows and cache after.

    A row ends with a stop id of its own (kept in the output), with the last token that it may make, or with NOT_FINITE.
    Ends early when all rows have.
    """
    B = rows.token.shape[0]

    def step(loop: tuple[Array, Array, Rows, KVCache]) -> tuple[Array, Array, Rows, KVCache]:
        at, out_BT, rows, cache = loop
        active_B = rows.left > 0
        where = SegmentInfo(active_B.astype(jnp.int32)[:, None], rows.position[:, None])
        hidden_B1D, cache = model.extend(weights, rows.token[:, None], where, cache)
        keys_B = jax.vmap(lambda data, t: jax.random.fold_in(jax.random.wrap_key_data(data), t))(rows.key, rows.made)
        logits_BV = unembed(weights, hidden_B1D[:, 0])
        finite_B = jnp.all(jnp.isfinite(logits_BV), axis=-1)
        drawn_B = jnp.where(finite_B, next_token(logits_BV, keys_B, rows.how), NOT_FINITE)
        out_BT = jax.lax.dynamic_update_slice(out_BT, jnp.where(active_B, drawn_B, -1)[:, None], (0, at))
        ended_B = jnp.any(drawn_B[:, None] == rows.stops, axis=1) | ~finite_B
        one_B = active_B.astype(jnp.int32)
        after = rows._replace(
            token=jnp.where(active_B & finite_B, drawn_B, rows.token),
            position=rows.position + one_B,
            left=jnp.where(ended_B, 0, rows.left - one_B),
            made=rows.made + one_B,
        )
        return at + 1, out_BT, after, cache

    start = (jnp.int32(0), jnp.full((B, steps), -1, jnp.int32), rows, cache)
    _, out_BT, rows, cache = jax.lax.while_loop(lambda loop: (loop[0] < steps) & jnp.any(loop[2].left > 0), step, start)
    return out_BT, rows, cache


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def prefill(
    model: CachedModel, weights: FlatWeights, cache: KVCache, row_P: Array, tokens_PC: Array, where: SegmentInfo
) -> KVCache:
    """The cache with a chunk of tokens in some of its rows.

    `row_P` are the rows, B or more where one is not used; `where` [P, C] says what of the chunk is padding (segment 0) and
    where its tokens stand. A chunk that begins at position 0 empties its row first: masked slots are multiplied by 0, which
    leaves NaN of an earlier request NaN.
    """
    fresh_P1 = where.positions[:, :1] == 0
    part = jax.tree.map(lambda each: each.at[row_P].get(mode="clip"), cache)
    keys, values = jax.tree.map(
        lambda each: jnp.where(fresh_P1[:, :, None, None], jnp.zeros((), each.dtype), each), (part.keys, part.values)
    )
    segments_PS = jnp.where(fresh_P1, 0, part.where.segments)
    part = KVCache(keys, values, SegmentInfo(segments_PS, part.where.positions))
    _, part = model.extend(weights, tokens_PC, where, part)
    return jax.tree.map(lambda all_rows, some: all_rows.at[row_P].set(some, mode="drop"), cache, part)
