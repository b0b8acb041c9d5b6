"""Flash attention of packed rows in plain XLA: scores exist for one block of queries and one block of keys at a time.

arXiv 2205.14135, backward pass as in 2307.08691 (algorithm 2), with loops instead of a kernel. The loop over key blocks starts
at the first segment of the query block, so packing costs nothing: work grows with the squares of the segment lengths, not of
the row length. Q = G * C: the queries of one block under one kv head.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from zephyr_jax.model.attention.dense import ATTENTION, MASKED, SegmentInfo, visible
from zephyr_jax.model.attention.online_softmax import OnlineSoftmax
from zephyr_jax.model.attention.zigzag import RowShard
from zephyr_jax.model.softcap import softcap as capped
from zephyr_jax.model.softcap import softcap_grad

_BLOCK = 128  # columns; larger blocks compute more masked scores, smaller ones have slower matmuls


class _Row(NamedTuple):
    """One row, split into Z blocks, of whose queries there may be fewer; stacked rows have a leading B."""

    q_ZKQH: Array
    block_Z: Array
    """int32: the block of the row that each block of queries is."""
    k_ZKCH: Array
    v_ZKCH: Array
    info_ZC: SegmentInfo
    first_key_block_Z: Array
    """int32: the first key block that a query of each block of the row can see."""


class _ScoreRule(NamedTuple):
    """Static options of the scores."""

    window: int | None
    softcap: float | None


def blockwise_attention(
    q_BLNH: Array,
    k_BJKH: Array,
    v_BJKH: Array,
    info: SegmentInfo,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    shard: RowShard | None = None,
) -> Array:
    """Self-attention of packed rows; forward and backward pass hold N x 128 x 128 scores, in float32.

    Args:
        q_BLNH: Queries.
        k_BJKH: Keys of the rows.
        v_BJKH: Values of the rows.
        info: Segments and positions of the rows; positions grow with the column inside a segment.
        window: Sliding window in tokens; None for full attention.
        scale: Factor of the scores; None: 1 / sqrt(H).
        softcap: Soft cap of the scores.
        shard: The columns of the queries; None: all.

    Returns:
        [B, L, N, H] in q's dtype; finite and meaningless for padding.
    """
    B, L, N, H = q_BLNH.shape
    # A block of a part of a row must not reach over the end of one of its two pieces.
    K, C = k_BJKH.shape[2], min(_BLOCK, L) if shard is None else math.gcd(_BLOCK, L // 2)
    pad = -L % C

    def split(x: Array) -> Array:
        return jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2)).reshape(B, -1, C, *x.shape[2:])

    info_BZC = SegmentInfo(*map(split, info))
    q_BZCKGH = split(q_BLNH * (scale or H**-0.5)).reshape(B, -1, C, K, N // K, H)
    q_BZKQH = q_BZCKGH.transpose(0, 1, 3, 4, 2, 5).reshape(B, -1, K, N // K * C, H)
    k_BZKCH, v_BZKCH = (split(x).transpose(0, 1, 3, 2, 4) for x in (k_BJKH, v_BJKH))
    blocks = k_BZKCH.shape[1]
    block_Z = jnp.arange(blocks) if shard is None else shard.columns(blocks)
    out_BZKQH = _attend(q_BZKQH, block_Z, k_BZKCH, v_BZKCH, info_BZC, _ScoreRule(window, softcap))
    out_BZCKGH = out_BZKQH.reshape(B, -1, K, N // K, C, H).transpose(0, 1, 4, 2, 3, 5)
    return out_BZCKGH.reshape(B, L + pad, N, H)[:, :L]


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attend(
    q_BZKQH: Array, block_Z: Array, k_BZKCH: Array, v_BZKCH: Array, info_BZC: SegmentInfo, rule: _ScoreRule
) -> Array:
    return _forward(q_BZKQH, block_Z, k_BZKCH, v_BZKCH, info_BZC, rule)[0]


def _forward(
    q_BZKQH: Array, block_Z: Array, k_BZKCH: Array, v_BZKCH: Array, info_BZC: SegmentInfo, rule: _ScoreRule
) -> tuple[Array, tuple[_Row, Array, Array]]:
    block_BZ = jnp.broadcast_to(block_Z, q_BZKQH.shape[:2])
    rows = _Row(q_BZKQH, block_BZ, k_BZKCH, v_BZKCH, info_BZC, _first_block(info_BZC, rule.window))
    # One row after another (map, not vmap): rows differ in their segments, and a vectorized loop would run each row as long
    # as the longest.
    outputs = jax.lax.map(partial(_forward_row, rule=rule), rows)
    out_BZKQH, logsumexp_BZKQ = (checkpoint_name(output, ATTENTION) for output in outputs)
    return out_BZKQH, (rows, out_BZKQH, logsumexp_BZKQ)


def _backward(
    rule: _ScoreRule, residuals: tuple[_Row, Array, Array], grad_out_BZKQH: Array
) -> tuple[Array, None, Array, Array, None]:
    rows, out_BZKQH, logsumexp_BZKQ = residuals
    grad32_BZKQH = grad_out_BZKQH.astype(jnp.float32)
    # Sum over keys of probs * grad_probs, which the softmax's gradient subtracts, without the probs (2307.08691, section 3.1.2).
    delta_BZKQ = jnp.sum(grad32_BZKQH * out_BZKQH.astype(jnp.float32), axis=-1)
    inputs = rows, logsumexp_BZKQ, grad_out_BZKQH, delta_BZKQ
    grad_q_BZKQH, grad_k_BZKCH, grad_v_BZKCH = jax.lax.map(partial(_backward_row, rule=rule), inputs)
    return grad_q_BZKQH, None, grad_k_BZKCH, grad_v_BZKCH, None


_attend.defvjp(_forward, _backward)


def _first_block(info_BZC: SegmentInfo, window: int | None) -> Array:
    """int32 [B, Z]: the first key block that a query of each block can see."""
    B, Z, C = info_BZC.positions.shape
    reach_BZC = info_BZC.positions if window is None else jnp.minimum(info_BZC.positions, window - 1)
    column_BZC = jnp.arange(Z * C, dtype=jnp.int32).reshape(Z, C) - reach_BZC
    # Padding sees no key: block Z is behind the last one, so that a block of padding has an empty loop.
    seen_BZC = jnp.where(info_BZC.segments > 0, column_BZC // C, Z)
    return jnp.min(seen_BZC, axis=-1)


def _scores(row: _Row, query: Array, key: Array, rule: _ScoreRule) -> Array:
    """float32 [K, Q, C] of a block of queries and a block of keys; `MASKED` added where the mask rule hides the key."""
    scores_KQC = jnp.einsum("kqh,kch->kqc", row.q_ZKQH[query], row.k_ZKCH[key], preferred_element_type=jnp.float32)
    query_info, key_info = (SegmentInfo(*(x[block][None] for x in row.info_ZC)) for block in (row.block_Z[query], key))
    scores_KQC = capped(scores_KQC, rule.softcap)
    bias_CC = jnp.where(visible(query_info, key_info, rule.window)[0], 0.0, MASKED)
    K, Q, C = scores_KQC.shape
    return (scores_KQC.reshape(K, -1, *bias_CC.shape) + bias_CC).reshape(K, Q, C)


def _forward_row(row: _Row, rule: _ScoreRule) -> tuple[Array, Array]:
    """Output [Z, K, Q, H] in q's dtype and the logarithm of the softmax denominator, float32 [Z, K, Q]."""
    Z, K, Q, H = row.q_ZKQH.shape

    def query_block(query: Array) -> tuple[Array, Array]:
        def key_block(key: Array, sums: OnlineSoftmax) -> OnlineSoftmax:
            return sums.add(_scores(row, query, key, rule), row.v_ZKCH[key])

        empty, block = OnlineSoftmax.empty(K, Q, H), row.block_Z[query]
        sums = jax.lax.fori_loop(row.first_key_block_Z[block], block + 1, key_block, empty)
        denominator_KQ1 = sums.safe_denominator_KQ1  # of a block of padding, too
        return (sums.mixed_KQH / denominator_KQ1).astype(row.q_ZKQH.dtype), (sums.max_KQ1 + jnp.log(denominator_KQ1))[
            ..., 0
        ]

    result: tuple[Array, Array] = jax.lax.map(query_block, jnp.arange(Z))
    return result


