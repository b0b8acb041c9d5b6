"""Compares what DPO of LoRA adapters learns with what DPO of all weights learns, on held-out pairs after equal steps.

    python -m benchmarks.lora_learning --output runs/lora-learning --stories FOLDER

The base is the demo's model (0.87M parameters) and, with ``--stories``, a folder with stories260k; the pairs are those of the
demo's grammar, held-out ones about nouns that training pairs do not name. Rank 8, all seven projections, float32 compute. A
variant scores its own reference, as ``base_format`` asks; the first evaluation, before training, shows the loss ln 2.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zephyr_jax.config.training import DpoConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.demo.corpus import preferences
from zephyr_jax.demo.demo import BASE
from zephyr_jax.demo.lengths import SequenceLengths
from zephyr_jax.reference.fill import reference
from zephyr_jax.train_command import train

PAIRS = {"train": 600, "test": 512}


@dataclass(frozen=True)
class Variant:
    """What is trained, and how."""

    name: str
    learning_rate: float
    adapter: dict[str, Any]


def variants(full_rate: float, lora_rate: float, rank: int, block_size: int) -> list[Variant]:
    """All weights, then adapters over bases of two formats."""
    adapter = {"rank": rank, "alpha": 2 * rank}
    return [
        Variant("all weights", full_rate, {}),
        Variant(f"rank {rank}, float32", lora_rate, {**adapter, "base_format": "float32"}),
        Variant(
            f"rank {rank}, nf4-{block_size}", lora_rate, {**adapter, "base_format": "nf4", "block_size": block_size}
        ),
    ]


def write_pairs(folder: Path, seed: int) -> dict[str, str]:
    """Training and held-out pairs as JSON lines; returns the paths by split."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for offset, (split, count) in enumerate(PAIRS.items()):
        paths[split] = folder / f"{split}.jsonl"
        rows = preferences(seed + offset, count, split)
        paths[split].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {split: str(path) for split, path in paths.items()}


def run_dpo(base: str, pairs: dict[str, str], variant: Variant, folder: Path, seed: int) -> list[dict[str, float]]:
    """Fill the reference and train; returns the evaluations, the first before step 1."""
    lengths = SequenceLengths.of(base)
    data = {"path": pairs["train"], "eval_path": pairs["test"], "eval_split": "train"}
    settings = {
        "output": str(folder / variant.name.replace(" ", "-").replace(",", "")),
        "reference": str(folder / "reference"),
        "seed": seed,
        "model": {"path": base, "compute_dtype": "float32", "remat": "none"},
        "data": {**data, **lengths.of_pairs, "row_length": 3 * lengths.pair},
        "batch": {"rows": 16},
        "schedule": {"epochs": 2, "evaluate_every": 1000, "save_every": 0},
        "optimizer": {"learning_rate": variant.learning_rate, "lr_schedule": "linear"},
        "dpo": {"beta": 0.1},
        "adapter": variant.adapter,
        "report": {"num_samples": 0},
    }
    config = from_dict(DpoConfig, settings, "lora_learning")
    reference(config)
    lines = (Path(train(config)) / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "eval/loss" in line]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the runs; finished ones are not repeated")
    parser.add_argument("--stories", help="folder with stories260k")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1.5e-4, help="of all weights")
    parser.add_argument("--lora-learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    bases = {"demo": (str(BASE), 32)} | ({"stories260k": (options.stories, 4)} if options.stories else {})
    print("| base | trained | seed | steps | loss at step 0 | held-out loss | held-out accuracy | margin |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name, (base, block_size) in bases.items():
        for seed in range(options.seeds):
            folder = options.output / f"{name}-{seed}"
            pairs = write_pairs(folder / "data", 100 * seed)
            for variant in variants(options.learning_rate, options.lora_learning_rate, options.rank, block_size):
                first, *_, last = run_dpo(base, pairs, variant, folder, seed)
                print(
                    f"| {name} | {variant.name} | {seed} | {last['step']} | {first['eval/loss']:.6f} | {last['eval/loss']:.4f} | "
                    f"{last['eval/rewards/accuracies']:.1%} | {last['eval/rewards/margins']:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
