"""What comes out of `zephyr-jax demo`: every stage measured, the paper's table in small, and the page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from zephyr_jax.config.models import EvaluateConfig, GenerateConfig
from zephyr_jax.config.yaml_file import from_dict
from zephyr_jax.demo import judge
from zephyr_jax.demo.corpus import requested_nouns
from zephyr_jax.demo.lengths import Lengths
from zephyr_jax.demo.rater import RULE
from zephyr_jax.demo.words import CLOSINGS
from zephyr_jax.evaluate.held_out import evaluate
from zephyr_jax.generate.generate import Answer, generate
from zephyr_jax.report.answers_html import Prompt, Said
from zephyr_jax.report.report import (
    PAGE,
    answers_section,
    leave_page,
    notes_section,
    results_section,
    stage_section,
    write_page,
)
from zephyr_jax.report.sample_files import Kept, write_kept
from zephyr_jax.storage.files import open_path

_SHOWN = 10  # of them, on the page
_ANSWERED = "Greedy answers to prompts that each ask for a word which no prompt of the training named."
_HEADER = ("", "judge*", "beats dSFT*", "pairs right", "words*", "ends*")
_NOTES = (
    "* by rule, in greedy answers to prompts that each ask for a word which no prompt of the training named: the judge's score "
    "from 1 to 10, how often it is above that of dSFT's answer, the share of requested words that are used, and of answers that "
    "end properly. Pairs are the models' own: how often the better one of two held-out answers is the likelier one.",
    "Rules of this package also wrote the conversations (the teacher) and rated the samples that became pairs (the rater). "
    f"`feedback rate` asked the rater at an address, as it asks any model; its overall score: {RULE}.",
    f"The judge is another rule: {judge.RULE}.",
)


@dataclass(frozen=True)
class Stage:
    """A model of the table, measured."""

    name: str
    folder: Path
    accuracy: float
    answers: list[Answer]

    @property
    def scores(self) -> list[float]:
        """The judge's score of each answer."""
        return [judge.score(answer.prompt, answer.text) for answer in self.answers]

    @property
    def words(self) -> float:
        """Share of the requested nouns that appear in the answers, as whole words."""
        wanted = [(set(requested_nouns(each.prompt)), set(requested_nouns(each.text))) for each in self.answers]
        return sum(len(asked & said) for asked, said in wanted) / sum(len(asked) for asked, _ in wanted)

    @property
    def ends(self) -> float:
        """Share of the answers that end by themselves, with one of the closing sentences."""
        proper = [each.ended and each.text.strip().endswith(tuple(CLOSINGS)) for each in self.answers]
        return sum(proper) / len(proper)


def measure(name: str, model: dict[str, str], held_out: str, mesh: dict[str, Any], lengths: Lengths) -> Stage:
    """Answers and preference accuracy of a model on held-out pairs, by the public verbs."""
    data = {"path": held_out, **lengths.of_pairs, "row_length": 2 * lengths.pair}
    pairs = evaluate(from_dict(EvaluateConfig, {"model": model, "mesh": mesh, "data": data}, "demo"))
    prompts = [json.loads(line)["prompt"] for line in Path(held_out).read_text().splitlines()]
    settings = {"model": model, "mesh": mesh, "prompts": prompts, "max_new_tokens": lengths.answer, "rows": 64}
    answers = generate(from_dict(GenerateConfig, settings, "demo"))
    return Stage(name, Path(model["path"]), pairs["accuracy"], answers)


@dataclass(frozen=True)
class _Row:
    """A stage over all seeds: a value a seed."""

    name: str
    judged: list[float]
    wins: list[judge.Rate]
    accuracy: list[float]
    words: list[float]
    ends: list[float]

    def told(self) -> list[str]:
        """As the table shows it: means, ± the standard error over prompts, or over seeds where there are several."""
        wins = [rate.value for rate in self.wins]
        error = stdev(wins) / len(wins) ** 0.5 if len(wins) > 1 else self.wins[0].error
        told = "-" if self.name == "dSFT" else f"{fmean(wins):.0f} ± {error:.0f} %"
        shares = [f"{fmean(each):.1%}" for each in (self.accuracy, self.words, self.ends)]
        return [self.name, f"{fmean(self.judged):.2f}", told, *shares]


