"""Results of `zephyr-jax demo`: measurements of every stage, the ablation table and the report."""

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
from zephyr_jax.demo.lengths import SequenceLengths
from zephyr_jax.demo.rater import RULE
from zephyr_jax.demo.words import CLOSINGS
from zephyr_jax.evaluate.held_out import evaluate
from zephyr_jax.generate.generate import GeneratedAnswer, generate
from zephyr_jax.report.html import PromptSamples, Sample
from zephyr_jax.report.report import REPORT, try_write_report, write_report
from zephyr_jax.report.sample_files import SampleSet, write_samples
from zephyr_jax.report.sections import notes_section, run_section, samples_section, table_section
from zephyr_jax.storage.files import open_path

_NUM_PROMPTS = 10  # in the report
_ANSWERS_CAPTION = "Greedy answers to prompts that each request a held-out noun."
_HEADER = ("", "judge*", "win rate*", "accuracy", "words*", "ends*")
_NOTES = (
    "* rule-based, over greedy answers to prompts that each request a held-out noun: judge score from 1 to 10, win rate against "
    "dSFT's answers, the share of requested nouns that are used, and the share of answers that end properly. "
    "`accuracy` is the model's own preference accuracy: how often the better of two held-out answers is the likelier.",
    "Rules of this package also wrote the conversations (the teacher) and rated the samples that became pairs (the rater, which "
    f"`feedback rate` asked through its OpenAI-compatible address). The rater's overall score: {RULE}.",
    f"The judge is another rule: {judge.RULE}.",
)


@dataclass(frozen=True)
class StageResult:
    """Measurements of one model of the table."""

    name: str
    folder: Path
    accuracy: float
    answers: list[GeneratedAnswer]

    @property
    def scores(self) -> list[float]:
        """The judge's score of each answer."""
        return [judge.score(answer.prompt, answer.text) for answer in self.answers]

    @property
    def words(self) -> float:
        """Share of the requested nouns that appear in the answers, as whole words."""
        nouns = [(set(requested_nouns(a.prompt)), set(requested_nouns(a.text))) for a in self.answers]
        return sum(len(asked & used) for asked, used in nouns) / sum(len(asked) for asked, _ in nouns)

    @property
    def ends(self) -> float:
        """Share of the answers that end by themselves, with one of the closing sentences."""
        return fmean(answer.ended and answer.text.strip().endswith(CLOSINGS) for answer in self.answers)


def measure(
    name: str, model: dict[str, str], held_out: str, mesh: dict[str, Any], lengths: SequenceLengths
) -> StageResult:
    """Answers and preference accuracy of a model on held-out pairs, by the public commands."""
    data = {"path": held_out, **lengths.of_pairs, "row_length": 2 * lengths.pair}
    pairs = evaluate(from_dict(EvaluateConfig, {"model": model, "mesh": mesh, "data": data}, "demo"))
    prompts = [json.loads(line)["prompt"] for line in Path(held_out).read_text().splitlines()]
    settings = {"model": model, "mesh": mesh, "prompts": prompts, "max_new_tokens": lengths.answer, "batch_size": 64}
    answers = generate(from_dict(GenerateConfig, settings, "demo"))
    return StageResult(name=name, folder=Path(model["path"]), accuracy=pairs["accuracy"], answers=answers)


@dataclass(frozen=True)
class _TableRow:
    """One stage: lists hold one value per seed."""

    name: str
    judged: list[float]
    wins: list[judge.WinRate]
    accuracy: list[float]
    words: list[float]
    ends: list[float]

    def cells(self) -> list[str]:
        """Cells of the table: means, ± the standard error over seeds (over prompts with one seed)."""
        wins = [rate.value for rate in self.wins]
        error = stdev(wins) / len(wins) ** 0.5 if len(wins) > 1 else self.wins[0].error
        win_rate = "-" if self.name == "dSFT" else f"{fmean(wins):.0f} ± {error:.0f} %"
        shares = [f"{fmean(values):.1%}" for values in (self.accuracy, self.words, self.ends)]
        return [self.name, f"{fmean(self.judged):.2f}", win_rate, *shares]


