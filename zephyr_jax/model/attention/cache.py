"""Attention of new tokens to the slots of a key-value cache, whose cost grows with the tokens in it and not with its size."""

import jax
import jax.numpy as jnp
from jax import Array

from zephyr_jax.model.attention.dense import MASKED, SegmentInfo, visible
from zephyr_jax.model.attention.online_softmax import OnlineSoftmax
from zephyr_jax.model.softcap import softcap as capped

_BLOCK = 256  # slots; larger blocks attend to more empty slots, smaller ones have slower matmuls


def num_live_slots(query: SegmentInfo, slots: SegmentInfo) -> Array:
    """int32: slots up to the last one that a row with new tokens has filled.

    Args:
        query: Segments and positions of the new tokens, [B, L].
        slots: Segments and positions of the slots, [B, J], the new tokens among them.
    """
    rows_B1 = jnp.any(query.segments > 0, axis=1, keepdims=True)
    ends_J = jnp.arange(1, slots.segments.shape[1] + 1, dtype=jnp.int32)
    return jnp.max(jnp.where(rows_B1 & (slots.segments > 0), ends_J, 0))


def cache_attention(
    q_BLNH: Array,
    k_BKJH: Array,
    v_BKJH: Array,
    query: SegmentInfo,
    slots: SegmentInfo,
    num_live: Array,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """softmax(scale q k) v over the visible slots, block by block.

    A row's result does not depend, bit for bit, on how many slots other rows have filled: see `OnlineSoftmax.add`.

    Args:
        q_BLNH: Queries.
        k_BKJH: Keys of all slots; N is a multiple of K.
        v_BKJH: Values; finite in empty slots, too.
        query: Segments and positions of the queries.
        slots: Segments and positions of the slots.
        num_live: Of `num_live_slots`; slots from there on are not read.
        window: Sliding window in tokens; None for full attention.
        scale: Factor of the scores; None: 1 / sqrt(H).
        softcap: Soft cap of the scores.

    Returns:
        [B, L, N, H] in q's dtype; finite and meaningless for padding.
    """
    B, L, N, H = q_BLNH.shape
    K, J = k_BKJH.shape[1:3]
    C = min(_BLOCK, J)
    q_BKQH = (q_BLNH * (scale or H**-0.5)).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)

    def block(index: Array, sums: OnlineSoftmax) -> OnlineSoftmax:
        start = jnp.minimum(index * C, J - C)  # the last block overlaps the one before where C does not divide J

        def cut(x: Array, axis: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, start, C, axis)

        info_BC = SegmentInfo(cut(slots.segments, 1), cut(slots.positions, 1))
        seen_BLC = visible(query, info_BC, window) & (start + jnp.arange(C) >= index * C)
        scores_BKQC = jnp.einsum("bkqh,bkch->bkqc", q_BKQH, cut(k_BKJH, 2), preferred_element_type=jnp.float32)
        bias_BLC = jnp.where(seen_BLC, 0.0, MASKED)
        scores_BKQC = capped(scores_BKQC, softcap).reshape(B, K, -1, L, C) + bias_BLC[:, None, None]
        return sums.add(scores_BKQC.reshape(B, K, -1, C), cut(v_BKJH, 2))

    sums = jax.lax.fori_loop(0, (num_live + C - 1) // C, block, OnlineSoftmax.empty(B, K, N // K * L, H))
    out_BKQH = (sums.mixed_KQH / sums.safe_denominator_KQ1).astype(q_BLNH.dtype)
    out_BLNH: Array = out_BKQH.reshape(B, K, N // K, L, H).transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)
    return out_BLNH
