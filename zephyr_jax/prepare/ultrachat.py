"""`zephyr-jax prepare ultrachat`: raw dialogues -> the conversations of dSFT."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.prepare import UltrachatConfig
from zephyr_jax.data.row_reader import SourceRow
from zephyr_jax.prepare.card import Distribution, Summary
from zephyr_jax.prepare.decontaminate import TestSets
from zephyr_jax.prepare.dialogue import Messages, first_question, parse_dialogue
from zephyr_jax.prepare.pipeline import Measurements, format_share, run_preparation
from zephyr_jax.prepare.refusal import RefusalDetector
from zephyr_jax.prepare.rejections import RejectionLog
from zephyr_jax.prepare.sorted_rows import order_key, prompt_id
from zephyr_jax.prepare.splits import CHAT_SCHEMA, CHAT_SPLITS, chat_split, messages_of_split
from zephyr_jax.prepare.truecase import first_change, truecase

_ABOUT = (
    "Conversations made by `zephyr-jax prepare ultrachat` as UltraChat 200k was made: a subset, sentence case repaired, answers "
    "about having no emotions or opinions removed. The phrases of the published filter are not public; this project uses others."
)
_TRUECASED = "the case of a sentence"


class UltrachatSteps:
    """Truecasing, refusal filter, decontamination and the split of each dialogue."""

    splits, schema = CHAT_SPLITS, CHAT_SCHEMA

    def __init__(self, config: UltrachatConfig, log: RejectionLog):
        self._config, self._log = config, log
        self._refusals = RefusalDetector(config.refusal_phrases)
        self._test_sets = TestSets(config.decontaminate)
        self._measurements = Measurements("turns", "prompt", "answer")

    def parse(self, row: SourceRow) -> tuple[str, dict[str, Any]]:
        """Repaired messages under the key that duplicates share. Raises SkippedRow."""
        messages, unanswered = parse_dialogue(row.require())
        if unanswered:
            self._log.repair("a last question without an answer is cut", first_question(messages))
        if self._config.truecase:
            messages = self._truecase(messages)
        messages = self._remove_refusal(messages)
        check_all = self._config.decontaminate.scope == "all"
        self._test_sets.check(message["content"] for message in messages if check_all or message["role"] == "user")
        prompt = first_question(messages)
        by_prompt = self._config.duplicates == "prompt"
        identity = prompt if by_prompt else json.dumps([message["content"] for message in messages])
        return order_key(self._config.seed, identity), {"prompt": prompt, "messages": messages}

    def make_rows(self, content: dict[str, Any], location: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The row of the one split that a dialogue belongs to."""
        prompt, messages = content["prompt"], content["messages"]
        split = chat_split(prompt, self._config.test_fraction, self._config.gen_fraction)
        turns = sum(message["role"] == "user" for message in messages)
        self._measurements.add(turns=turns, prompt=len(prompt))
        for message in messages:
            if message["role"] == "assistant":
                self._measurements.add(answer=len(message["content"]))
        yield split, {"prompt": prompt, "prompt_id": prompt_id(prompt), "messages": messages_of_split(split, messages)}

    def summary(self) -> Summary:
        """Numbers of dialogues, answers and repairs, and histograms of their lengths."""
        turns, prompts, answers = (self._measurements[name] for name in ("turns", "prompt", "answer"))
        truecased = self._log.repairs[_TRUECASED]
        return Summary(
            title="Conversations",
            about=_ABOUT,
            kept=len(turns),
            statistics={
                "dialogues": f"{len(turns):,}",
                "answers": f"{len(answers):,}",
                "rows read with repaired case": f"{truecased:,} ({format_share(truecased, self._log.rows_read)})",
                "texts of test sets": f"{self._test_sets.num_texts:,}",
            },
            distributions=[
                Distribution("questions of a dialogue", "questions", {"all": turns}),
                Distribution("length of the first question", "characters", {"all": prompts}, doubling=True),
                Distribution("length of an answer", "characters", {"all": answers}, doubling=True),
            ],
        )

    def _truecase(self, messages: Messages) -> Messages:
        repaired = [{**message, "content": truecase(message["content"])} for message in messages]
        for before, after in zip(messages, repaired, strict=True):
            if before != after:
                self._log.repair(_TRUECASED, first_change(before["content"], after["content"]))
                break
        return repaired

    def _remove_refusal(self, messages: Messages) -> Messages:
        refusal = self._refusals.find(messages) if self._config.refusals != "keep" else None
        if refusal is None:
            return messages
        before = messages[: refusal.turn - 1]
        if self._config.refusals == "drop" or not any(message["role"] == "assistant" for message in before):
            raise SkippedRow("an answer speaks of having no emotions, opinions and the like", refusal.excerpt)
        self._log.repair("cut before an answer about having no emotions, opinions and the like", refusal.excerpt)
        return before


def main(config: UltrachatConfig, command: str) -> str:
    """`zephyr-jax prepare ultrachat`: write the splits and the data card; returns a summary. Raises InputError."""
    steps = partial(UltrachatSteps, config)
    unique = config.duplicates != "keep"
    return run_preparation("prepare ultrachat", config, command, steps, unique, config.num_examples)
