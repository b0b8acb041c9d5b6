"""Attention of grouped queries, whole, under the one mask rule; `blockwise` and `splash` do packed rows without whole scores.

Letters: B rows, L queries of a row, S keys, K kv heads, G queries per kv head, N = K * G query heads, H head dim.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

MASKED = -1e30
ATTENTION = "attention"
"""Name under which kernels mark what their backward pass needs of the forward pass."""


class SegmentInfo(NamedTuple):
    """Where tokens stand: int32 segment (0: padding) and position inside it, each [B, L] or [B, S]."""

    segments: Array
    positions: Array


def visible(query: SegmentInfo, key: SegmentInfo, window: int | None) -> Array:
    """The mask rule, bool [B, L, S]: same segment, not later, and with a window w only i - w < j <= i."""
    i_BL1, j_B1S = query.positions[:, :, None], key.positions[:, None, :]
    same_BLS = (query.segments[:, :, None] == key.segments[:, None, :]) & (key.segments[:, None, :] > 0)
    seen_BLS = same_BLS & (j_B1S <= i_BL1)
    return seen_BLS if window is None else seen_BLS & (j_B1S > i_BL1 - window)


def dense_attention(
    q_BLNH: Array, k_BSKH: Array, v_BSKH: Array, query: SegmentInfo, key: SegmentInfo, window: int | None
) -> Array:
    """softmax(q k / sqrt(H)) v over the visible keys, [B, L, N, H] in q's dtype; scores and softmax in float32.

    A query that sees no key (padding) gives the plain average of the values; nothing ever reads it.
    """
    B, L, N, H = q_BLNH.shape
    K = k_BSKH.shape[2]
    q_BKGLH = (q_BLNH * H**-0.5).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    scores_BKGLS = jnp.einsum("bkglh,bskh->bkgls", q_BKGLH, k_BSKH, preferred_element_type=jnp.float32)
    bias_BLS = jnp.where(visible(query, key, window), 0.0, MASKED)
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


def cudnn_attention(
    q_BLNH: Array,
    k_BLKH: Array,
    v_BLKH: Array,
    where: SegmentInfo,
    window: int | None,
    implementation: Literal["cudnn", "xla"],
) -> Array:
    """Self-attention of packed rows by `jax.nn.dot_product_attention`; its `cudnn` is the fused kernel of NVIDIA GPUs.

    `cudnn` takes bfloat16 only; scores are never whole there. A segment's tokens stand side by side in order, so the kernel's
    own causal rule, which skips half the work, holds inside segments too; the rest of the rule comes as an array [B, 1, L, L].
    """
    i_L1, j_1L = jnp.arange(q_BLNH.shape[1])[:, None], jnp.arange(q_BLNH.shape[1])[None]
    mask_BLL = (where.segments[:, :, None] == where.segments[:, None, :]) & (where.segments[:, None, :] > 0)
    if window is not None:
        mask_BLL &= j_1L > i_L1 - window
    mixed_BLNH = jax.nn.dot_product_attention(
        q_BLNH, k_BLKH, v_BLKH, mask=mask_BLL[:, None], is_causal=True, implementation=implementation
    )
    return checkpoint_name(mixed_BLNH, ATTENTION)
