"""MT-Bench judging: ratings of answers, recorded or new, and their means."""

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from zephyr_jax.charts.picture import picture
from zephyr_jax.charts.radar import radar_chart
from zephyr_jax.clients.base import ChatRequest, ChatResponse
from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.clients.reply import entry_problem
from zephyr_jax.clients.responses import collect_responses
from zephyr_jax.config.benchmarks import MtBenchConfig
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.evaluate.agreement import Agreement, agreement
from zephyr_jax.evaluate.alpaca_format import read_list
from zephyr_jax.evaluate.mt_bench_format import (
    HIGHEST,
    LOWEST,
    UNRATED,
    MtBench,
    MtBenchScores,
    TurnJudgment,
    is_rating,
    judge_prompt,
    judgment_row,
    open_bench,
    parse_rating,
    parse_ratings,
    scores_of,
)
from zephyr_jax.storage.files import Path, open_path, write_atomic
from zephyr_jax.storage.journal import Journal

type Answers = dict[int, list[str]]
"""Question -> its answers, turn by turn."""


@dataclass(frozen=True)
class ModelAnswers:
    """Answers of a model, and its number of parameters if known."""

    turns: Answers
    parameters: int | None


def judge_answers(
    bench: MtBench, name: str, answered: ModelAnswers, judge: RemoteClient, tokens: int, out: Path
) -> MtBenchScores:
    """Rate answers with a judge; write judgments, a summary and a chart."""
    judgments = _judge(bench, answered.turns, judge, tokens)
    rows = [judgment_row(judgment, name, time.time()) for judgment in judgments]
    write_rows(out / "model_judgment" / f"{judge.model.replace('/', '_')}_single.jsonl", rows)
    scores = scores_of(bench, [(judgment.question, judgment.turn, judgment.score) for judgment in judgments])
    _write_summary(out, name, judge.model, answered.parameters, scores)
    print(f"judge used {judge.usage_summary()}", file=sys.stderr)
    return scores


def replay_judgments(config: MtBenchConfig) -> MtBenchScores:
    """Scores of recorded judgments, written to files like those of new ones. Raises InputError."""
    rows = _recorded(config)
    bench = open_bench(config.questions)
    known = {question.number for question in bench.questions}
    if foreign := sorted({row["question_id"] for row in rows} - known):
        raise InputError(
            f"{config.judgments} judges question {join_items(map(str, foreign))}, not one of the {len(known)} questions. Set "
            "`questions` to those that were judged."
        )
    scores = scores_of(bench, [(row["question_id"], row["turn"], float(row["score"])) for row in rows])
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    _write_summary(out, str(rows[0]["model"]), join_items(sorted({str(row["judge"][0]) for row in rows})), None, scores)
    return scores


def _write_summary(out: Path, name: str, judge: str, parameters: int | None, scores: MtBenchScores) -> None:
    """Write the summary, which `evaluate table` reads, and the chart."""
    summary = {"model": name, "judge": judge, "parameters": parameters, **asdict(scores)}
    write_atomic(out / f"{name.replace('/', '_')}.json", json.dumps(summary, indent=2) + "\n")
    chart = radar_chart("MT-Bench", "mean rating by category", {name: scores.by_category}, maximum=HIGHEST)
    write_atomic(out / f"{name.replace('/', '_')}.svg", picture([[chart]]))


def rate_again(config: MtBenchConfig) -> Agreement:
    """Judge again from the recorded prompts and compare. Raises InputError."""
    rows = _recorded(config)
    prompts = open_bench(config.questions).prompts
    if unknown := sorted({str(row["judge"][1]) for row in rows} - prompts.keys()):
        raise InputError(
            f"{config.judgments} was judged by prompt {join_items(unknown)}; judge_prompts.jsonl has {join_items(prompts)}."
        )
    out = open_path(config.output)
    out.mkdir(parents=True, exist_ok=True)
    judge = open_judge(config, out)
    requests = [
        _request(prompts[row["judge"][1]]["system_prompt"], row["user_prompt"], config.judge_max_new_tokens)
        for row in rows
    ]
    responses = collect_responses(judge, requests, "judgments", "judge")
    repeated = _ratings(responses)
    print(f"judge used {judge.usage_summary()}", file=sys.stderr)
    again = [
        {
            **row,
            "judge": [judge.model, row["judge"][1]],
            "judgment": response.text,
            "score": score,
            "tstamp": time.time(),
        }
        for row, response, score in zip(rows, responses, repeated, strict=True)
    ]
    write_rows(out / "model_judgment" / f"{judge.model.replace('/', '_')}_single.jsonl", again)
    result = agreement(_rated([float(row["score"]) for row in rows]), _rated(repeated))
    write_atomic(out / "agreement.json", result.to_json())
    return result


def _rated(scores: Sequence[float]) -> list[float]:
    return [score if is_rating(score) else math.nan for score in scores]


