"""`zephyr-jax demo`: the paper's experiment at toy scale, on a tiny base model, on an emulated mesh, in minutes.

Every stage runs a public command. Rule-based are the teacher that wrote the conversations, the rater that rates the samples
(served on loopback to `feedback rate`), and the judge, another rule, that scores the final answers; losses and accuracies are
the models' own.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from zephyr_jax.config.feedback import AnswersConfig, RateConfig
from zephyr_jax.config.inspect import DemoConfig
from zephyr_jax.config.models import ExportConfig
from zephyr_jax.config.prepare import UltrafeedbackConfig
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.demo.corpus import conversations, preferences
from zephyr_jax.demo.lengths import SequenceLengths
from zephyr_jax.demo.rater import rater
from zephyr_jax.demo.results import StageResult, measure, write_results
from zephyr_jax.errors import InputError
from zephyr_jax.export.export import export
from zephyr_jax.feedback.answers import main as feedback_answers
from zephyr_jax.feedback.rate import main as feedback_rate
from zephyr_jax.prepare.ultrafeedback import main as prepare_ultrafeedback
from zephyr_jax.reference.fill import reference
from zephyr_jax.report.report import REPORT
from zephyr_jax.train_command import train

BASE = Path(__file__).parents[1] / "demo" / "assets" / "base"
STAGES = ("base", "dDPO without dSFT", "dSFT", "dSFT twice", "dSFT + dDPO")
"""Rows of the paper's Table 3, plus the base; `twice`: the second dSFT trains on the chosen answers."""
_SAMPLES_PER_PROMPT = 4  # as in UltraFeedback
_COMPUTE = {"compute_dtype": "float32"}


def demo(config: DemoConfig) -> Path:
    """Run the experiment; returns the exported folder. Raises InputError when the output folder holds a finished demo."""
    out = Path(config.output)
    if (out / REPORT).exists():
        raise InputError(
            f"{out} holds a finished demo. Remove the folder or choose another: --output runs/another-demo."
        )
    lengths = SequenceLengths.of(config.base_model or str(BASE))
    seeds, stages_of_seeds = range(config.seed, config.seed + config.num_seeds), []
    for seed in seeds:
        folder, title = (out / f"seed-{seed}", f"seed {seed} · ") if len(seeds) > 1 else (out, "")
        experiment = _Experiment(config=config, lengths=lengths, seed=seed, folder=folder, title=title)
        stages_of_seeds.append(experiment.run())
    aligned = stages_of_seeds[0][-1].folder
    settings = {"model": {"path": str(aligned)}, "output": str(out / "export"), "dtype": "float32"}
    exported = Path(export(from_dict(ExportConfig, settings, "demo")))
    write_results(out, stages_of_seeds, exported)
    return exported