def _backward_row(inputs: tuple[_Row, Array, Array, Array], rule: _ScoreRule) -> tuple[Array, Array, Array]:
    """Gradients of q, k and v, each in q's dtype; `delta` is the product of the output and its gradient, summed over H."""
    row, logsumexp_ZKQ, grad_out_ZKQH, delta_ZKQ = inputs
    dtype = row.q_ZKQH.dtype

    def matmul(equation: str, a: Array, b: Array) -> Array:
        # Inputs in the compute dtype, as the forward pass has them: float32 matmuls are several times slower.
        return jnp.einsum(equation, a.astype(dtype), b.astype(dtype), preferred_element_type=jnp.float32)

    def query_block(grad_kv: tuple[Array, Array], query: Array) -> tuple[tuple[Array, Array], Array]:
        q_KQH, grad_out_KQH, block = row.q_ZKQH[query], grad_out_ZKQH[query], row.block_Z[query]

        def key_block(key: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            grad_q_KQH, grad_k_ZKCH, grad_v_ZKCH = carry
            # Scores are recomputed: storing them would need N x L x L numbers.
            scores_KQC = _scores(row, query, key, rule)
            probs_KQC = jnp.exp(scores_KQC - logsumexp_ZKQ[query][..., None])
            grad_probs_KQC = matmul("kqh,kch->kqc", grad_out_KQH, row.v_ZKCH[key])
            grad_scores_KQC = probs_KQC * (grad_probs_KQC - delta_ZKQ[query][..., None])
            if rule.softcap is not None:
                # Masked scores are not between the caps; their gradient is 0, which an infinite factor would make a NaN.
                grad_scores_KQC *= softcap_grad(jnp.maximum(scores_KQC, -rule.softcap), rule.softcap)
            grad_k_ZKCH = grad_k_ZKCH.at[key].add(matmul("kqc,kqh->kch", grad_scores_KQC, q_KQH))
            grad_v_ZKCH = grad_v_ZKCH.at[key].add(matmul("kqc,kqh->kch", probs_KQC, grad_out_KQH))
            return grad_q_KQH + matmul("kqc,kch->kqh", grad_scores_KQC, row.k_ZKCH[key]), grad_k_ZKCH, grad_v_ZKCH

        start = (jnp.zeros(q_KQH.shape, jnp.float32), *grad_kv)
        grad_q_KQH, *grad_kv_next = jax.lax.fori_loop(row.first_key_block_Z[block], block + 1, key_block, start)
        return (grad_kv_next[0], grad_kv_next[1]), grad_q_KQH.astype(dtype)

    zeros = jnp.zeros(row.k_ZKCH.shape, jnp.float32), jnp.zeros(row.v_ZKCH.shape, jnp.float32)
    (grad_k_ZKCH, grad_v_ZKCH), grad_q_ZKQH = jax.lax.scan(query_block, zeros, jnp.arange(row.q_ZKQH.shape[0]))
    return grad_q_ZKQH, grad_k_ZKCH.astype(dtype), grad_v_ZKCH.astype(dtype)
