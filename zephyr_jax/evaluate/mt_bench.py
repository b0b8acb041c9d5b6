"""`zephyr-jax evaluate mt-bench`: answers to eighty questions of two turns, a judge's ratings, and their means."""

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
    Bench,
    Question,
    Scores,
    answer_row,
    answers_from,
    open_bench,
    temperature_of,
)
from zephyr_jax.evaluate.mt_judge import (
    Answered,
    Answers,
    judged,
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


def mt_bench(config: MtBenchConfig) -> Scores | None:
    """Answer (or read answers), have judged, and write FastChat's files, a summary and a picture into `output`.

    Raises InputError.

    Killed, the same command goes on: answers and judgments that were made are not made again. None without a judge.
    """
    out = open_path(config.output)
    check_folder_creatable(out)
    every = open_bench(config.questions)
    bench = replace(every, questions=every.questions[: config.limit])
    out.mkdir(parents=True, exist_ok=True)
    judge = open_judge(config, out) if config.judge else None
    if config.answers:
        assert judge is not None
        rows = read_list(config.answers, "answers in FastChat's form")
        name, turns = answers_from(rows, bench.questions, config.answers, config.name)
        return judged(bench, name, Answered(turns, None), judge, config.judge_max_new_tokens, out)
    if is_address(config.model.path):
        model = open_address(config.model.path, config.answering, out / "asked.journal")
        name = config.name or model.model.replace("/", "_")
        answered = Answered(_addressed(config, model, bench.questions), None)
    else:
        name = config.name or PurePath(config.model.path).name
        answered = _answers(config, every, bench.questions, out)
    write_rows(out / "model_answer" / f"{name}.jsonl", _answer_rows(bench, name, answered.turns))
    return judged(bench, name, answered, judge, config.judge_max_new_tokens, out) if judge else None


def _addressed(config: MtBenchConfig, model: RemoteClient, questions: Sequence[Question]) -> Answers:
    """Answers of a model behind an address: all first turns, then all second ones."""
    answers: Answers = {question.number: [] for question in questions}
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [question for question in questions if len(question.turns) > turn]
        asks = [
            ChatRequest(
                tuple(_messages(question, answers[question.number])),
                temperature_of(question),
                config.max_new_tokens,
            )
            for question in asked
        ]
        for question, response in zip(asked, collect_responses(model, asks, "answers", "model"), strict=True):
            answers[question.number].append(response.text.strip())
    return answers


def _answer_rows(bench: Bench, name: str, answers: Answers) -> list[dict[str, Any]]:
    def identity(question: Question) -> str:
        return blake2b(f"{name} {question.number} {answers[question.number]}".encode(), digest_size=11).hexdigest()

    return [
        answer_row(question, name, answers[question.number], identity(question), time.time())
        for question in bench.questions
    ]


def _answers(config: MtBenchConfig, bench: Bench, asked: Sequence[Question], out: Path) -> Answered:
    """The model's answers to the questions asked; those in the journal as they are."""
    found = open_text_model("evaluate mt-bench", config.model, config.mesh, config.batch_size)
    tokenizer = found.chat_tokenizer(config.chat_template)
    found = found.with_chat_stops(tokenizer)
    header = {
        **found.identity, "tokenizer": tokenizer.fingerprint, "max_new_tokens": config.max_new_tokens, "seed": config.seed,
        "questions": blake2b(_identity(bench).encode(), digest_size=16).hexdigest(),
    }  # fmt: skip
    journal = Journal(out / "answers.journal", header, _problem)
    answers: Answers = {line["question"]: line["turns"] for line in journal.lines}
    missing = [question for question in asked if question.number not in answers]
    if missing:
        writer = _Writer(config, found, tokenizer)
        with progress_bar("answers", len(missing)) as advance:
            for done, (question, turns) in enumerate(writer.write(missing), 1):
                answers[question.number] = turns
                journal.add({"question": question.number, "turns": turns})
                advance(done)
        log_truncated(writer.cut)
    journal.close()
    return Answered(answers, found.source.model_config.num_parameters)


def _identity(bench: Bench) -> str:
    """What answers depend on; as it was before questions could require a temperature, where none does."""
    required = [question.temperature for question in bench.questions]
    return repr(bench.questions) + (repr(required) if any(each is not None for each in required) else "")


def _problem(line: dict[str, Any]) -> str:
    """What is wrong with a line of the journal; empty where nothing is."""
    turns = line.get("turns")
    sound = (
        type(line.get("question")) is int and isinstance(turns, list) and all(isinstance(each, str) for each in turns)
    )
    return "" if sound else f"expected a number in `question` and a list of texts in `turns`, got {truncate_repr(line)}"


@dataclass
class _Writer:
    """Answers of a model, all questions at once, the second turn of each after its first."""

    config: MtBenchConfig
    found: TextModel
    tokenizer: ChatTokenizer
    cut: int = 0
    """Prompts that did not fit."""

    def write(self, questions: list[Question]) -> Iterator[tuple[Question, list[str]]]:
        """Questions with both answers, as they end."""
        context = self.found.context_length()
        engine = self.found.engine(context)
        turns: dict[int, list[str]] = {question.number: [] for question in questions}
        asked = {self._submit(engine, question, [], context): question for question in questions}
        tokens: dict[int, list[int]] = {}
        for output in engine.run():
            tokens.setdefault(output.request_id, []).extend(output.tokens)
            if not output.finish_reason:
                continue
            question = asked[output.request_id]
            turns[question.number].append(self.found.text(tokens.pop(output.request_id)).strip())
            if len(turns[question.number]) < len(question.turns):
                asked[self._submit(engine, question, turns[question.number], context)] = question
            else:
                yield question, turns[question.number]

    def _submit(self, engine: Engine, question: Question, said: list[str], context: int) -> int:
        whole = self.tokenizer.prompt(_messages(question, said))
        prompt, most = fit_to_context(whole, self.config.max_new_tokens, context)
        self.cut += len(prompt) < len(whole)
        seed = (self.config.seed, question.number, len(said))
        return engine.submit(
            GenerationRequest(prompt, most, self.found.stop_ids, SamplingParams(temperature_of(question), seed=seed))
        )


def _messages(question: Question, said: Sequence[str]) -> list[Message]:
    """The conversation up to the turn that comes after what was said."""
    messages: list[Message] = []
    for place, turn in enumerate(question.turns[: len(said) + 1]):
        messages.append({"role": "user", "content": turn})
        if place < len(said):
            messages.append({"role": "assistant", "content": said[place]})
    return messages


def main(config: MtBenchConfig, command: str) -> str:
    """`zephyr-jax evaluate mt-bench`."""
    if config.judgments:
        return rate_again(config).report() if config.judge else table(replay_judgments(config))
    scores = mt_bench(config)
    return table(scores) if scores else f"The answers are in {config.output}. To have them rated, pass --judge."