def write_results(out: Path, stages_of_seeds: Sequence[Sequence[StageResult]], exported: Path) -> None:
    """Print the table over all seeds and write the report.

    Args:
        out: Output folder of the demo.
        stages_of_seeds: Per seed the stages in the order of the table.
        exported: Folder of the exported model, to print.
    """
    stages = stages_of_seeds[0]
    rows = [_table_row(index, stages_of_seeds) for index in range(len(stages))]
    verdict = _verdict(rows)
    for seed_stages in stages_of_seeds:
        _add_answers_to_reports(seed_stages)
    report = _write_report(out, rows, stages, verdict)
    console = Console()
    seeds = f", {len(stages_of_seeds)} seeds" if len(stages_of_seeds) > 1 else ""
    table = Table(title=f"the paper's ablation at toy scale: held-out prompts and pairs{seeds}")
    for title in _HEADER:
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)
    for note in (verdict, *_NOTES):
        console.print(note, highlight=False)
    for stage in stages:
        answer = stage.answers[0]
        console.print(f"\n[bold]{stage.name}[/] > {answer.prompt}", highlight=False)
        console.print(answer.text + ("" if answer.ended else " ..."), highlight=False, markup=False)
    console.print(f"\nreport           {report}\nexported model   {exported}", highlight=False)


def _table_row(index: int, stages_of_seeds: Sequence[Sequence[StageResult]]) -> _TableRow:
    """Row `index` of the table; win rates are against the dSFT stage of the same seed."""
    stages = [seed_stages[index] for seed_stages in stages_of_seeds]
    dsft = [next(stage for stage in seed_stages if stage.name == "dSFT") for seed_stages in stages_of_seeds]
    return _TableRow(
        name=stages[0].name,
        judged=[fmean(stage.scores) for stage in stages],
        wins=[judge.win_rate(stage.scores, other.scores) for stage, other in zip(stages, dsft, strict=True)],
        accuracy=[stage.accuracy for stage in stages],
        words=[stage.words for stage in stages],
        ends=[stage.ends for stage in stages],
    )


def _verdict(rows: Sequence[_TableRow]) -> str:
    """Whether the paper's order of the stages holds, by seed."""
    by_name = {row.name: row.judged for row in rows}
    best, dsft, without = by_name["dSFT + dDPO"], by_name["dSFT"], by_name["dDPO without dSFT"]
    holds = [
        without[seed] < dsft[seed] and all(best[seed] > row.judged[seed] for row in rows if row.name != "dSFT + dDPO")
        for seed in range(len(best))
    ]
    order = "dDPO without dSFT below dSFT, and dSFT + dDPO above all"
    if all(holds):
        return f"The paper's order holds{' for every seed' if len(holds) > 1 else ''}: {order}."
    return f"The paper's order ({order}) holds for {sum(holds)} of {len(holds)} seeds."


def _prompts(stages: Sequence[StageResult]) -> tuple[PromptSamples, ...]:
    """The first distinct prompts with the answers of all stages."""
    first = {answer.prompt: index for index, answer in reversed(list(enumerate(stages[0].answers)))}
    return tuple(
        PromptSamples(
            prompt, tuple(Sample(stage.name, stage.answers[n].text, stage.answers[n].ended) for stage in stages)
        )
        for prompt, n in sorted(first.items(), key=lambda item: item[1])[:_NUM_PROMPTS]
    )


def _add_answers_to_reports(stages: Sequence[StageResult]) -> None:
    """Write the answers of all stages into the report of each run."""
    samples = SampleSet(_prompts(stages), _ANSWERS_CAPTION)
    for stage in stages[1:]:  # the base has no run folder
        folder = open_path(stage.folder)
        write_samples(folder, samples)
        try_write_report(folder)


def _write_report(out: Path, rows: Sequence[_TableRow], stages: Sequence[StageResult], verdict: str) -> Path:
    runs = [run_section(stage.folder, stage.name) for stage in stages if (stage.folder / "metrics.jsonl").exists()]
    write_report(
        out / REPORT,
        "Zephyr at toy scale",
        [
            "A tiny base model, fine-tuned on teacher conversations, then aligned on preference pairs of sampled answers.",
            verdict,
        ],
        {},
        [
            table_section(_HEADER, [row.cells() for row in rows], "On held-out prompts and pairs."),
            notes_section(_NOTES),
            samples_section(_prompts(stages), _ANSWERS_CAPTION),
            *runs,
        ],
    )
    return out / REPORT
