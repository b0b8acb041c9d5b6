"""MT-Bench's judge: ratings of answers, new or recorded, and their means."""

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from zephyr_jax.charts.picture import picture
from zephyr_jax.charts.radar import radar_chart
from zephyr_jax.clients.base import ChatModel, ChatRequest, ChatResponse
from zephyr_jax.clients.responses import collect_responses
from zephyr_jax.config.benchmarks import MtBenchConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.evaluate.agreement import Agreement, agreement
from zephyr_jax.evaluate.models import file_name, model_opener, read_json_rows
from zephyr_jax.evaluate.mt_bench.format import (
    MAX_RATING,
    MIN_RATING,
    UNRATED,
    Benchmark,
    Scores,
    is_rating,
    judge_messages,
    judgment_row,
    mean_scores,
    parse_rating,
    parse_ratings,
    read_benchmark,
)
from zephyr_jax.storage.files import Path, write_atomic, write_jsonl

logger = logging.getLogger(__name__)

type Answers = dict[int, list[str]]
"""Question number -> its answers, turn by turn."""


@dataclass(frozen=True)
class ModelAnswers:
    """A model's answers."""

    model: str
    turns: Answers
    num_parameters: int | None = None
    """Size of the model, if known."""


def judge_answers(
    benchmark: Benchmark, answers: ModelAnswers, judge: ChatModel, max_new_tokens: int, folder: Path
) -> Scores:
    """Rate the first two turns of every question; write judgments, a summary and a chart.

    Args:
        benchmark: Questions, judge prompts, reference answers.
        answers: What to rate.
        judge: Who rates. A refusal is a judgment without a rating.
        max_new_tokens: Maximum length of a judgment.
        folder: Output folder.
    """
    turns = [(question, turn) for question in benchmark.questions for turn in (1, 2)[: len(question.turns)]]
    prompts = [judge_messages(benchmark, question, answers.turns[question.number], turn) for question, turn in turns]
    requests = [ChatRequest(tuple(messages), 0.0, max_new_tokens) for _, messages in prompts]
    # like FastChat, keep unrated judgments, even if all are
    responses = collect_responses(judge.client, requests, "judgments", "judge", allow_all_refused=True)
    ratings = _ratings(responses)
    rows = [
        judgment_row(
            question=question.number,
            turn=turn,
            model=answers.model,
            judge=(judge.name, prompt),
            user_prompt=messages[1]["content"],
            judgment=response.text,
            score=score,
            time=time.time(),
        )
        for (question, turn), (prompt, messages), response, score in zip(
            turns, prompts, responses, ratings, strict=True
        )
    ]
    write_jsonl(_judgment_path(folder, judge.name), rows)
    scores = mean_scores(benchmark, [(row["question_id"], row["turn"], row["score"]) for row in rows])
    _write_summary(folder, answers.model, judge.name, answers.num_parameters, scores)
    return scores


def replay_judgments(config: MtBenchConfig, folder: Path) -> Scores:
    """The scores of recorded judgments, written like those of new ones. Raises InputError."""
    rows = _recorded_judgments(config)
    benchmark = read_benchmark(config.questions)
    known = {question.number for question in benchmark.questions}
    if unknown := sorted({row["question_id"] for row in rows} - known):
        raise InputError(
            f"{config.judgments} judges question {join_items(unknown)}, which is not among the {len(known)} questions. Set "
            "`questions` to the folder of its benchmark."
        )
    scores = mean_scores(benchmark, [(row["question_id"], row["turn"], float(row["score"])) for row in rows])
    judges = join_items(sorted({str(row["judge"][0]) for row in rows}))
    _write_summary(folder, str(rows[0]["model"]), judges, None, scores)
    return scores


def rejudge(config: MtBenchConfig, folder: Path) -> Agreement:
    """Rate the prompts of recorded judgments again, and compare. Raises InputError."""
    rows = _recorded_judgments(config)
    prompts = read_benchmark(config.questions).prompts
    if unknown := sorted({str(row["judge"][1]) for row in rows} - prompts.keys()):
        raise InputError(
            f"{config.judgments} uses the judge prompt {join_items(unknown)}; judge_prompts.jsonl has {join_items(prompts)}."
        )
    opener = model_opener("evaluate mt-bench", config, folder)
    judge = opener.open(str(config.judge))
    requests = [
        ChatRequest(
            (
                {"role": "system", "content": prompts[row["judge"][1]]["system_prompt"]},
                {"role": "user", "content": row["user_prompt"]},
            ),
            0.0,
            config.judge_max_new_tokens,
        )
        for row in rows
    ]
    with opener.log_usage():
        responses = collect_responses(judge.client, requests, "judgments", "judge")
    ratings = _ratings(responses)
    new_rows = [
        {
            **row,
            "judge": [judge.name, row["judge"][1]],
            "judgment": response.text,
            "score": score,
            "tstamp": time.time(),
        }
        for row, response, score in zip(rows, responses, ratings, strict=True)
    ]
    write_jsonl(_judgment_path(folder, judge.name), new_rows)
    result = agreement(_nan_if_unrated([float(row["score"]) for row in rows]), _nan_if_unrated(ratings))
    write_atomic(folder / "agreement.json", result.to_json())
    return result


