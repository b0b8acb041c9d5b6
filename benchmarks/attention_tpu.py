"""Attention of packed rows on TPUs, compiled without hardware: blocks that run, HBM and matmuls by kernel, row and block size.

    TPU_SKIP_MDS_QUERY=1 JAX_PLATFORMS=cpu uv run --extra tpu python -m benchmarks.attention_tpu --chip v5e --rows 1
    ... python -m benchmarks.attention_tpu --shares     # blocks that run, from the lengths of `benchmarks.workload`; no compiler

A line is one layer's attention and its gradient. `--kernel tokamax` needs tokamax (0.0.17 was compared) in the environment.
The compiler counts nothing inside a kernel: operations are those of the matmuls of all blocks that run, for one row of the
workload, two in the forward pass and five in the backward pass.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from benchmarks.worker_ours import make_batches
from zephyr_jax.batch import SharedTokenBatch
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.attention.splash import block_size, splash_attention
from zephyr_jax.plan.topology import topology_devices

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:1x1", "v5p": "v5p:2x2x1", "v6e": "v6e:1x1"}
BLOCKS = (256, 512, 1024, 2048)
COUNTED = 32
"""Rows whose blocks are counted."""
MATMULS = 2 + 5


@dataclass(frozen=True)
class Heads:
    """Attention of one layer of a model."""

    queries: int
    keys: int
    dim: int
    softcap: float | None = None


HEADS = {"llama": Heads(32, 8, 128), "gemma2": Heads(16, 8, 256, 50.0)}
"""`llama`: Mistral-7B and Llama-3-8B, whose heads are the same."""


def packed_segments(mode: str, length: int) -> np.ndarray:
    """int32 [rows, columns that attention sees]: pairs with shared prompts (dpo) or conversations (sft), packed into rows."""
    rows = make_batches(mode, 1, 0, length, BatchOptions(rows=COUNTED))[0][0].rows
    segments = rows.unshared_segments if isinstance(rows, SharedTokenBatch) else rows.segments
    return np.asarray(segments).reshape(COUNTED, -1)


def running_blocks(segments: np.ndarray, block: int, rows: int) -> tuple[int, int, float]:
    """Blocks of a row, those of a causal mask, and those that run where `rows` rows go through the kernel together."""
    num_blocks = segments.shape[1] // block
    numbers = np.where(segments > 0, segments, segments.shape[1]).reshape(len(segments), num_blocks, block)
    first, last = numbers.min(axis=2), numbers.max(axis=2)
    overlap = (first[:, :, None] <= last[:, None]) & (first[:, None] <= last[:, :, None])
    causal = np.tri(num_blocks, dtype=bool)
    runs = overlap.reshape(-1, rows, num_blocks, num_blocks).any(axis=1) & causal
    return num_blocks**2, int(causal.sum()), float(runs.sum(axis=(1, 2)).mean())


def jax_attention(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, block: int, heads: Heads) -> jax.Array:
    """The kernel of this project, with blocks of the given size."""
    info = SegmentInfo(segments, segments)  # the kernel reads no positions
    return splash_attention(q, k, v, info, None, softcap=heads.softcap, block=block)


def tokamax_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, block: int, heads: Heads
) -> jax.Array:
    """tokamax's splash attention; it skips blocks by segments, too."""
    from tokamax._src.ops.experimental.tpu.splash_attention import base
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_kernel as kernels
    from tokamax._src.ops.experimental.tpu.splash_attention import splash_attention_mask as masks

    names = [f"block_{side}{part}" for side in ("q", "kv") for part in ("", "_dkv")]
    config = kernels.SplashConfig(**dict.fromkeys(names, block), attn_logits_soft_cap=heads.softcap)
    rows, length, queries, dim = q.shape
    kernel = kernels.make_splash_mqa_single_device(masks.CausalMask((length, length)), config=config)
    q = (q * dim**-0.5).reshape(rows, length, heads.keys, queries // heads.keys, dim).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    per_key = jax.vmap(kernel, in_axes=(0, 0, 0, None))
    out: jax.Array = jax.vmap(per_key)(q, k, v, base.SegmentIds(segments, segments))
    return out.transpose(0, 3, 1, 2, 4).reshape(rows, length, queries, dim)


KERNELS: dict[str, Callable[..., jax.Array]] = {"jax": jax_attention, "tokamax": tokamax_attention}


def compile_layer(chip: str, kernel: str, heads: Heads, rows: int, length: int, block: int) -> str:
    """MiB of temporaries of output and gradients, or why the compiler refuses."""
    sharding = NamedSharding(Mesh(topology_devices(TOPOLOGIES[chip])[:1], ("device",)), PartitionSpec())

    def array(*sizes: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, length, *sizes), dtype, sharding=sharding)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, grad: jax.Array) -> jax.Array:
        return jnp.sum((KERNELS[kernel](q, k, v, segments, block, heads) * grad).astype(jnp.float32))

    queries, keys = array(heads.queries, heads.dim), array(heads.keys, heads.dim)
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(queries, keys, keys, array(dtype=jnp.int32), queries)
    try:
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    except jax.errors.JaxRuntimeError as error:
        return f"refused: {' '.join(str(error).split())[:100]}"
    return f"{compiled.memory_analysis().temp_size_in_bytes / 2**20:.0f}"


def print_shares(lengths: Sequence[int], rows: int) -> None:
    """The table of blocks that run, without the compiler."""
    print(
        "| rows of | columns of attention | block | blocks | causal | run: 1 row | run: "
        f"{rows} rows | TFLOP of a layer: causal | run |\n|---|---|---|---|---|---|---|---|---|"
    )
    for mode in ("sft", "dpo"):
        for length in lengths:
            segments = packed_segments(mode, length)
            columns = segments.shape[1]
            for block in (block for block in BLOCKS if columns % block == 0 and block < columns):
                blocks, causal, alone = running_blocks(segments, block, 1)
                together = running_blocks(segments, block, rows)[2]
                heads = HEADS["llama"]
                operations = MATMULS * 2 * block**2 * heads.dim * heads.queries / 1e12
                print(
                    f"| {mode}, {length:,} | {columns:,} | {block:,} | {blocks} | {causal} | {alone:.1f} | {together:.1f} | "
                    f"{causal * operations:.2f} | {together * operations:.2f} |"
                )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chip", nargs="+", default=["v5e"], choices=TOPOLOGIES)
    parser.add_argument("--heads", nargs="+", default=["llama"], choices=HEADS)
    parser.add_argument("--kernel", nargs="+", default=["jax"], choices=KERNELS)
    parser.add_argument("--length", nargs="+", type=int, default=[2048, 4096, 8192], help="columns of attention")
    parser.add_argument("--block", nargs="+", type=int, help="default: of the chip and the row")
    parser.add_argument("--rows", type=int, default=4, help="rows that go through the kernel together")
    parser.add_argument("--shares", action="store_true", help="the blocks that run in packed rows of the workload")
    options = parser.parse_args()
    if options.shares:
        print_shares(options.length, options.rows)
        return
    print("| chip | heads | kernel | rows | columns | block | temporaries, MiB |\n|---|---|---|---|---|---|---|")
    for chip, name, kernel, length in product(options.chip, options.heads, options.kernel, options.length):
        heads = HEADS[name]
        device_kind = topology_devices(TOPOLOGIES[chip])[0].device_kind
        for block in options.block or [block_size(length, device_kind, (heads.dim > 128) + bool(heads.softcap))]:
            temporaries = compile_layer(chip, kernel, heads, options.rows, length, block)
            print(
                f"| {chip} | {name} | {kernel} | {options.rows} | {length:,} | {block:,} | {temporaries} |", flush=True
            )


if __name__ == "__main__":
    main()
