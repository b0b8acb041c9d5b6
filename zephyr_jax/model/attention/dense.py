"""Dense attention and the mask rule that all implementations share; axis letters are in `zephyr_jax.model`."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from zephyr_jax.errors import InputError
from zephyr_jax.model.attention.zigzag import RowShard
from zephyr_jax.model.softcap import softcap as capped

MASKED = -1e30
ATTENTION = "attention"
"""Checkpoint name of the attention output, by which `remat` saves it, and name scope of attention in compiled programs."""


class SegmentInfo(NamedTuple):
    """Segment of each token of packed rows (int32, 0: padding) and its position in the segment (int32), each [B, L] or [B, J]."""

    segments: Array
    positions: Array


def visible(query: SegmentInfo, key: SegmentInfo, window: int | None) -> Array:
    """Mask rule, bool [B, L, J]: same segment, key position j not after query position i, and i - j < window if there is one."""
    i_BL1, j_B1J = query.positions[:, :, None], key.positions[:, None, :]
    same_BLJ = (query.segments[:, :, None] == key.segments[:, None, :]) & (key.segments[:, None, :] > 0)
    seen_BLJ = same_BLJ & (j_B1J <= i_BL1)
    return seen_BLJ if window is None else seen_BLJ & (j_B1J > i_BL1 - window)


def dense_attention(
    q_BLNH: Array,
    k_BJKH: Array,
    v_BJKH: Array,
    query: SegmentInfo,
    key: SegmentInfo,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """softmax(scale q k) v over the visible keys; all scores [B, N, L, J] are in memory, in float32.

    Args:
        q_BLNH: Queries.
        k_BJKH: Keys; N is a multiple of K (grouped-query attention).
        v_BJKH: Values.
        query: Segments and positions of the queries.
        key: Segments and positions of the keys.
        window: Sliding window in tokens; None for full attention.
        scale: Factor of the scores; None: 1 / sqrt(H).
        softcap: Soft cap of the scores.

    Returns:
        [B, L, N, H] in q's dtype. A query that sees no key (padding) gets the mean of the values, which nothing reads.
    """
    B, L, N, H = q_BLNH.shape
    K = k_BJKH.shape[2]
    q_BKGLH = (q_BLNH * (scale or H**-0.5)).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    scores_BKGLJ = jnp.einsum("bkglh,bjkh->bkglj", q_BKGLH, k_BJKH, preferred_element_type=jnp.float32)
    scores_BKGLJ = capped(scores_BKGLJ, softcap)
    bias_BLJ = jnp.where(visible(query, key, window), 0.0, MASKED)
    scores_BKGLJ += bias_BLJ[:, None, None]
    # The division by the softmax denominator comes after the product with v: L x H divisions instead of L x J.
    largest_BKGL1 = jax.lax.stop_gradient(jnp.max(scores_BKGLJ, axis=-1, keepdims=True))
    weights_BKGLJ = jnp.exp(scores_BKGLJ - largest_BKGL1)
    total_BKGL1 = jnp.sum(weights_BKGLJ, axis=-1, keepdims=True)
    mixed_BKGLH = jnp.einsum(
        "bkglj,bjkh->bkglh", weights_BKGLJ.astype(v_BJKH.dtype), v_BJKH, preferred_element_type=jnp.float32
    )
    out_BKGLH = (mixed_BKGLH / total_BKGL1).astype(q_BLNH.dtype)
    return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def cudnn_attention(
    q_BLNH: Array,
    k_BJKH: Array,
    v_BJKH: Array,
    info: SegmentInfo,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    shard: RowShard | None = None,
    *,
    implementation: Literal["cudnn", "xla"],
) -> Array:
    """Self-attention of packed rows by `jax.nn.dot_product_attention`, [B, L, N, H] in q's dtype.

    Args:
        q_BLNH: Queries; bfloat16 for `cudnn`.
        k_BJKH: Keys of the rows.
        v_BJKH: Values of the rows.
        info: Segments and positions of the rows.
        window: Sliding window in tokens; None for full attention.
        scale: Factor of the scores; None: 1 / sqrt(H).
        softcap: None; the kernel has no soft cap.
        shard: The columns of the queries; None: all.
        implementation: `cudnn` is the fused kernel of NVIDIA GPUs, which never stores all scores.

    Raises:
        InputError: A soft cap is asked for.
    """
    if softcap is not None:
        raise InputError(
            f"expected no soft cap of attention scores (the cuDNN kernel has none), got {softcap:g}. Set `kernel` to `xla`."
        )
    # Tokens of a segment are adjacent and in order, so the kernel's own causal rule is right inside segments, too, and skips
    # half of the work; only the rest of the mask rule is passed as an array. That rule does not fit a part of a row.
    i_L1, j_1J = jnp.arange(q_BLNH.shape[1])[:, None], jnp.arange(k_BJKH.shape[1])[None]
    segments_BL = info.segments
    if shard is not None:
        i_L1 = shard.columns(k_BJKH.shape[1])[:, None]
        segments_BL = info.segments[:, i_L1[:, 0]]
    mask_BLJ = (segments_BL[:, :, None] == info.segments[:, None, :]) & (info.segments[:, None, :] > 0)
    if window is not None:
        mask_BLJ &= j_1J > i_L1 - window
    if shard is not None:
        mask_BLJ &= j_1J <= i_L1
    mixed_BLNH = jax.nn.dot_product_attention(
        q_BLNH,
        k_BJKH,
        v_BJKH,
        mask=mask_BLJ[:, None],
        is_causal=shard is None,
        scale=scale,
        implementation=implementation,
    )
    result: Array = checkpoint_name(mixed_BLNH, ATTENTION)
    return result
