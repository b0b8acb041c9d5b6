"""Attention of packed rows on an NVIDIA GPU in several forms: milliseconds of forward and backward, and errors.

    python -m benchmarks.attention [--rows 16] [--heads 32] [--kv-heads 4] [--head-dim 64] [--window 4096]

The rows are those of ``benchmarks.workload``. Errors are relative norms over real tokens of the first two rows, against
`model.attention.attend` in float32 on the same bfloat16 inputs. Each form is a layer's attention and its gradient, jitted; the
median of 20 calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.worker_ours import make_batches
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.model.attention.blockwise import blockwise_attention
from zephyr_jax.model.attention.dense import SegmentInfo, cudnn_attention, dense_attention, visible

type Form = Callable[..., jax.Array]
MOST_SEGMENTS = 32
CHECKED = 2


def by_mask(q: jax.Array, k: jax.Array, v: jax.Array, where: SegmentInfo, window: int | None) -> jax.Array:
    """cuDNN with the full rule as a mask."""
    mask = visible(where, where, window)[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")


def packed(q: jax.Array, k: jax.Array, v: jax.Array, where: SegmentInfo, window: int | None) -> jax.Array:
    """cuDNN's packed layout, where each segment is a separate sequence."""
    from jax._src.cudnn.fused_attention_stablehlo import MaskType, dot_product_attention

    member = where.segments[:, None, :] == jnp.arange(1, MOST_SEGMENTS + 1)[None, :, None]
    length = jnp.sum(member, axis=2, dtype=jnp.int32)
    start = jnp.where(length > 0, jnp.argmax(member, axis=2).astype(jnp.int32), -1)
    offsets = jnp.pad(start, ((0, 0), (0, 1)), constant_values=-1)
    lengths = jnp.where(length > 0, length, -1)
    out: jax.Array = dot_product_attention(
        q, k, v, q_seqlen=lengths, kv_seqlen=lengths, q_offsets=offsets, kv_offsets=offsets,
        mask_type=MaskType.PADDING_CAUSAL, scale=q.shape[-1] ** -0.5, sliding_window_length=window,
    )  # fmt: skip
    return out


FORMS: dict[str, Form] = {
    "blocks of XLA": blockwise_attention,
    "cuDNN, all as a mask": by_mask,
    "cuDNN, causal, the rest as a mask (`cudnn_attention`)": partial(cudnn_attention, implementation="cudnn"),
    "cuDNN, packed layout": packed,
}


def rows_of(count: int, length: int) -> SegmentInfo:
    """Segments and positions of packed rows of the workload."""
    source, _ = make_batches("sft", 1, 0, length, BatchOptions(rows=count))
    rows = source[0].rows
    return SegmentInfo(*(jnp.asarray(array.reshape(count, length)) for array in (rows.segments, rows.positions)))


def gradient(form: Form, where: SegmentInfo, window: int | None) -> Any:
    """Jitted: output and gradients of a weighted sum over real tokens."""

    def loss(q: Any, k: Any, v: Any, grad: Any) -> Any:
        out = form(q, k, v, where, window=window)
        return jnp.sum(jnp.where((where.segments > 0)[..., None, None], out, 0).astype(jnp.float32) * grad), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))


def errors(actual: Any, expected: Any, where: SegmentInfo) -> str:
    """Relative norms of output and gradients at real tokens."""
    real = np.asarray(where.segments > 0)[:CHECKED]

    def error(one: Any, other: Any) -> float:
        one, other = (np.asarray(array[:CHECKED], np.float64)[real] for array in (one, other))
        return float(np.linalg.norm(one - other) / np.linalg.norm(other))

    (grads, out), (true_slopes, true_out) = actual, expected
    deviations = [error(out, true_out), *(error(a, b) for a, b in zip(grads, true_slopes, strict=True))]
    return " | ".join(f"{value:.1e}" for value in deviations)


def reference(inputs: tuple[jax.Array, ...], where: SegmentInfo, window: int | None) -> Any:
    """By `dense_attention` in float32, one row at a time: its scores are dense."""
    made = []
    with jax.default_matmul_precision("highest"):
        for row in range(CHECKED):
            one = SegmentInfo(where.segments[row : row + 1], where.positions[row : row + 1])
            form = partial(dense_attention, query=one, key=one)

            def dense(q: Any, k: Any, v: Any, _: Any, window: int | None, form: Any = form) -> Any:
                return form(q, k, v, window=window)

            made.append(gradient(dense, one, window)(*(array[row : row + 1].astype(jnp.float32) for array in inputs)))
    return jax.tree.map(lambda *rows: np.concatenate([np.asarray(row) for row in rows]), *made)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--window", type=int)
    parser.add_argument("--skip", type=int, default=0, help="leave out the first forms")
    options = parser.parse_args()
    where = rows_of(options.rows, options.length)
    sizes = [(options.rows, options.length, n, options.head_dim) for n in (options.heads, *[options.kv_heads] * 2)]
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v = (jax.random.normal(key, size, jnp.bfloat16) for key, size in zip(keys, sizes, strict=False))
    grad = jax.random.normal(keys[3], sizes[0], jnp.bfloat16)
    expected = reference((q, k, v, grad), where, options.window)
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {sizes[0]}, window {options.window}, ", end="")
    print(f"segments in a row: {float(jnp.max(where.segments, axis=1).mean()):.1f}\n")
    print("| form | ms | error of output | dq | dk | dv |\n|---|---|---|---|---|---|")
    for name, form in list(FORMS.items())[options.skip :]:
        try:
            run = gradient(form, where, options.window)
            actual = jax.block_until_ready(run(q, k, v, grad))
            seconds = []
            for _ in range(20):
                begun = time.perf_counter()
                jax.block_until_ready(run(q, k, v, grad))
                seconds.append(time.perf_counter() - begun)
            again = jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), actual, run(q, k, v, grad)))
            same = "" if again else " (not the same bits twice)"
            print(
                f"| {name} | {1000 * float(np.median(seconds)):.2f}{same} | {errors(actual, expected, where)} |",
                flush=True,
            )
        except Exception as error:
            print(f"| {name} | {type(error).__name__}: {' '.join(str(error).split())[:300]} |", flush=True)


if __name__ == "__main__":
    main()
