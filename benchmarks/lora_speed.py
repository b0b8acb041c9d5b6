"""Compares the CPU time of a LoRA step with that of the full-parameter step on the same rows.

    python -m benchmarks.lora_speed --mode sft dpo --base-format float32 nf4 --rounds 5

The 58M model, the batches and the settings of ``benchmarks.worker_ours``; rank 16, all seven projections. All steps live in one
process and take turns: a round is one step of each, on the same batch, and a ratio divides within a round. Compilation and the
first step are not timed. CPU seconds are those of the process, so that other processes disturb them less than wall time;
contention still inflates them, so the load average is printed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from statistics import median
from typing import Any, get_args

import jax
import numpy as np

from benchmarks import workload as w
from benchmarks.peers import machine, spread
from benchmarks.worker_ours import CHUNK, COMPUTE, ROW_LENGTH, ROWS, lora_format, make_batches, make_trainer, shape_of
from zephyr_jax.config.sections import BaseFormat, MeshOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.pack import PackingPlan
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.place import place_batch
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.train.anomalies import StepLimits

SHAPE = shape_of(w.DIMS["58m"])
FULL = "all weights"
FORMATS = get_args(BaseFormat)


class TimedStep:
    """A compiled step with its state."""

    def __init__(self, mode: str, plan: PackingPlan, rules: ShardingRules, weight_format: WeightFormat):
        self._step, self._state = make_trainer(mode, plan, rules, SHAPE, COMPUTE, CHUNK, weight_format)
        self.seconds: list[float] = []
        """CPU seconds of each step after the first."""
        self._steps = 0

    def run(self, batch: Any) -> None:
        """Take one step, and time it unless it is the first."""
        start, _ = w.clocks()
        self._state, metrics, _ = self._step(self._state, batch, StepLimits(np.float32(np.inf), np.bool_(False)))
        jax.block_until_ready((self._state, metrics))
        if self._steps:
            self.seconds.append(w.clocks()[0] - start)
        self._steps += 1


def measure(mode: str, formats: dict[str, WeightFormat], rounds: int, report: Callable[[str], None]) -> list[str]:
    """Rows of the table: one per format, with the ratio to the first."""
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    source, plan = make_batches(mode, rounds + 1, 0, ROW_LENGTH[mode], BatchOptions(rows=ROWS))
    steps = {name: TimedStep(mode, plan, rules, weight_format) for name, weight_format in formats.items()}
    targets = []
    for index in range(rounds + 1):
        batch = place_batch(rules, source[index], plan.microbatch_rows)
        for step in steps.values():
            step.run(batch)
        if index:
            targets.append(int(source[index].rows.targets.sum()))
            times = ", ".join(f"{name} {step.seconds[-1]:.2f} s" for name, step in steps.items())
            report(f"{mode}, round {index}: {times}")
    full = steps[FULL].seconds
    rows = []
    for name, step in steps.items():
        ratios = [own / other for own, other in zip(step.seconds, full, strict=True)]
        rate = median(count / seconds for count, seconds in zip(targets, step.seconds, strict=True))
        rows.append(f"| {mode} | {name} | {spread(step.seconds, 2)} | {rate:.0f} | {spread(ratios, 3)} |")
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", nargs="+", choices=w.MODES, default=["sft", "dpo"])
    parser.add_argument("--base-format", nargs="+", choices=FORMATS, default=["float32", "nf4"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    formats = {FULL: PLAIN}
    formats |= {f"rank {options.rank}, {name}": lora_format(SHAPE, options.rank, name) for name in options.base_format}

    def report(line: str) -> None:
        print(f"{line} (load average {os.getloadavg()[0]:.1f})", flush=True)

    print(f"{machine()}, JAX {jax.__version__}, {options.rounds} rounds", flush=True)
    rows = [row for mode in options.mode for row in measure(mode, formats, options.rounds, report)]
    print("\n| step | trained | CPU s a step | target tokens / CPU-s | ratio to all weights |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