def leave_results(out: Path, made: Sequence[Sequence[Stage]], exported: Path) -> None:
    """Print the table over all seeds and write the page; `made` holds each seed's stages, in the table's order."""
    rows = [_row([stages[place] for stages in made], made) for place in range(len(made[0]))]
    verdict = _verdict(rows)
    for stages in made:
        _leave_answers(stages)
    page = _page(out, rows, made[0], verdict)
    console = Console()
    seeds = f", {len(made)} seeds" if len(made) > 1 else ""
    table = Table(title=f"the paper's ablation, small: held-out prompts and pairs{seeds}")
    for title in _HEADER:
        table.add_column(title, justify="left" if not title else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.told())
    console.print(table)
    for note in (verdict, *_NOTES):
        console.print(note, highlight=False)
    for stage in made[0]:
        answer = stage.answers[0]
        console.print(f"\n[bold]{stage.name}[/] > {answer.prompt}", highlight=False)
        console.print(answer.text + ("" if answer.ended else " ..."), highlight=False, markup=False)
    console.print(f"\npage             {page}\nexported model   {exported}", highlight=False)


def _row(stages: Sequence[Stage], made: Sequence[Sequence[Stage]]) -> _Row:
    dsft = [next(stage for stage in each if stage.name == "dSFT") for each in made]
    return _Row(
        stages[0].name,
        [fmean(stage.scores) for stage in stages],
        [judge.win_rate(stage.scores, other.scores) for stage, other in zip(stages, dsft, strict=True)],
        [stage.accuracy for stage in stages],
        [stage.words for stage in stages],
        [stage.ends for stage in stages],
    )


def _verdict(rows: Sequence[_Row]) -> str:
    """Whether the paper's order came out, seed by seed."""
    by_name = {row.name: row.judged for row in rows}
    best, dsft, without = by_name["dSFT + dDPO"], by_name["dSFT"], by_name["dDPO without dSFT"]
    holds = [
        without[seed] < dsft[seed] and all(best[seed] > row.judged[seed] for row in rows if row.name != "dSFT + dDPO")
        for seed in range(len(best))
    ]
    order = "dDPO without dSFT below dSFT, and dSFT + dDPO above all"
    if all(holds):
        return f"The paper's order came out{' for every seed' if len(holds) > 1 else ''}: {order}."
    some = f"came out for {sum(holds)} of {len(holds)} seeds only" if any(holds) else "did not come out"
    return f"The paper's order ({order}) {some}."


def _prompts(stages: Sequence[Stage]) -> tuple[Prompt, ...]:
    """The first prompts with the answers of all stages."""
    first = {answer.prompt: place for place, answer in reversed(list(enumerate(stages[0].answers)))}
    return tuple(
        Prompt(prompt, tuple(Said(stage.name, stage.answers[n].text, stage.answers[n].ended) for stage in stages))
        for prompt, n in sorted(first.items(), key=lambda item: item[1])[:_SHOWN]
    )


def _leave_answers(stages: Sequence[Stage]) -> None:
    """Put them on each run's own page, too."""
    kept = Kept(_prompts(stages), _ANSWERED)
    for stage in stages[1:]:  # the base is somebody else's
        folder = open_path(stage.folder)
        write_kept(folder, kept)
        leave_page(folder)


def _page(out: Path, rows: Sequence[_Row], stages: Sequence[Stage], verdict: str) -> Path:
    runs = [stage_section(stage.folder, stage.name) for stage in stages if (stage.folder / "metrics.jsonl").exists()]
    write_page(
        out / PAGE,
        "Zephyr, small",
        [
            "A tiny base, fine-tuned on a teacher's conversations, then aligned on pairs of its own samples.",
            verdict,
        ],
        {},
        [
            results_section(_HEADER, [row.told() for row in rows], "On held-out prompts and pairs."),
            notes_section(_NOTES),
            answers_section(_prompts(stages), _ANSWERED),
            *runs,
        ],
    )
    return out / PAGE