def format_scores(scores: Scores) -> str:
    """The scores as a Markdown table."""
    unrated = f", {scores.unrated} judgments without a rating" if scores.unrated else ""
    lines = [
        "| MT-Bench | mean rating |",
        "|---|---|",
        f"| **overall** | **{_format(scores.overall)}**{f' ± {scores.error:.2f}' if scores.error else ''} |",
        f"| first turn | {_format(scores.first_turn)} |",
        f"| second turn | {_format(scores.second_turn)} |",
        *(f"| {name} | {_format(score)} |" for name, score in scores.by_category.items()),
        "",
        f"{scores.rated} turns rated{unrated}",
    ]
    return "\n".join(lines)


def _format(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _judgment_path(folder: Path, judge: str) -> Path:
    return folder / "model_judgment" / f"{file_name(judge)}_single.jsonl"


def _write_summary(folder: Path, model: str, judge: str, num_parameters: int | None, scores: Scores) -> None:
    """Write what `evaluate table` reads, and the chart."""
    summary = {"model": model, "judge": judge, "parameters": num_parameters, **asdict(scores)}
    write_atomic(folder / f"{file_name(model)}.json", json.dumps(summary, indent=2) + "\n")
    chart = radar_chart("MT-Bench", "mean rating by category", {model: scores.by_category}, maximum=MAX_RATING)
    write_atomic(folder / f"{file_name(model)}.svg", picture([[chart]]))


def _nan_if_unrated(scores: Sequence[float]) -> list[float]:
    return [score if is_rating(score) else math.nan for score in scores]


def _ratings(responses: Sequence[ChatResponse]) -> list[float]:
    """The rating of each judgment; warns about judgments with none, and with several different ones."""
    ratings = [UNRATED if response.refusal else parse_rating(response.text) for response in responses]
    pairs = list(zip(responses, ratings, strict=True))
    if unrated := sum(not response.refusal and rating == UNRATED for response, rating in pairs):
        logger.warning(
            "%d of %d judgments have no rating from %g to %g", unrated, len(responses), MIN_RATING, MAX_RATING
        )
    if several := sum(len(set(parse_ratings(response.text))) > 1 for response in responses):
        logger.warning("%d of %d judgments have several different ratings; using the first", several, len(responses))
    return ratings


def _recorded_judgments(config: MtBenchConfig) -> list[Row]:
    """The recorded judgments of one model. Raises InputError."""
    path = str(config.judgments)
    rows = read_json_rows(path, "judgments in FastChat's format")
    for row in rows:
        _check_judgment(row, path)
    models = sorted({str(row["model"]) for row in rows})
    if (config.name is None and len(models) > 1) or (config.name and config.name not in models):
        raise InputError(
            f"{path}: expected judgments of {config.name or 'one model'}, got {join_items(models)}. Set `name` to one of them."
        )
    rows = [row for row in rows if config.name in (None, row["model"])]
    questions = list(dict.fromkeys(row["question_id"] for row in rows))[: config.limit]
    rows = [row for row in rows if row["question_id"] in questions]
    counts = Counter((row["question_id"], row["turn"]) for row in rows)
    if repeated := [f"{question}.{turn}" for (question, turn), count in counts.items() if count > 1]:
        logger.warning(
            "%s judges %d turns more than once (question.turn %s); all judgments count in the means",
            path,
            len(repeated),
            join_items(repeated, 5),
        )
    return rows


def _check_judgment(row: Row, path: str) -> None:
    """Raise InputError for a row that is not in FastChat's format."""
    score, judge = row.get("score"), row.get("judge")
    pair = judge if isinstance(judge, list) and len(judge) == 2 else [None]
    if not (
        all(isinstance(text, str) for text in (row.get("model"), row.get("user_prompt"), *pair))
        and isinstance(row.get("question_id"), int)
        and row.get("turn") in (1, 2)
        and isinstance(score, int | float)
        and not isinstance(score, bool)
        and (score == UNRATED or 0 <= score <= MAX_RATING)
    ):
        raise InputError(
            f"{path}: expected question_id (int), model, judge [name, prompt], user_prompt, turn (1 or 2) and score (0 to 10, or "
            f"-1), as in FastChat's model_judgment, got {truncate_repr(row)}. Fix or remove the row."
        )
