"""Attention of grouped queries over packed rows or a cache, under one mask rule.

Letters: B rows, L queries of a row, S keys, K kv heads, G queries per kv head, N = K * G query heads, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

_QUERY_BLOCK = 256
_MASKED = -1e30


class Where(NamedTuple):
    """Where tokens stand: int32 segment (0: padding) and position inside it, each [B, L] or [B, S]."""

    segments: Array
    positions: Array


def visible(query: Where, key: Where, window: int | None) -> Array:
    """The mask rule, bool [B, L, S]: same segment, not later, and with a window w only i - w < j <= i."""
    i_BL1, j_B1S = query.positions[:, :, None], key.positions[:, None, :]
    same_BLS = (query.segments[:, :, None] == key.segments[:, None, :]) & (key.segments[:, None, :] > 0)
    seen_BLS = same_BLS & (j_B1S <= i_BL1)
    return seen_BLS if window is None else seen_BLS & (j_B1S > i_BL1 - window)


def attend(q_BLNH: Array, k_BSKH: Array, v_BSKH: Array, query: Where, key: Where, window: int | None) -> Array:
    """softmax(q k / sqrt(H)) v over the visible keys, [B, L, N, H] in q's dtype; scores and softmax in float32.

    A query that sees no key (padding) gives the plain average of the values; nothing ever reads it.
    """
    B, L, N, H = q_BLNH.shape
    K = k_BSKH.shape[2]
    q_BKGLH = (q_BLNH * H**-0.5).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    scores_BKGLS = jnp.einsum("bkglh,bskh->bkgls", q_BKGLH, k_BSKH, preferred_element_type=jnp.float32)
    bias_BLS = jnp.where(visible(query, key, window), 0.0, _MASKED)
    scores_BKGLS += bias_BLS[:, None, None]
    # softmax with the division after the product with v: L x H quotients instead of L x S
    largest_BKGL1 = jax.lax.stop_gradient(jnp.max(scores_BKGLS, axis=-1, keepdims=True))
    weights_BKGLS = jnp.exp(scores_BKGLS - largest_BKGL1)
    total_BKGL1 = jnp.sum(weights_BKGLS, axis=-1, keepdims=True)
    mixed_BKGLH = jnp.einsum(
        "bkgls,bskh->bkglh", weights_BKGLS.astype(v_BSKH.dtype), v_BSKH, preferred_element_type=jnp.float32
    )
    out_BKGLH = (mixed_BKGLH / total_BKGL1).astype(q_BLNH.dtype)
    return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def attend_row(
    q_BLNH: Array,
    k_BLKH: Array,
    v_BLKH: Array,
    where: Where,
    window: int | None,
    longest: int | None = None,
    recompute: bool = True,
) -> Array:
    """`attend` of rows to themselves, a block of queries at a time, so that scores never hold a whole L x L.

    Inside a row, positions grow with the column, so a block of queries needs no key to its right, nor any more than a
    window, or the `longest` segment, to its left. With `recompute` the backward pass makes each block's scores anew.
    Barriers chain the blocks: were they independent, a compiler might run them at once and hold the scores of all.
    """
    L = q_BLNH.shape[1]
    if L <= _QUERY_BLOCK:
        return attend(q_BLNH, k_BLKH, v_BLKH, where, where, window)
    block_attend = jax.checkpoint(attend, static_argnums=(5,)) if recompute else attend
    reach = min(window or L, longest or L)
    blocks: list[Array] = []
    for start in range(0, L, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, L)
        first = max(0, start - reach + 1)
        queries, keys = slice(start, stop), slice(first, stop)
        query, key = (Where(where.segments[:, part], where.positions[:, part]) for part in (queries, keys))
        if blocks:
            q_BLNH, k_BLKH, blocks[-1] = jax.lax.optimization_barrier((q_BLNH, k_BLKH, blocks[-1]))
        blocks.append(block_attend(q_BLNH[:, queries], k_BLKH[:, keys], v_BLKH[:, keys], query, key, window))
    return jnp.concatenate(blocks, axis=1)
