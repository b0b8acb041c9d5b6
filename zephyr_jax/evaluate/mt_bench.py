"""`zephyr-jax evaluate mt-bench`: answers to 80 two-turn questions, a judge's ratings and their means."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

from zephyr_jax.chat.message import Message
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.clients.base import ChatRequest
from zephyr_jax.clients.remote import RemoteClient
from zephyr_jax.clients.responses import collect_responses, open_address
from zephyr_jax.config.benchmarks import MtBenchConfig, is_address
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.errors import truncate_repr
from zephyr_jax.evaluate.alpaca_format import read_list
from zephyr_jax.evaluate.mt_bench_format import (
    MtBench,
    MtBenchScores,
    Question,
    answer_row,
    open_bench,
    parse_answers,
    temperature_of,
)
from zephyr_jax.evaluate.mt_judge import (
    Answers,
    ModelAnswers,
    judge_answers,
    open_judge,
    rate_again,
    replay_judgments,
    table,
    write_rows,
)
from zephyr_jax.generate.engine import Engine, GenerationRequest
from zephyr_jax.generate.load import TextModel, fit_to_context, log_truncated, open_text_model
from zephyr_jax.progress import progress_bar
from zephyr_jax.storage.files import Path, check_folder_creatable, open_path
from zephyr_jax.storage.journal import Journal


def mt_bench(config: MtBenchConfig) -> MtBenchScores | None:
    """Answer the questions (or read answers), judge them, and write FastChat's files, a summary and a chart into `output`.

    Raises InputError.

    The same command resumes after a kill: finished answers and judgments are read from journals. None without a judge.
    """
    out = open_path(config.output)
    check_folder_creatable(out)
    complete = open_bench(config.questions)
    bench = replace(complete, questions=complete.questions[: config.limit])
    out.mkdir(parents=True, exist_ok=True)
    judge = open_judge(config, out) if config.judge else None
    if config.answers:
        assert judge is not None
        rows = read_list(config.answers, "answers in FastChat's form")
        name, turns = parse_answers(rows, bench.questions, config.answers, config.name)
        return judge_answers(bench, name, ModelAnswers(turns, None), judge, config.judge_max_new_tokens, out)
    if is_address(config.model.path):
        model = open_address(config.model.path, config.answering, out / "asked.journal")
        name = config.name or model.model.replace("/", "_")
        answered = ModelAnswers(_remote_answers(config, model, bench.questions), None)
    else:
        name = config.name or PurePath(config.model.path).name
        answered = _answers(config, complete, bench.questions, out)
    write_rows(out / "model_answer" / f"{name}.jsonl", _answer_rows(bench, name, answered.turns))
    return judge_answers(bench, name, answered, judge, config.judge_max_new_tokens, out) if judge else None


def _remote_answers(config: MtBenchConfig, model: RemoteClient, questions: Sequence[Question]) -> Answers:
    """Answers of a remote model: all first turns, then all second turns."""
    answers: Answers = {question.number: [] for question in questions}
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [question for question in questions if len(question.turns) > turn]
        requests = [
            ChatRequest(
                tuple(_messages(question, answers[question.number])),
                temperature_of(question),
                config.max_new_tokens,
            )
            for question in asked
        ]
        for question, response in zip(asked, collect_responses(model, requests, "answers", "model"), strict=True):
            answers[question.number].append(response.text.strip())
    return answers


def _answer_rows(bench: MtBench, name: str, answers: Answers) -> list[dict[str, Any]]:
    def identity(question: Question) -> str:
        return blake2b(f"{name} {question.number} {answers[question.number]}".encode(), digest_size=11).hexdigest()

    return [
        answer_row(question, name, answers[question.number], identity(question), time.time())
        for question in bench.questions
    ]


def _answers(config: MtBenchConfig, bench: MtBench, asked: Sequence[Question], out: Path) -> ModelAnswers:
    """Answers of a local model; those in the journal are reused."""
    model = open_text_model("evaluate mt-bench", config.model, config.mesh, config.batch_size)
    tokenizer = model.chat_tokenizer(config.chat_template)
    model = model.with_chat_stops(tokenizer)
    header = {
        **model.identity,
        "tokenizer": tokenizer.fingerprint,
        "max_new_tokens": config.max_new_tokens,
        "seed": config.seed,
        "questions": blake2b(_identity(bench).encode(), digest_size=16).hexdigest(),
    }
    journal = Journal(out / "answers.journal", header, _problem)
    answers: Answers = {line["question"]: line["turns"] for line in journal.lines}
    missing = [question for question in asked if question.number not in answers]
    if missing:
        writer = _AnswerWriter(config, model, tokenizer)
        with progress_bar("answers", len(missing)) as advance:
            for done, (question, turns) in enumerate(writer.write(missing), 1):
                answers[question.number] = turns
                journal.add({"question": question.number, "turns": turns})
                advance(done)
        log_truncated(writer.truncated)
    journal.close()
    return ModelAnswers(answers, model.source.model_config.num_parameters)


def _identity(bench: MtBench) -> str:
    """What the answers depend on."""
    required = [question.temperature for question in bench.questions]
    return repr(bench.questions) + (repr(required) if any(temperature is not None for temperature in required) else "")


def _problem(line: dict[str, Any]) -> str:
    """Error in a line of the journal; empty for a valid one."""
    turns = line.get("turns")
    valid = (
        type(line.get("question")) is int and isinstance(turns, list) and all(isinstance(turn, str) for turn in turns)
    )
    return "" if valid else f"expected a number in `question` and a list of texts in `turns`, got {truncate_repr(line)}"


@dataclass
class _AnswerWriter:
    """Generates answers to all questions together, the second turn of each after its first."""

    config: MtBenchConfig
    model: TextModel
    tokenizer: ChatTokenizer
    truncated: int = 0
    """Number of prompts that did not fit into the context."""

    def write(self, questions: list[Question]) -> Iterator[tuple[Question, list[str]]]:
        """Questions with their answers, as generation ends."""
        context = self.model.context_length()
        engine = self.model.engine(context)
        turns: dict[int, list[str]] = {question.number: [] for question in questions}
        asked = {self._submit(engine, question, [], context): question for question in questions}
        tokens: dict[int, list[int]] = {}
        for output in engine.run():
            tokens.setdefault(output.request_id, []).extend(output.tokens)
            if not output.finish_reason:
                continue
            question = asked[output.request_id]
            turns[question.number].append(self.model.text(tokens.pop(output.request_id)).strip())
            if len(turns[question.number]) < len(question.turns):
                asked[self._submit(engine, question, turns[question.number], context)] = question
            else:
                yield question, turns[question.number]

    def _submit(self, engine: Engine, question: Question, answers: list[str], context: int) -> int:
        tokens = self.tokenizer.prompt(_messages(question, answers))
        prompt, max_tokens = fit_to_context(tokens, self.config.max_new_tokens, context)
        self.truncated += len(prompt) < len(tokens)
        seed = (self.config.seed, question.number, len(answers))
        return engine.submit(
            GenerationRequest(
                prompt, max_tokens, self.model.stop_ids, SamplingParams(temperature_of(question), seed=seed)
            )
        )


def _messages(question: Question, answers: Sequence[str]) -> list[Message]:
    """The conversation up to the turn after the given answers."""
    messages: list[Message] = []
    for index, turn in enumerate(question.turns[: len(answers) + 1]):
        messages.append({"role": "user", "content": turn})
        if index < len(answers):
            messages.append({"role": "assistant", "content": answers[index]})
    return messages


def main(config: MtBenchConfig, command: str) -> str:
    """`zephyr-jax evaluate mt-bench`."""
    if config.judgments:
        return rate_again(config).report() if config.judge else table(replay_judgments(config))
    scores = mt_bench(config)
    return table(scores) if scores else f"The answers are in {config.output}. Pass --judge to rate them."