@dataclass(frozen=True)
class _Experiment:
    """The runs of one seed."""

    config: DemoConfig
    lengths: SequenceLengths
    seed: int
    folder: Path
    title: str

    def run(self) -> list[StageResult]:
        """Train and measure the STAGES, in their order."""
        data = self._write_data()
        self._print_step("1 of 6 · dSFT on teacher conversations")
        self._sft("dsft", self._base, {"path": data["conversations-train"], "eval_path": data["conversations-test"]})
        self._print_step("2 of 6 · AI feedback: four samples per prompt, rated by rules, binarized into pairs")
        pairs = self._pairs(data["prompts"])
        self._print_step("3 of 6 · dDPO: reference log-probs, then training on preference pairs")
        self._dpo("dsft-ddpo", str(self.folder / "dsft"), pairs, data["preferences-test"])
        self._print_step("4 of 6 · ablation: dDPO without dSFT")
        self._dpo("ddpo", self._base, pairs, data["preferences-test"])
        self._print_step("5 of 6 · ablation: dSFT twice, the second time on the chosen answers")
        self._sft("dsft-twice", str(self.folder / "dsft"), {"path": str(pairs), "split": "train_sft"})
        self._print_step("6 of 6 · evaluation on prompts with held-out nouns")
        models = [self._base, *(str(self.folder / name) for name in ("ddpo", "dsft", "dsft-twice", "dsft-ddpo"))]
        return [
            measure(name, {"path": path, **_COMPUTE}, data["preferences-test"], self._mesh, self.lengths)
            for name, path in zip(STAGES, models, strict=True)
        ]

    @property
    def _base(self) -> str:
        return self.config.base_model or str(BASE)

    @property
    def _mesh(self) -> dict[str, Any]:
        return {"emulated_devices": self.config.emulated_devices}

    def _print_step(self, text: str) -> None:
        Console(stderr=True).rule(self.title + text, align="left")

    def _write_data(self) -> dict[str, str]:
        """Write teacher conversations, prompts to sample and held-out pairs; returns the paths by name."""
        seed, folder = self.seed, self.folder / "data"
        folder.mkdir(parents=True, exist_ok=True)
        sampled = preferences(seed + 2, self.config.num_prompts, "train")
        tables: dict[str, Iterable[Mapping[str, Any]]] = {
            "conversations-train": conversations(seed, self.config.num_conversations, "train"),
            "conversations-test": conversations(seed + 1, 128, "test"),
            "prompts": [{"prompt": row["prompt"], "prompt_id": row["prompt_id"]} for row in sampled],
            "preferences-test": preferences(seed + 3, self.config.num_held_out, "test"),
        }
        paths = {name: folder / f"{name}.jsonl" for name in tables}
        for name, rows in tables.items():
            paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {name: str(path) for name, path in paths.items()}

    def _sft(self, name: str, start: str, data: dict[str, str]) -> None:
        size = self.lengths.conversation
        settings = {
            **self._shared(name, start),
            "data": {**data, "max_length": size, "row_length": 2 * size},
            "batch": {"rows": 16},
            "schedule": {"epochs": 1, "evaluate_every": 15, "save_every": 0},
            "optimizer": {"learning_rate": 2e-3},
        }
        train(from_dict(SftConfig, settings, "demo"))

    def _pairs(self, prompts: str) -> Path:
        """Sample the dSFT model, rate the samples and binarize the ratings; returns the folder of the splits."""
        answers, ratings, out = (self.folder / name for name in ("answers", "ratings", "pairs"))
        settings = {
            "data": prompts,
            "output": str(answers),
            "mesh": self._mesh,
            "batch_size": 64,
            "principles": [],
            "models": [f"{self.folder / 'dsft'},name=sample {n}" for n in range(1, _SAMPLES_PER_PROMPT + 1)],
            "temperature": 1.0,
            "max_new_tokens": self.lengths.answer,
            "context_length": self.lengths.pair,
            "compute_dtype": "float32",
            "seed": self.seed,
        }
        feedback_answers(from_dict(AnswersConfig, settings, "demo"))
        with rater() as judge:
            settings = {"data": str(answers), "output": str(ratings), "judge": judge, "seed": self.seed}
            feedback_rate(from_dict(RateConfig, settings, "demo"))
        settings = {"data": str(ratings), "output": str(out), "ties": "drop", "test_fraction": 0.0, "seed": self.seed}
        prepare_ultrafeedback(from_dict(UltrafeedbackConfig, settings, "demo"), "zephyr-jax demo")
        return out

    def _dpo(self, name: str, start: str, pairs: Path, held_out: str) -> None:
        settings = {
            **self._shared(name, start),
            "reference": str(self.folder / "reference"),
            "data": {
                "path": str(pairs),
                "split": "train_prefs",
                "eval_path": held_out,
                "eval_split": "train",
                **self.lengths.of_pairs,
                "row_length": 3 * self.lengths.pair,  # 16 rows hold about 48 pairs, whose prompts are shared
            },
            "batch": {"rows": 16},
            "schedule": {"epochs": 2, "evaluate_every": 10, "save_every": 0},
            "optimizer": {"learning_rate": 1.5e-4, "lr_schedule": "linear"},
            "dpo": {"beta": 0.1},
        }
        config = from_dict(DpoConfig, settings, "demo")
        reference(config)
        train(config)

    def _shared(self, name: str, start: str) -> dict[str, Any]:
        model = {"path": start, **_COMPUTE, "remat": "none"}
        settings = {"output": str(self.folder / name), "model": model, "mesh": self._mesh, "seed": self.seed}
        return {**settings, "report": {"num_samples": 0}}  # `results` adds the answers of all stages to every report


def main(config: DemoConfig, command: str) -> None:
    """`zephyr-jax demo`."""
    demo(config)
