"""Attention of rows with shared prompts: a kernel of packed rows sees each segment whole, with its own copy of the prompt.

Queries, keys and values, which a prompt has once, are gathered into the un-shared row of U columns (`prompt chosen | prompt
rejected`); the kernel runs there under the usual mask rule; its output is gathered back. Axis letters are in `zephyr_jax.model`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from zephyr_jax.batch import SharedTokenBatch
from zephyr_jax.model.attention.dense import SegmentInfo


class SharedInfo(NamedTuple):
    """Layout of rows with shared prompts; see `batch.SharedTokenBatch`."""

    positions: Array
    """int32 [B, L]."""
    columns: Array
    """int32 [B, U]: column of the row that each column of the un-shared row copies."""
    segments: Array
    """int32 [B, U]; 0 is padding."""
    copies: Array
    """int32 [B, E, L]: columns of the un-shared row that copy each column of the row; -1 for no such copy."""

    @classmethod
    def of(cls, rows: SharedTokenBatch) -> "SharedInfo":
        """The layout of these rows."""
        B, L = rows.tokens.shape
        return cls(rows.positions, rows.unshared_columns, rows.unshared_segments, rows.copies.reshape(B, -1, L))

    @property
    def unshared_info(self) -> SegmentInfo:
        """Segments and positions of the un-shared rows."""
        return SegmentInfo(self.segments, _take(self.positions, self.columns))

    def of_unshared_columns(self, columns_C: Array) -> "SharedInfo":
        """The layout for `unshare` alone, of an un-shared row that has only these of its columns."""
        place_U = _places(columns_C, self.columns.shape[1])
        copies = jnp.where(self.copies >= 0, place_U[jnp.maximum(self.copies, 0)], -1)
        return self._replace(columns=self.columns[:, columns_C], copies=copies)

    def of_columns(self, columns_C: Array) -> "SharedInfo":
        """The layout for `share` alone, of a row that has only these of its columns."""
        # A column that the row lacks becomes its first one: nothing reads it, as it is not the copy that `share` reads.
        columns = jnp.maximum(_places(columns_C, self.positions.shape[1])[self.columns], 0)
        return self._replace(columns=columns, copies=self.copies[:, :, columns_C])


def unshared_attention(
    q_BLNH: Array, k_BLKH: Array, v_BLKH: Array, info: SharedInfo, kernel: Callable[..., Array]
) -> Array:
    """Self-attention of packed rows with shared prompts, [B, L, N, H] in q's dtype.

    Args:
        q_BLNH: Rotated queries.
        k_BLKH: Rotated keys.
        v_BLKH: Values.
        info: Layout of the rows.
        kernel: Self-attention of packed rows without shared prompts: queries, keys, values and `SegmentInfo` -> mixed values.
    """
    unshared = (unshare(x, info) for x in (q_BLNH, k_BLKH, v_BLKH))
    return share(kernel(*unshared, info.unshared_info), info)


def _places(columns_C: Array, length: int) -> Array:
    """int32 [length]: where each column stands in `columns_C`; -1 where it does not."""
    return jnp.full(length, -1, jnp.int32).at[columns_C].set(jnp.arange(len(columns_C), dtype=jnp.int32))


def _take(x: Array, index: Array) -> Array:
    """x[b, index[b, i]] for every row and index; indices are in bounds."""
    index = index.reshape(*index.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")


# Both gathers have their own backward pass, which gathers, too. JAX would transpose them into scatters that add: slow on TPUs,
# and on GPUs atomic, so that sums would differ from run to run.
@jax.custom_vjp
def unshare(x_BLNH: Array, info: SharedInfo) -> Array:
    """[B, L, ...] -> [B, U, ...]: every segment with its own copy of the prompt."""
    return _take(x_BLNH, info.columns)


def _unshare_forward(x_BLNH: Array, info: SharedInfo) -> tuple[Array, SharedInfo]:
    return _take(x_BLNH, info.columns), info


def _unshare_backward(info: SharedInfo, grad_BUNH: Array) -> tuple[Array, None]:
    """The gradient of a column is the sum over its copies, in float32; padding has none."""

    def of_copy(column_BL: Array) -> Array:
        grad_BLNH = _take(grad_BUNH, jnp.maximum(column_BL, 0)).astype(jnp.float32)
        return jnp.where((column_BL >= 0)[:, :, None, None], grad_BLNH, 0.0)

    copies = [of_copy(info.copies[:, index]) for index in range(info.copies.shape[1])]
    return sum(copies[1:], copies[0]).astype(grad_BUNH.dtype), None


unshare.defvjp(_unshare_forward, _unshare_backward)


@jax.custom_vjp
def share(x_BUNH: Array, info: SharedInfo) -> Array:
    """[B, U, ...] -> [B, L, ...]: of a prompt's copies, which are equal, the first; meaningless for padding."""
    return _take(x_BUNH, jnp.maximum(info.copies[:, 0], 0))


def _share_forward(x_BUNH: Array, info: SharedInfo) -> tuple[Array, SharedInfo]:
    return share(x_BUNH, info), info


def _share_backward(info: SharedInfo, grad_BLNH: Array) -> tuple[Array, None]:
    """Only the copies that `share` reads have a gradient."""
    is_read_BU = _take(info.copies[:, 0], info.columns) == jnp.arange(info.columns.shape[1])
    return jnp.where(is_read_BU[:, :, None, None], _take(grad_BLNH, info.columns), 0), None


share.defvjp(_share_forward, _share_backward)
