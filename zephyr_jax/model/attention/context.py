"""Context parallelism: attention of rows whose columns are split over devices.

A device has the queries of the columns that it holds and gathers all keys and values, small with grouped queries. All else of
a layer needs no other column. The backward pass sums their gradients and leaves each device those of its columns.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from zephyr_jax.config.sections import ROW_MULTIPLE
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.attention.shared_prompt import SharedInfo, share, unshare
from zephyr_jax.model.attention.zigzag import RowShard, from_zigzag
from zephyr_jax.model.layers import Placement


def context_attention(
    q_BLNH: Array,
    k_BLKH: Array,
    v_BLKH: Array,
    info: SegmentInfo | SharedInfo,
    kernel: Callable[..., Array],
    placement: Placement,
) -> Array:
    """Self-attention of a device's columns of packed rows, [B, L / n, N, H] in q's dtype; inside a `shard_map`.

    Args:
        q_BLNH: Rotated queries of the device's L / n columns of rows that are split over n devices in zigzag order.
        k_BLKH: Rotated keys of these columns.
        v_BLKH: Values of these columns.
        info: Layout of all columns of the rows.
        kernel: Attention of a part of packed rows: queries, all keys and values, `SegmentInfo` and `RowShard` -> mixed values.
        placement: Of the mesh.
    """
    shard = RowShard(placement.shard_index("length"), placement.num_shards("length"))

    def gather(x: Array) -> Array:
        return from_zigzag(placement.gather(x, "length", 1), shard.count)

    if isinstance(info, SegmentInfo):
        return kernel(q_BLNH, gather(k_BLKH), gather(v_BLKH), info, shard=shard)
    # Un-shared rows are split in the same way, and their columns copy columns of any device: queries are gathered, too.
    info = _padded(info, 2 * ROW_MULTIPLE * shard.count)
    length, unshared_length = q_BLNH.shape[1] * shard.count, info.columns.shape[1]
    q_BUNH = unshare(gather(q_BLNH), info.of_unshared_columns(shard.columns(unshared_length)))
    k_BUKH, v_BUKH = (unshare(gather(x), info) for x in (k_BLKH, v_BLKH))
    mixed_BUNH = kernel(q_BUNH, k_BUKH, v_BUKH, info.unshared_info, shard=shard)
    return share(gather(mixed_BUNH), info.of_columns(shard.columns(length)))


def _padded(info: SharedInfo, multiple: int) -> SharedInfo:
    """The layout with padding behind the un-shared rows, so that their length is a multiple."""
    pad = [(0, 0), (0, -info.columns.shape[1] % multiple)]
    return info._replace(columns=jnp.pad(info.columns, pad), segments=jnp.pad(info.segments, pad))
