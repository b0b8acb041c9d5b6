"""Attention on TPU: JAX's splash attention (Pallas) under the mask rule of `dense`; grouped queries share keys unrepeated."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from zephyr_jax.errors import InputError
from zephyr_jax.model.attention.dense import ATTENTION, SegmentInfo

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
    k_BLKH: Array,
    v_BLKH: Array,
    info: SegmentInfo,
    window: int | None,
    scale: float | None = None,
    softcap: float | None = None,
    chip: str = "",
    interpret: bool = False,
) -> Array:
    """Self-attention of packed rows by a Pallas kernel; softmax in float32.

    Args:
        q_BLNH: Queries.
        k_BLKH: Keys.
        v_BLKH: Values.
        info: Segments and positions of the rows; positions grow with the column.
        window: Sliding window in tokens; None for full attention.
        scale: Factor of the scores; None: 1 / sqrt(H).
        softcap: Soft cap of the scores.
        chip: Device kind, which decides the block size.
        interpret: Run the kernel's interpreter on a CPU, for tests.

    Returns:
        [B, L, N, H] in q's dtype.

    Raises:
        InputError: The row length is not a multiple of 128.
    """
    # The kernel masks by column, not by position. Positions grow with the column inside a segment, so column and segment
    # decide the same mask as the rule of `visible`.
    B, L, N, H = q_BLNH.shape
    K = k_BLKH.shape[2]
    kernel = _kernel(L, N // K, window, softcap, block_size(L, chip, (H > 128) + (softcap is not None)), interpret)
    q_BKGLH = (q_BLNH * (scale or H**-0.5)).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKLH, v_BKLH = k_BLKH.transpose(0, 2, 1, 3), v_BLKH.transpose(0, 2, 1, 3)
    segments = kernels.SegmentIds(info.segments, info.segments)
    per_kv_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))  # MQA kernel: G queries share a key head, never repeated
    out_BKGLH = jnp.asarray(jax.vmap(per_kv_head)(q_BKGLH, k_BKLH, v_BKLH, segments))
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


def _kernel(
    length: int, queries_per_key: int, window: int | None, softcap: float | None, block: int, interpret: bool
) -> kernels.SplashAttentionKernel:
    shape = (length, length)
    head_mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
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
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        attn_logits_soft_cap=softcap,
        interpret=interpret,
    )
    return result
