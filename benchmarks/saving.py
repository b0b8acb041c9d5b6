"""What a save costs: steps of the 58M model with and without one beside them, taking turns in one process.

    uv run python -m benchmarks.saving [ROUNDS]

A turn without is two steps; a turn with is a save, two steps, and the wait until all of it is on disk. The difference of
their medians is what the save costs; the share is of a hundred steps.
"""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import jax
import numpy as np
from etils import epath

from benchmarks import workload as w
from benchmarks.worker_ours import CHUNK, COMPUTE, ROW_LENGTH, ROWS, make_batches, make_trainer, shape_of
from zephyr_jax.checkpoint.manager import CheckpointManager
from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.config.training_sections import BatchOptions, ScheduleOptions
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.place import place_batch
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.train.anomalies import StepLimits

STEPS = 2


def main(rounds: int) -> None:
    """Print seconds of a step, of a save, and the share."""
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1]))
    source, plan = make_batches("sft", STEPS, 0, ROW_LENGTH["sft"], BatchOptions(rows=ROWS))
    step, state = make_trainer("sft", plan, rules, shape_of(w.DIMS["58m"]), COMPUTE, CHUNK)
    batches = [place_batch(rules, source[index], plan.microbatch_rows) for index in range(STEPS)]
    limits = StepLimits(np.float32(np.inf), np.bool_(False))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    alone, beside, blocked = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):
            for saves in (False, True):
                manager = CheckpointManager(epath.Path(Path(folder) / "run"), ScheduleOptions())
                begun = time.perf_counter()
                if saves:
                    progress = {"data": {}, "config": {}, "identity": {}}
                    manager.save(turn, state.trainable, (state.step, state.optimizer_state), progress, None)
                    held = time.perf_counter() - begun
                for batch in batches:
                    state, metrics, _ = step(state, batch, limits)
                    jax.block_until_ready(metrics)
                if saves:
                    manager.close()
                seconds = time.perf_counter() - begun
                if turn and saves:
                    beside.append(seconds)
                    blocked.append(held)
                elif turn:
                    alone.append(seconds)
    one = median(alone) / STEPS
    cost = median(beside) - median(alone)
    print(f"{size / 2**20:,.0f} MiB of state; {rounds} turns of {STEPS} steps each way")
    print(f"a step {one:.2f} s; a save holds the loop for {median(blocked):.2f} s and costs {cost:.2f} s in all")
    print(f"at one save in 100 steps: {cost / (100 * one):.2%} of the time of the steps")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
