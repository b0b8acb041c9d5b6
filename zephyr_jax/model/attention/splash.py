"""Attention on TPU: JAX's splash attention (Pallas) under the mask rule of `dense`; grouped queries share keys unrepeated."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from zephyr_jax.errors import InputError
from zephyr_jax.model.attention.dense import ATTENTION, SegmentInfo
from zephyr_jax.model.attention.zigzag import RowShard, to_zigzag

_MAX_BLOCK = {
    "TPU v4": (512, 512, 512),
    "TPU v5 lite": (1024, 1024, 512),
    "TPU v5": (1024, 1024, 512),
    "TPU v6 lite": (2048, 1024, 1024),
}
"""Largest block by chip, of kernels with neither, one or both of a soft cap and heads of more than 128 dimensions: what fits into
VMEM, where the backward pass holds scores and blocks of a head. Larger blocks have less overhead around each matmul."""
_MIN_BLOCKS = 4
"""Least number of blocks of a row: a causal row of n blocks computes (n + 1) / 2n of its scores, 5/8 with four."""
_MIN_BLOCK = 128


def splash_attention(
    q_BLNH: Array,
    k_BJKH: Array,
    v_BJKH: Array,
    info: SegmentInfo,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    shard: RowShard | None = None,
    chip: str = "",
    block: int | None = None,
    interpret: bool = False,
) -> Array:
    """Self-attention of packed rows by a Pallas kernel; softmax in float32.

    Args:
        q_BLNH: Queries.
        k_BJKH: Keys.
        v_BJKH: Values.
        info: Segments and positions of the rows; positions grow with the column.
        window: Sliding window in tokens; None for full attention.
        scale: Factor of the scores; None: 1 / sqrt(H).
        softcap: Soft cap of the scores.
        shard: The columns of the queries, whose pieces are multiples of 128; None: all.
        chip: Device kind, which decides the block size.
        block: Block size; None: that of `block_size`.
        interpret: Run the kernel's interpreter on a CPU, for tests.

    Returns:
        [B, L, N, H] in q's dtype.

    Raises:
        InputError: The row length is not a multiple of 128.
    """
    # The kernel masks by column, not by position. Positions grow with the column inside a segment, so column and segment
    # decide the same mask as the rule of `visible`.
    B, L, N, H = q_BLNH.shape
    J, K = k_BJKH.shape[1:3]
    count = 1 if shard is None else shard.count
    # The backward kernel of a part of a row takes more VMEM, too: blocks of 2,048 do not fit a v6e chip.
    block = block or block_size(J, chip, min(2, (H > 128) + (softcap is not None) + (shard is not None)))
    kernel = _kernel(J, N // K, window, softcap, block, interpret, count)
    query_segments = info.segments
    if shard is not None:
        kernel, query_segments = _part(kernel, shard), info.segments[:, shard.columns(J)]
    kernel = _without_disjoint_blocks(kernel, query_segments, info.segments)
    q_BKGLH = (q_BLNH * (scale or H**-0.5)).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKJH, v_BKJH = k_BJKH.transpose(0, 2, 1, 3), v_BJKH.transpose(0, 2, 1, 3)
    segments = kernels.SegmentIds(query_segments, info.segments)
    per_kv_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # MQA kernel: G queries share a key head, never repeated
    out_BKGLH = jnp.asarray(jax.vmap(per_kv_head)(q_BKGLH, k_BKJH, v_BKJH, segments))
    return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def block_size(length: int, chip: str = "", num_large: int = 0) -> int:
    """Number of queries, and of keys, of a block.

    Args:
        length: Tokens of a row.
        chip: Device kind.
        num_large: How many of these the kernel has, which need VMEM: a soft cap of scores, heads of more than 128 dimensions.

    Raises:
        InputError: No block divides the row.
    """
    if length % _MIN_BLOCK:
        raise InputError(
            f"Expected a row length that is a multiple of {_MIN_BLOCK} (TPU attention kernel), got {length}. Set data.row_length."
        )
    size = _MAX_BLOCK.get(chip, (512, 512, 512))[num_large]
    while size > _MIN_BLOCK and (length % size or length < _MIN_BLOCKS * size):
        size //= 2
    return size


def _part(kernel: kernels.SplashAttentionKernel, shard: RowShard) -> kernels.SplashAttentionKernel:
    """The kernel for a part of the queries: its lists of blocks and query columns have those of all parts in turn."""

    def own(x: Array) -> Array:
        axis = 0 if x.ndim == 1 else 1  # [columns], or [heads, blocks of queries, blocks of keys]
        size = x.shape[axis] // shard.count
        return jax.lax.dynamic_slice_in_dim(x, shard.index * size, size, axis)

    part: kernels.SplashAttentionKernel = jax.tree.map(own, kernel)
    return part


def _kernel(
    length: int,
    queries_per_key: int,
    window: int | None,
    softcap: float | None,
    block: int,
    interpret: bool,
    parts: int = 1,
) -> kernels.SplashAttentionKernel:
    """The kernel for rows whose queries are split into `parts` in zigzag order."""
    shape = (length, length)
    head_mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    if parts > 1:
        head_mask.q_sequence = to_zigzag(head_mask.q_sequence[None], parts)[0]
        block = math.gcd(block, length // (2 * parts))
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,  # gradients of q, k and v in one kernel: scores are recomputed once, not twice
    )
    mask = masks.MultiHeadMask([head_mask] * queries_per_key)
    result: kernels.SplashAttentionKernel = kernels.make_splash_mqa(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        residual_checkpoint_name=ATTENTION,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    return result


def _without_disjoint_blocks(
    kernel: kernels.SplashAttentionKernel, query_segments_BL: Array, key_segments_BJ: Array
) -> kernels.SplashAttentionKernel:
    """The kernel that skips a block if its queries and its keys have no segment in common, in all of the rows.

    The result is the same bit for bit: a block without a visible key adds zeros to the softmax and to the gradients.
    """
    # Which blocks the kernel computes and fetches are tables in scalar memory, which JAX fills from the static mask. One table
    # for all rows: with a table per row Pallas runs the rows in a loop, which copies every operand of the kernel.
    forward: Any = kernel.fwd_mask_info
    backward: Any = kernel.dkv_mask_info
    size = query_segments_BL.shape[1] // forward.block_mask.shape[1]

    def spans(segments: Array) -> tuple[Array, Array]:
        """Smallest and largest segment of each block."""
        # Padding is at the end of a row. As the largest number it does not make a block span the segments of the row before it.
        numbers = jnp.where(segments > 0, segments, key_segments_BJ.shape[1] + 1).reshape(len(segments), -1, size)
        return jnp.min(numbers, axis=2), jnp.max(numbers, axis=2)

    (first_query, last_query), (first_key, last_key) = spans(query_segments_BL), spans(key_segments_BJ)
    later, earlier = first_query[:, :, None] <= last_key[:, None], first_key[:, None] <= last_query[:, :, None]
    overlap = jnp.any(later & earlier, axis=0)  # [Z queries, Z keys]
    keys = forward.data_next[0].astype(jnp.int32)  # [Z queries, width]: the grid leaves out blocks before a window
    runs = (forward.block_mask[0] > 0) & jnp.take_along_axis(overlap, keys, axis=1)
    backward_runs = (backward.block_mask[0] > 0) & overlap
    return kernels.SplashAttentionKernel(
        _with_blocks(forward, runs, keys.reshape(-1)[_next_block(runs)]),
        None,
        _with_blocks(backward, backward_runs, _nearest_queries(backward_runs)),
        **kernel.kwargs,
    )


def _next_block(runs: Array) -> Array:
    """Index of the first computed block at or after each one, in the order of the grid; after the last one, the first.

    Naming it at a skipped block makes the kernel fetch its keys ahead of time.
    """
    order = jnp.arange(runs.size)
    ahead = jax.lax.cummin(jnp.where(runs.reshape(-1), order, runs.size), reverse=True)
    return jnp.where(ahead == runs.size, ahead[0], ahead).reshape(runs.shape)


def _nearest_queries(runs: Array) -> Array:
    """Block of queries to fetch at each block [Z queries, Z keys] of the backward pass, which takes the queries of one key
    block after another: the nearest computed one, so that the skipped blocks fetch nothing."""
    order = jnp.arange(len(runs))[:, None]
    first, last = jnp.min(jnp.where(runs, order, len(runs)), axis=0), jnp.max(jnp.where(runs, order, 0), axis=0)
    return jnp.clip(order, first, last)


def _with_blocks(tables: Any, runs: Array, fetched: Array) -> Any:
    """The kernel's `MaskInfo` with other blocks to compute and to fetch, each [Z, blocks]."""
    return tables._replace(
        block_mask=jnp.where(runs, tables.block_mask[0], 0)[None],
        data_next=fetched[None].astype(tables.data_next.dtype),
    )
