"""`zephyr-jax evaluate mt-bench`: answers to 80 questions of two turns, a judge's ratings and their means."""

import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from zephyr_jax.chat.message import Message
from zephyr_jax.clients.base import ChatModel, ChatRequest
from zephyr_jax.clients.local import LocalClient
from zephyr_jax.clients.responses import collect_responses
from zephyr_jax.config.benchmarks import MtBenchConfig
from zephyr_jax.data.row_formats import Row
from zephyr_jax.evaluate.models import file_name, model_opener, read_json_rows
from zephyr_jax.evaluate.mt_bench.format import (
    Benchmark,
    Question,
    Scores,
    answer_row,
    question_temperature,
    read_answers,
    read_benchmark,
)
from zephyr_jax.evaluate.mt_bench.judge import (
    Answers,
    ModelAnswers,
    format_scores,
    judge_answers,
    rejudge,
    replay_judgments,
)
from zephyr_jax.storage.files import Path, create_folder, write_jsonl


def main(config: MtBenchConfig, command: str = "") -> str:
    """Run the benchmark, or replay recorded judgments; the scores as a table. Raises InputError."""
    folder = create_folder(config.output)
    if config.judgments:
        return rejudge(config, folder).report() if config.judge else format_scores(replay_judgments(config, folder))
    scores = mt_bench(config, folder)
    return format_scores(scores) if scores else f"Answers written to {config.output}. Set --judge to rate them."


def mt_bench(config: MtBenchConfig, folder: Path) -> Scores | None:
    """Answer the questions (or read answers), rate them, and write FastChat's files, a summary and a chart into `folder`.

    Rerun after a kill, it continues and requests nothing twice. None without a judge. Raises InputError.
    """
    benchmark = read_benchmark(config.questions)
    benchmark = replace(benchmark, questions=benchmark.questions[: config.limit])
    opener = model_opener("evaluate mt-bench", config, folder)
    judge = opener.open(config.judge) if config.judge else None  # before any answer is paid for
    with opener.log_usage():
        if config.answers:
            rows = read_json_rows(config.answers, "answers in FastChat's format")
            name, turns = read_answers(rows, benchmark.questions, config.answers, config.name)
            answers = ModelAnswers(name, turns)
        else:
            answers = _answer(config, opener.open(config.model.path), benchmark.questions)
            write_jsonl(folder / "model_answer" / f"{file_name(answers.model)}.jsonl", _answer_rows(benchmark, answers))
        return judge_answers(benchmark, answers, judge, config.judge_max_new_tokens, folder) if judge else None


def _answer(config: MtBenchConfig, model: ChatModel, questions: Sequence[Question]) -> ModelAnswers:
    """All first turns, then all second ones."""
    answers: Answers = {question.number: [] for question in questions}
    local = model.client if isinstance(model.client, LocalClient) else None
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [question for question in questions if len(question.turns) > turn]
        requests = [
            ChatRequest(
                tuple(_messages(question, answers[question.number])),
                question_temperature(question),
                config.max_new_tokens,
                seed=(config.seed, question.number, turn) if local else None,
            )
            for question in asked
        ]
        responses = collect_responses(model.client, requests, "answers", "model")
        for question, response in zip(asked, responses, strict=True):
            answers[question.number].append(response.text.strip())
    return ModelAnswers(config.name or model.name, answers, local.num_parameters if local else None)


def _answer_rows(benchmark: Benchmark, answers: ModelAnswers) -> list[Row]:
    rows = []
    for question in benchmark.questions:
        turns = answers.turns[question.number]
        answer_id = blake2b(f"{answers.model} {question.number} {turns}".encode(), digest_size=11).hexdigest()
        rows.append(answer_row(question, answers.model, turns, answer_id, time.time()))
    return rows


def _messages(question: Question, answers: Sequence[str]) -> list[Message]:
    """The conversation up to the turn after the given answers."""
    messages: list[Message] = []
    for turn, answer in zip(question.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": question.turns[len(answers)]}]
