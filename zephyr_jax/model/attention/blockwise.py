"""Attention of packed rows by blocks, in plain XLA: scores exist for one block of queries and one of keys at a time.

Flash attention (arXiv 2205.14135; the backward pass as in 2307.08691, algorithm 2) with loops in place of a kernel. The
loop over key blocks starts where the first segment of the query block starts, so packing costs nothing: work grows with
the squares of the segments and not of the row.

Letters: B rows, L row length, N = K * G query heads in K groups, H head dim, Z blocks, C columns of a block, Q = G * C.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from zephyr_jax.model.attention.dense import ATTENTION, MASKED, SegmentInfo, visible

_BLOCK = 128


class _Row(NamedTuple):
    """One row, cut into blocks; stacked rows have a leading B."""

    q_ZKQH: Array
    k_ZKCH: Array
    v_ZKCH: Array
    where_ZC: SegmentInfo
    first_Z: Array
    """int32: the first key block that anything in this query block can see."""


def blockwise_attention(q_BLNH: Array, k_BLKH: Array, v_BLKH: Array, where: SegmentInfo, window: int | None) -> Array:
    """`attention.attend` of rows to themselves, [B, L, N, H] in q's dtype; scores and softmax in float32.

    Neither direction holds more scores than N x 128 x 128. Positions inside a row must grow with the column, as packing
    lays them out. What comes out for padding is finite and means nothing.
    """
    B, L, N, H = q_BLNH.shape
    K, C = k_BLKH.shape[2], min(_BLOCK, L)
    pad = -L % C

    def blocks(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2)).reshape(B, -1, C, *x.shape[2:])

    where_BZC = SegmentInfo(*map(blocks, where))
    q_BZCKGH = blocks(q_BLNH * H**-0.5).reshape(B, -1, C, K, N // K, H)
    q_BZKQH = q_BZCKGH.transpose(0, 1, 3, 4, 2, 5).reshape(B, -1, K, N // K * C, H)
    k_BZKCH, v_BZKCH = (blocks(x).transpose(0, 1, 3, 2, 4) for x in (k_BLKH, v_BLKH))
    out_BZKQH = _attend(q_BZKQH, k_BZKCH, v_BZKCH, where_BZC, window)
    out_BZCKGH = out_BZKQH.reshape(B, -1, K, N // K, C, H).transpose(0, 1, 4, 2, 3, 5)
    return out_BZCKGH.reshape(B, L + pad, N, H)[:, :L]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BZKQH: Array, k_BZKCH: Array, v_BZKCH: Array, where_BZC: SegmentInfo, window: int | None) -> Array:
    return _forward(q_BZKQH, k_BZKCH, v_BZKCH, where_BZC, window)[0]


def _forward(
    q_BZKQH: Array, k_BZKCH: Array, v_BZKCH: Array, where_BZC: SegmentInfo, window: int | None
) -> tuple[Array, tuple[_Row, Array, Array]]:
    rows = _Row(q_BZKQH, k_BZKCH, v_BZKCH, where_BZC, _first_block(where_BZC, window))
    made = jax.lax.map(partial(_forward_row, window=window), rows)
    out_BZKQH, normalizer_BZKQ = (checkpoint_name(each, ATTENTION) for each in made)
    return out_BZKQH, (rows, out_BZKQH, normalizer_BZKQ)


def _backward(
    window: int | None, kept: tuple[_Row, Array, Array], slope_BZKQH: Array
) -> tuple[Array, Array, Array, None]:
    rows, out_BZKQH, normalizer_BZKQ = kept
    slope32_BZKQH = slope_BZKQH.astype(jnp.float32)
    along_BZKQ = jnp.sum(slope32_BZKQH * out_BZKQH.astype(jnp.float32), axis=-1)
    return *jax.lax.map(partial(_backward_row, window=window), (rows, normalizer_BZKQ, slope_BZKQH, along_BZKQ)), None


_attend.defvjp(_forward, _backward)


def _first_block(where_BZC: SegmentInfo, window: int | None) -> Array:
    B, Z, C = where_BZC.positions.shape
    reach_BZC = where_BZC.positions if window is None else jnp.minimum(where_BZC.positions, window - 1)
    column_BZC = jnp.arange(Z * C, dtype=jnp.int32).reshape(Z, C) - reach_BZC
    # a block of padding looks at nothing
    seen_BZC = jnp.where(where_BZC.segments > 0, column_BZC // C, Z)
    return jnp.min(seen_BZC, axis=-1)


def _scores(row: _Row, query: Array, key: Array, window: int | None) -> Array:
    """float32 [K, Q, C]; far below zero where the mask rule says no."""
    scores_KQC = jnp.einsum("kqh,kch->kqc", row.q_ZKQH[query], row.k_ZKCH[key], preferred_element_type=jnp.float32)
    at_query, at_key = (SegmentInfo(*(x[block][None] for x in row.where_ZC)) for block in (query, key))
    bias_CC = jnp.where(visible(at_query, at_key, window)[0], 0.0, MASKED)
    K, Q, C = scores_KQC.shape
    return (scores_KQC.reshape(K, -1, *bias_CC.shape) + bias_CC).reshape(K, Q, C)


def _forward_row(row: _Row, window: int | None) -> tuple[Array, Array]:
    """Output [Z, K, Q, H] in q's dtype and the logarithm of the softmax's denominator, float32 [Z, K, Q]."""
    Z, K, Q, H = row.q_ZKQH.shape

    def query_block(query: Array) -> tuple[Array, Array]:
        def key_block(key: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            largest_KQ1, total_KQ1, mixed_KQH = so_far
            scores_KQC = _scores(row, query, key, window)
            new_KQ1 = jnp.maximum(largest_KQ1, jnp.max(scores_KQC, axis=-1, keepdims=True))
            weights_KQC = jnp.exp(scores_KQC - new_KQ1)
            shrink_KQ1 = jnp.exp(largest_KQ1 - new_KQ1)
            v_KCH = row.v_ZKCH[key]
            more_KQH = jnp.einsum(
                "kqc,kch->kqh", weights_KQC.astype(v_KCH.dtype), v_KCH, preferred_element_type=jnp.float32
            )
            total_KQ1 = total_KQ1 * shrink_KQ1 + jnp.sum(weights_KQC, axis=-1, keepdims=True)
            return new_KQ1, total_KQ1, mixed_KQH * shrink_KQ1 + more_KQH

        start = jnp.full((K, Q, 1), MASKED), jnp.zeros((K, Q, 1)), jnp.zeros((K, Q, H))
        largest_KQ1, total_KQ1, mixed_KQH = jax.lax.fori_loop(row.first_Z[query], query + 1, key_block, start)
        total_KQ1 = jnp.maximum(total_KQ1, jnp.finfo(jnp.float32).tiny)  # a block of padding has none
        return (mixed_KQH / total_KQ1).astype(row.q_ZKQH.dtype), (largest_KQ1 + jnp.log(total_KQ1))[..., 0]

    return jax.lax.map(query_block, jnp.arange(Z))


def _backward_row(inputs: tuple[_Row, Array, Array, Array], window: int | None) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v, each in its dtype; `along` is the product of output and its gradient, summed over H."""
    row, normalizer_ZKQ, slope_ZKQH, along_ZKQ = inputs
    dtype = row.q_ZKQH.dtype

    def product(letters: str, a: Array, b: Array) -> Array:
        return jnp.einsum(letters, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)

    def query_block(to_keys: tuple[Array, Array], query: Array) -> tuple[tuple[Array, Array], Array]:
        q_KQH, slope_KQH = row.q_ZKQH[query], slope_ZKQH[query]

        def key_block(key: Array, so_far: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            to_q_KQH, to_k_ZKCH, to_v_ZKCH = so_far
            weights_KQC = jnp.exp(_scores(row, query, key, window) - normalizer_ZKQ[query][..., None])
            to_weights_KQC = product("kqh,kch->kqc", slope_KQH, row.v_ZKCH[key])
            to_scores_KQC = weights_KQC * (to_weights_KQC - along_ZKQ[query][..., None])
            to_k_ZKCH = to_k_ZKCH.at[key].add(product("kqc,kqh->kch", to_scores_KQC, q_KQH))
            to_v_ZKCH = to_v_ZKCH.at[key].add(product("kqc,kqh->kch", weights_KQC, slope_KQH))
            return to_q_KQH + product("kqc,kch->kqh", to_scores_KQC, row.k_ZKCH[key]), to_k_ZKCH, to_v_ZKCH

        start = (jnp.zeros(q_KQH.shape, jnp.float32), *to_keys)
        to_q_KQH, *to_keys_next = jax.lax.fori_loop(row.first_Z[query], query + 1, key_block, start)
        return (to_keys_next[0], to_keys_next[1]), to_q_KQH.astype(dtype)

    zeros = jnp.zeros(row.k_ZKCH.shape, jnp.float32), jnp.zeros(row.v_ZKCH.shape, jnp.float32)
    (to_k_ZKCH, to_v_ZKCH), to_q_ZKQH = jax.lax.scan(query_block, zeros, jnp.arange(row.q_ZKQH.shape[0]))
    return to_q_ZKQH, to_k_ZKCH.astype(dtype), to_v_ZKCH.astype(dtype)
