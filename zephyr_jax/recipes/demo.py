"""`zephyr-jax demo`: the whole recipe on a tiny base that the package ships, on an emulated mesh, in minutes.

Everything goes through the public verbs. What is rule-based: the teacher and the rater that made the data, and the share
of requested words; the losses and accuracies are the models' own.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zephyr_jax.card import from_dict
from zephyr_jax.demo.corpus import conversations, preferences, requested_nouns
from zephyr_jax.demo.picture import draw_curves
from zephyr_jax.demo.words import CLOSINGS
from zephyr_jax.errors import InputError
from zephyr_jax.page.answers import Prompt, Said
from zephyr_jax.recipes.dpo import dpo
from zephyr_jax.recipes.evaluate import evaluate
from zephyr_jax.recipes.export import export
from zephyr_jax.recipes.generate import Answer, generate
from zephyr_jax.recipes.page import PAGE, answers_section, notes_section, results_section, stage_section, write_page
from zephyr_jax.recipes.reference import reference
from zephyr_jax.recipes.sft import sft
from zephyr_jax.verbs.looks import DemoConfig
from zephyr_jax.verbs.models import EvaluateConfig, ExportConfig, GenerateConfig
from zephyr_jax.verbs.training import DpoConfig, SftConfig

BASE = Path(__file__).parents[1] / "demo" / "assets" / "base"
_PROMPTS = 64
_SHOWN = 10  # of them, on the page
_HEADER = ("", "loss", "preference accuracy", "margin (nats)", "requested words used*", "ends properly*")
_NOTES = (
    f"* counted by rule in greedy answers to {_PROMPTS} prompts; the other columns are the models' own log-probs",
    "The teacher that wrote the conversations and the rater that scored the pairs are rules, too, of this package.",
)


@dataclass(frozen=True)
class Stage:
    """One row of the final table."""

    name: str
    model: str
    measures: dict[str, float]
    answers: list[Answer]

    def told(self) -> list[str]:
        """The row."""
        m = self.measures
        shares = f"{m['accuracy']:.1%}", f"{m['margin']:+.2f}", f"{m['words']:.1%}", f"{m['ends']:.1%}"
        return [self.name, f"{m['loss']:.3f}", *shares]


def demo(config: DemoConfig) -> Path:
    """Run the recipe and return the exported folder. Raises InputError when the output folder holds another demo."""
    config.check()
    console = Console(stderr=True)
    out = Path(config.output)
    if (out / "export").exists():
        raise InputError(
            f"{out} holds a finished demo. Remove the folder or choose another: --output runs/another-demo."
        )
    data = _write_data(out / "data", config.seed)
    shared: dict[str, Any] = {"mesh": {"emulated_devices": config.emulated_devices}, "seed": config.seed}
    compute = {"compute_dtype": "float32", "keep": "everything"}

    console.rule("1 of 4 · dSFT on a teacher's conversations", align="left")
    sft(
        from_dict(
            SftConfig, {**shared, **_sft_settings(out, data, {"path": config.base or str(BASE), **compute})}, "demo"
        )
    )

    preference_run = {**shared, **_dpo_settings(out, data, {"path": str(out / "sft"), **compute})}
    dpo_config = from_dict(DpoConfig, preference_run, "demo")
    console.rule("2 of 4 · the frozen reference's log-probs", align="left")
    reference(dpo_config)
    console.rule("3 of 4 · dDPO on preference pairs", align="left")
    dpo(dpo_config)

    console.rule("4 of 4 · export and evaluation on prompts with words never seen in training", align="left")
    exported = export(
        from_dict(
            ExportConfig, {"model": {"path": str(out / "dpo")}, "output": str(out / "export"), "dtype": "float32"}, ""
        )
    )
    models = {"base": config.base or str(BASE), "dSFT": str(out / "sft"), "dSFT + dDPO": str(exported)}
    stages = [_measure(name, {"path": path, **compute}, data, shared["mesh"]) for name, path in models.items()]
    picture = draw_curves(out / "curves.png", out / "sft" / "metrics.jsonl", out / "dpo" / "metrics.jsonl")
    _tell(stages, picture, _page(out, stages), exported)
    return exported


def _page(out: Path, stages: list[Stage]) -> Path:
    """One page about everything."""
    first = {answer.prompt: place for place, answer in reversed(list(enumerate(stages[0].answers)))}
    prompts = [
        Prompt(prompt, tuple(Said(stage.name, stage.answers[n].text, stage.answers[n].ended) for stage in stages))
        for prompt, n in sorted(first.items(), key=lambda item: item[1])[:_SHOWN]
    ]
    write_page(
        out / PAGE,
        "The whole recipe, small",
        ["A tiny base, fine-tuned on a teacher's conversations (dSFT), then aligned on preference pairs (dDPO)."],
        {},
        [
            results_section(_HEADER, [stage.told() for stage in stages], "On held-out prompts and pairs."),
            notes_section(_NOTES),
            answers_section(prompts, "Greedy answers to prompts with words that were never seen in training."),
            stage_section(out / "sft", "dSFT"),
            stage_section(out / "dpo", "dDPO"),
        ],
    )
    return out / PAGE


def _write_data(folder: Path, seed: int) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Iterable[Mapping[str, Any]]] = {
        "conversations-train": conversations(seed, 2400, "train"),
        "conversations-test": conversations(seed + 1, 128, "test"),
        "preferences-train": preferences(seed + 2, 1600, "train"),
        "preferences-test": preferences(seed + 3, 128, "test"),
    }
    paths = {name: folder / f"{name}.jsonl" for name in made}
    for name, rows in made.items():
        paths[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(path) for name, path in paths.items()}


def _sft_settings(out: Path, data: dict[str, str], model: dict[str, str]) -> dict[str, Any]:
    return {
        "output": str(out / "sft"),
        "model": model,
        "data": {
            "path": data["conversations-train"], "eval_path": data["conversations-test"],
            "max_length": 384, "row_length": 480,
        },
        "batch": {"rows": 16},
        "schedule": {"epochs": 1, "evaluate_every": 15, "save_every": 0},
        "optimizer": {"learning_rate": 2e-3},
    }  # fmt: skip


def _dpo_settings(out: Path, data: dict[str, str], model: dict[str, str]) -> dict[str, Any]:
    return {
        "output": str(out / "dpo"),
        "reference": str(out / "reference"),
        "model": model,
        "data": {
            "path": data["preferences-train"], "eval_path": data["preferences-test"],
            "max_length": 192, "max_prompt_length": 64, "row_length": 704,
        },
        "batch": {"rows": 16},
        "schedule": {"epochs": 1, "evaluate_every": 10, "save_every": 0},
        "optimizer": {"learning_rate": 3e-4, "schedule": "linear"},
        "dpo": {"beta": 0.1},
    }  # fmt: skip


def _measure(name: str, model: dict[str, str], data: dict[str, str], mesh: dict[str, Any]) -> Stage:
    def numbers(rows: str, lengths: dict[str, int]) -> dict[str, float]:
        return evaluate(
            from_dict(EvaluateConfig, {"model": model, "mesh": mesh, "data": {"path": rows, **lengths}}, "")
        )

    loss = numbers(data["conversations-test"], {"max_length": 384, "row_length": 384})["loss"]
    pairs = numbers(data["preferences-test"], {"max_length": 192, "max_prompt_length": 64, "row_length": 512})
    asked = [json.loads(line)["prompt"] for line in Path(data["preferences-test"]).read_text().splitlines()[:_PROMPTS]]
    settings = {"model": model, "mesh": mesh, "prompts": asked, "max_new_tokens": 128, "rows": _PROMPTS}
    answers = generate(from_dict(GenerateConfig, settings, "demo"))
    measures = {
        "loss": loss,
        "accuracy": pairs["accuracy"],
        "margin": pairs["margin"],
        "words": _share_of_words(answers),
        "ends": sum(answer.ended and answer.text.strip().endswith(tuple(CLOSINGS)) for answer in answers)
        / len(answers),
    }
    return Stage(name, model["path"], measures, answers)


def _share_of_words(answers: list[Answer]) -> float:
    """Share of the requested nouns that appear in the answers, as whole words."""
    wanted = [(set(requested_nouns(answer.prompt)), set(requested_nouns(answer.text))) for answer in answers]
    return sum(len(asked & said) for asked, said in wanted) / sum(len(asked) for asked, _ in wanted)


def _tell(stages: list[Stage], picture: Path, page: Path, exported: Path) -> None:
    console = Console()
    table = Table(title="held-out prompts and pairs")
    for title in _HEADER:
        table.add_column(title, justify="left" if not title else "right")
    for stage in stages:
        table.add_row(*stage.told())
    console.print(table)
    console.print(_NOTES[0])
    for stage in stages:
        answer = stage.answers[0]
        console.print(f"\n[bold]{stage.name}[/] > {answer.prompt}", highlight=False)
        console.print(answer.text + ("" if answer.ended else " ..."), highlight=False, markup=False)
    console.print(
        f"\npage             {page}\ncurves           {picture}\nexported model   {exported}", highlight=False
    )
