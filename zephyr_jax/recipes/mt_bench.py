"""`zephyr-jax evaluate mt-bench`: answers to eighty questions of two turns, a judge's ratings, and their means."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

from zephyr_jax.data.chat import Message
from zephyr_jax.data.tokens import ChatTokenizer
from zephyr_jax.evaluation.mt_bench import (
    UNRATED,
    Bench,
    Judgment,
    Question,
    Scores,
    answer_row,
    judge_prompt,
    judgment_row,
    open_bench,
    rating_in,
    scores_of,
    temperature_of,
)
from zephyr_jax.evaluation.radar import radar
from zephyr_jax.generation.endpoint import Ask, Endpoint
from zephyr_jax.generation.engine import Engine, Request
from zephyr_jax.recipes.progress import bar
from zephyr_jax.recipes.speaker import Found, find_speaker, fitted, say_cut
from zephyr_jax.storage.cloud import explained
from zephyr_jax.storage.files import Path, check_can_be_made, open_path, write_whole
from zephyr_jax.storage.journal import Journal
from zephyr_jax.verbs.benchmarks import MtBenchConfig

type Answers = dict[int, list[str]]
"""Question -> its answers, turn by turn."""


@explained()
def mt_bench(config: MtBenchConfig) -> Scores | None:
    """Answer, have judged, and write FastChat's files, a summary and a picture into `output`. Raises InputError.

    Killed, the same command goes on: answers and judgments that were made are not made again. None without a judge.
    """
    config.check()
    out = open_path(config.output)
    check_can_be_made(out)
    every = open_bench(config.questions)
    bench = replace(every, questions=every.questions[: config.limit])
    name = config.name or PurePath(config.model.path).name
    out.mkdir(parents=True, exist_ok=True)
    judge = _open_judge(config, out) if config.judge else None
    answers = _answers(config, every, bench.questions, out)
    _write_rows(out / "model_answer" / f"{name}.jsonl", _answer_rows(bench, name, answers))
    if judge is None:
        return None
    judgments = _judge(bench, answers, judge, config.judge_tokens)
    rows = [judgment_row(each, name, time.time()) for each in judgments]
    _write_rows(out / "model_judgment" / f"{judge.model.replace('/', '_')}_single.jsonl", rows)
    scores = scores_of(bench, [(each.question, each.turn, each.score) for each in judgments])
    write_whole(
        out / f"{name}.json", json.dumps({"model": name, "judge": judge.model, **asdict(scores)}, indent=2) + "\n"
    )
    write_whole(out / f"{name}.png", radar({name: scores.by_category}))
    print(f"the judge used {judge.spent()}", file=sys.stderr)
    return scores


def table(scores: Scores) -> str:
    """The scores for people."""
    lines = [
        "| MT-Bench | mean rating |",
        "|---|---|",
        f"| **overall** | **{_shown(scores.overall)}** |",
        f"| first turn | {_shown(scores.first_turn)} |",
        f"| second turn | {_shown(scores.second_turn)} |",
        *(f"| {name} | {_shown(score)} |" for name, score in scores.by_category.items()),
        "",
        f"{scores.rated} turns rated" + (f", {scores.unrated} judgments without a rating" if scores.unrated else ""),
    ]
    return "\n".join(lines)


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _open_judge(config: MtBenchConfig, out: Path) -> Endpoint:
    header = {"judge": config.judge, "what": "replies of a judge, by request"}
    return Endpoint(str(config.judge), config.endpoint, Journal(out / "judge.journal", header))


def _answer_rows(bench: Bench, name: str, answers: Answers) -> list[dict[str, Any]]:
    def identity(question: Question) -> str:
        return blake2b(f"{name} {question.number} {answers[question.number]}".encode(), digest_size=11).hexdigest()

    return [
        answer_row(question, name, answers[question.number], identity(question), time.time())
        for question in bench.questions
    ]


def _answers(config: MtBenchConfig, bench: Bench, asked: Sequence[Question], out: Path) -> Answers:
    """The model's answers to the questions asked; those in the journal as they are."""
    found = find_speaker("evaluate mt-bench", config.model, config.mesh, config.rows)
    tokenizer = found.chat_tokenizer(config.template)
    header = {
        **found.identity, "tokenizer": tokenizer.fingerprint, "max_new_tokens": config.max_new_tokens, "seed": config.seed,
        "questions": blake2b(repr(bench.questions).encode(), digest_size=16).hexdigest(),
    }  # fmt: skip
    journal = Journal(out / "answers.journal", header)
    answers: Answers = {line["question"]: line["turns"] for line in journal.lines}
    missing = [question for question in asked if question.number not in answers]
    if missing:
        writer = _Writer(config, found, tokenizer)
        with bar("answers", len(missing)) as advance:
            for done, (question, turns) in enumerate(writer.write(missing), 1):
                answers[question.number] = turns
                journal.add({"question": question.number, "turns": turns})
                advance(done)
        say_cut(writer.cut)
    journal.close()
    return answers


@dataclass
class _Writer:
    """Answers of a model, all questions at once, the second turn of each after its first."""

    config: MtBenchConfig
    found: Found
    tokenizer: ChatTokenizer
    cut: int = 0
    """Prompts that did not fit."""

    def write(self, questions: list[Question]) -> Iterator[tuple[Question, list[str]]]:
        """Questions with both answers, as they end."""
        context = self.found.context()
        engine = self.found.engine(context)
        turns: dict[int, list[str]] = {question.number: [] for question in questions}
        asked = {self._submit(engine, question, [], context): question for question in questions}
        tokens: dict[int, list[int]] = {}
        while engine.busy:
            for piece in engine.step():
                tokens.setdefault(piece.number, []).extend(piece.tokens)
                if not piece.end:
                    continue
                question = asked[piece.number]
                turns[question.number].append(self.found.text(tokens.pop(piece.number)).strip())
                if len(turns[question.number]) < len(question.turns):
                    asked[self._submit(engine, question, turns[question.number], context)] = question
                else:
                    yield question, turns[question.number]

    def _submit(self, engine: Engine, question: Question, said: list[str], context: int) -> int:
        messages: list[Message] = []
        for place, turn in enumerate(question.turns[: len(said) + 1]):
            messages.append({"role": "user", "content": turn})
            if place < len(said):
                messages.append({"role": "assistant", "content": said[place]})
        whole = self.tokenizer.prompt(messages)
        prompt, most = fitted(whole, self.config.max_new_tokens, context)
        self.cut += len(prompt) < len(whole)
        seed = (self.config.seed, question.number, len(said))
        return engine.submit(Request(prompt, most, self.found.stops, temperature_of(question), seed=seed))


def _judge(bench: Bench, answers: Answers, judge: Endpoint, tokens: int) -> list[Judgment]:
    """Both turns of every question, rated; a refusal of the judge is a judgment without a rating."""
    turns = [(question, turn) for question in bench.questions for turn in (1, 2)]
    prompts = [judge_prompt(bench, question, answers[question.number], turn) for question, turn in turns]
    with bar("judgments", len(turns)) as advance:
        said = judge.ask_all([Ask(tuple(messages), 0.0, tokens) for _, messages in prompts], advance)
    refusals = [each.refusal for each in said if each.refusal]
    if refusals:
        print(f"the judge refused {len(refusals)} of {len(said)} turns, first: {refusals[0]}", file=sys.stderr)
    return [
        Judgment(
            question.number, turn, UNRATED if each.refusal else rating_in(each.text), messages[1]["content"], each.text,
            (judge.model, name),
        )
        for (question, turn), (name, messages), each in zip(turns, prompts, said, strict=True)
    ]  # fmt: skip
