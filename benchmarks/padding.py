"""Padding share of the DPO planner at UltraFeedback-like lengths: `python -m benchmarks.padding`."""

from itertools import product

import numpy as np

from benchmarks.workload import make_pairs
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training_sections import BatchOptions
from zephyr_jax.data.pack import plan_training
from zephyr_jax.data.shared_prompt import packed_lengths

BATCHES = {
    "rows: 64 (about 128 pairs)": BatchOptions(rows=64),
    "examples: 128, microbatch 8": BatchOptions(examples=128, microbatch_rows=8),
    "examples: 128, microbatch 16": BatchOptions(examples=128, microbatch_rows=16),
    "examples: 32, microbatch 8": BatchOptions(examples=32, microbatch_rows=8),
}


def main() -> None:
    """Print a Markdown table."""
    pairs = make_pairs(20_000, 0)
    prompts = np.array([len(pair.prompt) for pair in pairs])
    lengths = np.array([2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected) for pair in pairs])
    padded = 2 * np.array([max(len(p.chosen), len(p.rejected)) + len(p.prompt) for p in pairs])
    to_longest = sum(int(padded[start : start + 4].max()) * 4 for start in range(0, len(pairs), 4))
    targets = int((lengths - 2 * prompts).sum())
    print("| batch | prompts | in rows that are used | with the last microbatch's empty rows | slots per target |")
    print("|---|---|---|---|---|")
    padding = f"{1 - lengths.sum() / to_longest:.1%} | | {to_longest / targets:.2f}"
    print(f"| unpacked, 4 pairs padded to the longest | copied | {padding} |")
    for (name, batch), shares in product(BATCHES.items(), (False, True)):
        data = DataOptions(max_length=1024, row_length=2048, share_prompts=shares)
        packed, unshared = packed_lengths(lengths, prompts, 2, data)
        plan = plan_training(packed, data, batch, 1, None, 42, unshared)
        used = sum(len(step) for step in plan.steps) * plan.row_length
        size = plan.microbatch_rows
        computed = sum(-(-len(step) // size) * size for step in plan.steps) * plan.row_length
        padding = f"{1 - packed.sum() / used:.1%} | {1 - packed.sum() / computed:.1%} | {used / targets:.2f}"
        print(f"| {name} | {'shared' if shares else 'copied'} | {padding} |")


if __name__ == "__main__":
    main()
