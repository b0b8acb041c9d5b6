"""Seconds and memory to plan an epoch of ten million examples: `uv run python -m benchmarks.planning [--pairs]`.

Simulated lengths like UltraFeedback's: lognormal, in rows of 2,048. With `--pairs` the examples are pairs with shared prompts,
so that a row has two capacities. The aim is 60 s and 4 GB.
"""

import argparse
import resource
import time

import numpy as np

from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.pack import plan_training
from zephyr_jax.data.shared_prompt import packed_lengths


def draw(rng: np.random.Generator, count: int, median: float, sigma: float, low: int, high: int) -> np.ndarray:
    """int64 [N]: lognormal lengths in tokens, clipped."""
    return np.clip(rng.lognormal(np.log(median), sigma, count), low, high).astype(np.int64)


def main() -> None:
    """Print what the plan has and takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000_000)
    parser.add_argument(
        "--pairs", action="store_true", help="preference pairs with shared prompts instead of conversations"
    )
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    prompts = draw(rng, options.examples, 150, 0.9, 8, 480)
    segments = 2 if options.pairs else 1
    total = sum(prompts + draw(rng, options.examples, 260, 0.55, 50, 500) for _ in range(segments))
    data = DataOptions(max_length=1024, row_length=2048)
    lengths, unshared = packed_lengths(np.asarray(total), prompts, segments, data)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    plan = plan_training(lengths, data, BatchOptions(rows=64), 1, None, 0, unshared)
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = sum(map(len, plan.steps))
    print(
        f"{options.examples:,} {'pairs' if options.pairs else 'conversations'}: {rows:,} rows, "
        f"{1 - lengths.sum() / (rows * data.row_length):.1%} padding; {seconds:.1f} CPU s, peak {peak / 2**20:.2f} GiB, "
        f"{before / 2**20:.2f} GiB of it before planning"
    )


if __name__ == "__main__":
    main()
