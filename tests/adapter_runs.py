"""Short runs with LoRA adapters, as command lines, and logits of what they made."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from tests.models import Loaded, logits, random_segments, whole_rows
from zephyr_jax.checkpoint.opened import open_model
from zephyr_jax.cli import main
from zephyr_jax.config.adapter import EvaluationOptions
from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules

CONFIGS = Path(__file__).parents[1] / "configs"
CARDS = CONFIGS / "tiny"
COMMON = (
    "--model.compute_dtype float32 --report.no_progress_bar --report.num_samples 0 --schedule.epochs 1 --schedule.max_steps 2 "
    "--schedule.evaluate_every 0 --batch.microbatch_rows 8 --data.max_length 128 --mesh.emulated_devices 8 "
    "--optimizer.warmup_ratio 0 --optimizer.lr_schedule constant --optimizer.learning_rate 1e-2"
)
TOKENS = np.stack(random_segments([24, 24], vocab=500))


@dataclass(frozen=True)
class Runs:
    """A folder with the runs `sft`, `dpo` (which continues the adapter of `sft`) and others on request."""

    folder: Path
    base: Path
    base_format: str

    @property
    def storage(self) -> str:
        blocks = " --adapter.block_size 4" if self.base_format not in ("float32", "bfloat16") else ""
        return f"--adapter.base_format {self.base_format}{blocks}"

    def sft(self, name: str = "sft", words: str = "", model: Path | None = None) -> Path:
        """An adapter of rank 4, alpha 8 on the base, or that of `model` trained further."""
        chats = write_rows(self.folder / "chats.jsonl", list(conversations(0, 16, "train")))
        adapter = f"--model.path {model or self.base} --adapter.rank 4 --adapter.alpha 8 {self.storage}"
        run(
            f"sft --config {CARDS}/sft.yaml --data.path {chats} {adapter} {words} --data.row_length 128",
            self.folder / name,
        )
        return self.folder / name

    def dpo(self, name: str = "dpo", words: str = "") -> Path:
        """DPO from `sft`, with its table."""
        pairs = write_rows(self.folder / "pairs.jsonl", list(preferences(0, 12, "train")))
        command = (
            f"--config {CARDS}/dpo.yaml --data.path {pairs} --model.path {self.folder}/sft --reference {self.folder}/reference "
            f"--batch.rows None --batch.examples 6 --data.row_length 256 --data.max_prompt_length 64 {words}"
        )
        run(f"reference {command}", self.folder / name)
        run(f"dpo {command}", self.folder / name)
        return self.folder / name


def run_qlora_cards(folder: Path, shared: Path) -> Runs:
    """The same two runs with `configs/zephyr-7b-beta-qlora`, of a small base and real rows, cut to short ones.

    Rank, alpha, targets, base format, batches, beta and start of the adapter are the cards'.
    """
    base, card = shared / "models" / "stories260k", CONFIGS / "zephyr-7b-beta-qlora"
    rows = "--data.split train --data.eval_split None --data.revision None --data.max_skipped_fraction 1"
    changes = f"{rows} --adapter.block_size 4"
    sft = f"--config {card}/sft.yaml --model.path {base} --model.revision None --data.path {shared}/data/conversations.jsonl"
    run(f"sft {sft} {changes} --data.limit 16 --data.row_length 128", folder / "sft")
    dpo = (
        f"--config {card}/dpo.yaml --model.path {folder}/sft --data.path {shared}/data/preferences.jsonl {changes} "
        f"--data.limit 32 --data.row_length 256 --data.max_prompt_length 64 --reference {folder}/reference"
    )
    run(f"reference {dpo}", folder / "dpo")
    run(f"dpo {dpo}", folder / "dpo")
    return Runs(folder, base, "nf4")


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(words: str, output: Path) -> None:
    """A training command with small settings."""
    main(shlex.split(f"{words} --output {output} {COMMON}"))


def export(words: str, output: Path) -> Path:
    """`zephyr-jax export`; returns the folder."""
    main(shlex.split(f"export {words} --output {output}"))
    return output


def logits_of(path: Path | str, devices: int = 1, **options: str | int) -> np.ndarray:
    """float32 [2, 24, vocab] of a model, computed in float32."""
    rules = ShardingRules(make_mesh(MeshOptions(), jax.devices()[:devices]))
    opened = open_model(EvaluationOptions(path=str(path), compute_dtype="float32", **options), rules)
    return np.asarray(logits(Loaded(opened.abstract, opened.load_weights(), rules), whole_rows(TOKENS)))


def check_logits(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """Equal within a part of the largest logit: float32 sums of products of another order differ by about 1e-6 of it."""
    np.testing.assert_array_less(np.abs(actual - expected).max(), tolerance * np.abs(expected).max())