def _recorded(config: MtBenchConfig) -> list[dict[str, Any]]:
    """The judgments of one model."""
    rows = read_list(str(config.judgments), "judgments in FastChat's form")
    for row in rows:
        _check_judgment(row, str(config.judgments))
    models = sorted({str(row["model"]) for row in rows})
    if config.name is None and len(models) > 1:
        raise InputError(f"{config.judgments} has judgments of {join_items(models)}. Set `name` to one of them.")
    if config.name and config.name not in models:
        raise InputError(f"{config.judgments} has no judgment of {config.name}; it has {join_items(models)}.")
    rows = [row for row in rows if config.name in (None, row["model"])]
    asked = list(dict.fromkeys(row["question_id"] for row in rows))[: config.limit]
    rows = [row for row in rows if row["question_id"] in asked]
    times = Counter((row["question_id"], row["turn"]) for row in rows)
    if twice := [f"{question}.{turn}" for (question, turn), count in times.items() if count > 1]:
        print(
            f"warning: {config.judgments} judges {len(twice):,} turns more than once (question.turn {join_items(twice, 5)}): "
            "every judgment counts in the means",
            file=sys.stderr,
        )
    return rows


def _check_judgment(row: dict[str, Any], path: str) -> None:
    """Raise InputError for a row that is not in FastChat's form or has an impossible value."""
    texts = [row.get("model"), row.get("user_prompt"), *_pair(row.get("judge"))]
    score = row.get("score")
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if not (
        all(isinstance(text, str) for text in texts)
        and isinstance(row.get("question_id"), int)
        and row.get("turn") in (1, 2)
        and number
        and (score == UNRATED or 0 <= float(str(score)) <= 10)
    ):
        raise InputError(
            f"{path}: expected question_id (int), model, judge [name, prompt], user_prompt, turn (1 or 2) and score (0 to 10, "
            f"or -1), as in FastChat's model_judgment, got {truncate_repr(row)}."
        )


def _pair(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) and len(value) == 2 else [None]


def table(scores: MtBenchScores) -> str:
    """Scores as a Markdown table."""
    lines = [
        "| MT-Bench | mean rating |",
        "|---|---|",
        f"| **overall** | **{_format_score(scores.overall)}**{f' ± {scores.error:.2f}' if scores.error else ''} |",
        f"| first turn | {_format_score(scores.first_turn)} |",
        f"| second turn | {_format_score(scores.second_turn)} |",
        *(f"| {name} | {_format_score(score)} |" for name, score in scores.by_category.items()),
        "",
        f"{scores.rated} turns rated" + (f", {scores.unrated} judgments without a rating" if scores.unrated else ""),
    ]
    return "\n".join(lines)


def _format_score(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSON Lines file; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def open_judge(config: MtBenchConfig, out: Path) -> RemoteClient:
    """The judge, with its journal. Raises InputError."""
    header = {"judge": config.judge, "what": "replies of a judge, by request"}
    return RemoteClient(str(config.judge), config.endpoint, Journal(out / "judge.journal", header, entry_problem))


def _judge(bench: MtBench, answers: Answers, judge: RemoteClient, tokens: int) -> list[TurnJudgment]:
    """Rate the first two turns of every question; a refusal of the judge gives a judgment without a rating."""
    turns = [(question, turn) for question in bench.questions for turn in (1, 2)[: len(question.turns)]]
    prompts = [judge_prompt(bench, question, answers[question.number], turn) for question, turn in turns]
    requests = [ChatRequest(tuple(messages), 0.0, tokens) for _, messages in prompts]
    # FastChat keeps unrated judgments, too
    responses = collect_responses(judge, requests, "judgments", "judge", allow_all_refused=True)
    return [
        TurnJudgment(
            question=question.number,
            turn=turn,
            score=score,
            prompt=messages[1]["content"],
            text=response.text,
            judge=(judge.model, name),
        )
        for (question, turn), (name, messages), response, score in zip(
            turns, prompts, responses, _ratings(responses), strict=True
        )
    ]


def _ratings(responses: Sequence[ChatResponse]) -> list[float]:
    """Rating of each judgment; prints how many have none, or several different ones."""
    ratings = [UNRATED if response.refusal else parse_rating(response.text) for response in responses]
    if unrated := sum(not one.refusal and score == UNRATED for one, score in zip(responses, ratings, strict=True)):
        print(
            f"{unrated:,} of {len(responses):,} judgments without a rating from {LOWEST:g} to {HIGHEST:g} are unrated",
            file=sys.stderr,
        )
    if several := sum(len(set(parse_ratings(response.text))) > 1 for response in responses):
        print(
            f"warning: {several:,} of {len(responses):,} judgments have several different ratings; the first one counts",
            file=sys.stderr,
        )
    return ratings


def _request(system: str, user: str, tokens: int) -> ChatRequest:
    return ChatRequest(({"role": "system", "content": system}, {"role": "user", "content": user}), 0.0, tokens)
