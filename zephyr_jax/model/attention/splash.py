"""Attention on TPU: JAX's splash attention kernel under the same mask rule, without repeating keys for grouped queries.

Letters: B rows, L row length, K kv heads, G queries per kv head, N = K * G query heads, H head dim.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from zephyr_jax.errors import InputError
from zephyr_jax.model.attention.dense import ATTENTION, SegmentInfo

_LARGEST = {"TPU v4": 512, "TPU v5 lite": 1024, "TPU v5": 1024, "TPU v6 lite": 2048}
"""Longest block by chip: what the kernel's working memory holds. Longer blocks have less to do around each product."""
_LEAST_BLOCKS = 4
"""Blocks of a row at least: a causal row of n blocks computes (n + 1) / 2n of its scores, 5/8 with four."""
_SMALLEST = 128


def splash_attention(
    q_BLNH: Array,
    k_BLKH: Array,
    v_BLKH: Array,
    where: SegmentInfo,
    window: int | None,
    chip: str = "",
    interpret: bool = False,
) -> Array:
    """`blockwise_attention` by a Pallas kernel: [B, L, N, H] in q's dtype; scores and softmax in float32.

    Positions inside a row grow with the column, so the kernel may mask by column and segment. Its backward pass is the
    fused one: queries, keys and values in one kernel. `chip` is the devices' kind and decides the blocks; `interpret` runs
    it on a CPU, for tests. Raises InputError for rows that blocks of 128 do not fill.
    """
    B, L, N, H = q_BLNH.shape
    K = k_BLKH.shape[2]
    kernel = _kernel(L, N // K, window, block_size(L, chip), interpret)
    q_BKGLH = (q_BLNH * H**-0.5).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k_BKLH, v_BKLH = k_BLKH.transpose(0, 2, 1, 3), v_BLKH.transpose(0, 2, 1, 3)
    segments = kernels.SegmentIds(where.segments, where.segments)
    per_head = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out_BKGLH = jnp.asarray(jax.vmap(per_head)(q_BKGLH, k_BKLH, v_BKLH, segments))
    return out_BKGLH.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def block_size(length: int, chip: str = "") -> int:
    """Queries, and keys, of a block in rows of `length`. Raises InputError where none divides it."""
    if length % _SMALLEST:
        raise InputError(
            f"Rows have {length} tokens. The TPU kernel takes multiples of {_SMALLEST}: set data.row_length so."
        )
    size = _LARGEST.get(chip, 512)
    while size > _SMALLEST and (length % size or length < _LEAST_BLOCKS * size):
        size //= 2
    return size


def _kernel(length: int, group: int, window: int | None, block: int, interpret: bool) -> kernels.SplashAttentionKernel:
    shape = (length, length)
    one = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    sizes = kernels.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([one] * group)
    return kernels.make_splash_mqa(
        mask,
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )
