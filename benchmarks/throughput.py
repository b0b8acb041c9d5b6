"""Tokens a second and MFU of the SFT and the DPO step of a 1.1B model (TinyLlama's shape) on one accelerator.

    python -m benchmarks.throughput --remat none save_attention --rows 16 [--mode sft dpo] [--kernel cudnn xla]

Random weights, float32 state with AdamW, bfloat16 compute, the examples of ``benchmarks.workload`` packed into rows of 2,048 by
the project's own planner. Zeros stand where DPO's batches bring their reference's log-probs along. Each combination compiles,
takes two steps, and is timed over the rest, from one finished step to another.

MFU: operations that real tokens need (6 a weight that multiplies, and attention to the keys that each token sees, counted
segment by segment; nothing for padding or for what is computed twice) over seconds and the data sheet's peak of dense bfloat16.
As is usual, the unembedding counts for every token, though only targets meet it.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import workload as w
from benchmarks.worker_ours import make_batches, make_trainer, shape_of
from zephyr_jax.config.sections import MeshOptions, Remat
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.place import place_batch
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.train.anomalies import StepLimits

SHAPE = shape_of(w.DIMS["1.1b"])
ROW_LENGTH = 2048
CHUNK = 2048
WARM = 2
PEAKS = {
    "H100": 989e12, "H200": 989e12, "A100": 312e12,
    "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12,
}  # fmt: skip
"""Dense bfloat16 operations a second by the data sheets, by a part of the device's kind."""


@dataclass(frozen=True)
class Variant:
    """One way to run a step."""

    mode: str
    kernel: str
    remat: Remat
    rows: int
    microbatch_rows: int


@dataclass(frozen=True)
class Measured:
    """Of the timed steps."""

    variant: Variant
    seconds: tuple[float, ...]
    """Of each step."""
    slots: int
    """Of all steps, as are tokens, targets and operations."""
    tokens: int
    targets: int
    operations: float
    compile_seconds: float
    peak_gib: float
    """Of device memory, since the process began."""

    def line(self, peak: float) -> str:
        """A row of the table."""
        one, total = self.variant, sum(self.seconds)
        return (
            f"| {one.mode} | {one.kernel} | {one.remat} | {one.rows} in {one.rows // one.microbatch_rows} | "
            f"{1000 * float(np.median(self.seconds)):,.0f} | {self.slots / total:,.0f} | {self.tokens / total:,.0f} | "
            f"{self.targets / total:,.0f} | {100 * self.operations / total / peak:.1f} % | {self.peak_gib:.1f} | "
            f"{self.compile_seconds:.0f} |"
        )


HEADER = (
    "| step | attention | kept | rows, microbatches | ms a step | slots/s | tokens/s | targets/s | MFU | GiB | compiled, s |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def operations(batch: Any, shape: ModelConfig) -> float:
    """That the real tokens of a batch need, forward and backward."""
    rows = batch.rows
    real = np.asarray(rows.segments) > 0
    keys = float(np.sum((np.asarray(rows.positions, np.int64) + 1)[real]))
    weights = shape.num_parameters - (0 if shape.tie_embeddings else shape.vocab_size * shape.d_model)
    return 6.0 * (weights * float(real.sum()) + 2 * shape.num_layers * shape.num_heads * shape.head_dim * keys)


def measure(variant: Variant, steps: int, shape: ModelConfig = SHAPE) -> Measured:
    """Compile, warm up, and time `steps` steps."""
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    batch = BatchOptions(rows=variant.rows, microbatch_rows=variant.microbatch_rows)
    source, plan = make_batches(variant.mode, WARM + steps, 0, ROW_LENGTH, batch)
    compute = Compute(remat=variant.remat, kernel=cast(Any, variant.kernel), chip=jax.devices()[0].device_kind)
    step, state = make_trainer(variant.mode, plan, rules, shape, compute, CHUNK)
    limits = StepLimits(np.float32(np.inf), np.bool_(False))
    made = [source[index] for index in range(WARM + steps)]
    placed = [place_batch(rules, batch, plan.microbatch_rows) for batch in made]
    begun = time.perf_counter()
    compiled = step.lower(state, placed[0], limits).compile()
    compile_seconds = time.perf_counter() - begun
    seconds = []
    for index, batch in enumerate(placed):
        begun = time.perf_counter()
        state, metrics, _ = compiled(state, batch, limits)
        jax.block_until_ready((state, metrics))
        if index >= WARM:
            seconds.append(time.perf_counter() - begun)
    rows = [batch.rows for batch in made[WARM:]]
    memory = jax.devices()[0].memory_stats() or {}
    return Measured(
        variant, tuple(seconds), sum(r.tokens.size for r in rows), sum(int((r.segments > 0).sum()) for r in rows),
        sum(int(r.targets.sum()) for r in rows), sum(operations(batch, shape) for batch in made[WARM:]), compile_seconds,
        memory.get("peak_bytes_in_use", 0) / 2**30,
    )  # fmt: skip


def matmul_rate(size: int = 8192) -> float:
    """Operations a second of a plain bfloat16 product on this device: what it really gives."""
    a, b = (jax.random.normal(jax.random.key(n), (size, size), jnp.bfloat16) for n in range(2))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    begun = time.perf_counter()
    jax.block_until_ready([product(a, b) for _ in range(20)])
    return 20 * 2 * size**3 / (time.perf_counter() - begun)


def peak_of(kind: str) -> float:
    """Data sheet's peak of the device."""
    peaks = [peak for name, peak in PEAKS.items() if name in kind]
    if not peaks:
        raise SystemExit(f"no peak is known for {kind!r}; add it to PEAKS, which has {', '.join(PEAKS)}")
    return peaks[0]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", nargs="+", choices=w.MODES, default=["sft", "dpo"])
    parser.add_argument("--kernel", nargs="+", default=["splash" if jax.default_backend() == "tpu" else "cudnn"])
    parser.add_argument("--remat", nargs="+", type=Remat, default=[Remat.SAVE_ATTENTION])
    parser.add_argument("--rows", nargs="+", type=int, default=[16])
    parser.add_argument("--microbatch-rows", type=int, default=None)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    kind = jax.devices()[0].device_kind
    peak = peak_of(kind)
    print(
        f"{kind}, JAX {jax.__version__}, {SHAPE.num_parameters / 1e9:.2f}B parameters, peak {peak / 1e12:,.0f} TFLOP/s,"
    )
    print(f"a plain product of 8192 x 8192: {matmul_rate() / 1e12:,.0f} TFLOP/s\n\n{HEADER}", flush=True)
    for mode in options.mode:
        for kernel in options.kernel:
            for remat in options.remat:
                for rows in options.rows:
                    variant = Variant(mode, kernel, remat, rows, options.microbatch_rows or rows)
                    try:
                        result = measure(variant, options.steps)
                    except jax.errors.JaxRuntimeError as error:
                        print(
                            f"| {mode} | {kernel} | {remat} | {rows} | {str(error).splitlines()[0][:150]} |", flush=True
                        )
                        continue
                    print(result.line(peak), flush=True)


if __name__ == "__main__":
    main()
