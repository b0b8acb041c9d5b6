"""`zephyr-jax prepare ultrachat`: raw dialogues to the conversations of dSFT."""

import json
from collections.abc import Iterator
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.prepare import UltrachatConfig
from zephyr_jax.data.row_reader import SourceRow
from zephyr_jax.prepare.card import Distribution, Page
from zephyr_jax.prepare.decontaminate import TestSets
from zephyr_jax.prepare.dialogue import Messages, first_question, parse_dialogue
from zephyr_jax.prepare.filter_stats import Ledger
from zephyr_jax.prepare.order import order_key, prompt_id
from zephyr_jax.prepare.pipeline import Columns, Preparation, Split, plain, preparation, share
from zephyr_jax.prepare.refusal import Refusals
from zephyr_jax.prepare.splits import CHAT_SCHEMA, CHAT_SPLITS, SplitFiles, chat_split, for_split
from zephyr_jax.prepare.truecase import first_change, truecase

_ABOUT = (
    "Conversations made by `zephyr-jax prepare ultrachat` the way UltraChat 200k was: a subset, the case of sentences repaired, "
    "answers about having no emotions or opinions left out. The published filter's words are not public; those used here are "
    "this project's own."
)
_CASED = "the case of a sentence"


class Dialogues:
    """The steps of a row, by the settings, and what is counted on the way."""

    def __init__(self, config: UltrachatConfig, ledger: Ledger):
        self._config, self._ledger = config, ledger
        self._refusals = Refusals(config.refusal_phrases)
        self.tests = TestSets(config.decontaminate)
        self.columns = Columns("turns", "prompt", "answer")

    def take(self, row: SourceRow) -> tuple[str, dict[str, Any]]:
        """A raw row to repaired messages under the key that duplicates share. Raises SkippedRow."""
        messages, unanswered = parse_dialogue(row.require())
        if unanswered:
            self._ledger.repaired("a last question without an answer is cut", first_question(messages))
        if self._config.truecase:
            messages = self._truecased(messages)
        messages = self._without_refusal(messages)
        everything = self._config.decontaminate.scope == "all"
        self.tests.check(each["content"] for each in messages if everything or each["role"] == "user")
        prompt = first_question(messages)
        alike = prompt if self._config.duplicates == "prompt" else json.dumps([each["content"] for each in messages])
        return order_key(self._config.seed, alike), {"prompt": prompt, "messages": messages}

    def make(self, content: dict[str, Any], place: str) -> Iterator[Split]:
        """The row of the one split that it belongs to."""
        prompt, messages = content["prompt"], content["messages"]
        name = chat_split(prompt, self._config.test_fraction, self._config.gen_fraction)
        self.columns.add(turns=sum(each["role"] == "user" for each in messages), prompt=len(prompt))
        for each in messages:
            if each["role"] == "assistant":
                self.columns.add(answer=len(each["content"]))
        yield name, {"prompt": prompt, "prompt_id": prompt_id(prompt), "messages": for_split(name, messages)}

    def _truecased(self, messages: Messages) -> Messages:
        after = [{**each, "content": truecase(each["content"])} for each in messages]
        changed = [
            (one["content"], other["content"]) for one, other in zip(messages, after, strict=True) if one != other
        ]
        if changed:
            self._ledger.repaired(_CASED, first_change(*changed[0]))
        return after

    def _without_refusal(self, messages: Messages) -> Messages:
        found = self._refusals.first(messages) if self._config.refusals != "keep" else None
        if found is None:
            return messages
        before = messages[: found.turn - 1]
        if self._config.refusals == "drop" or not any(each["role"] == "assistant" for each in before):
            raise SkippedRow("an answer speaks of having no emotions, opinions and the like", found.about)
        self._ledger.repaired("cut before an answer about having no emotions, opinions and the like", found.about)
        return before


def prepare_ultrachat(config: UltrachatConfig, command: str) -> str:
    """Write the splits and the account; a summary for people. The same command gives the same files. Raises InputError."""
    with preparation("prepare ultrachat", config) as run:
        dialogues = Dialogues(config, run.ledger)
        run.read(dialogues.take)
        files = SplitFiles(run.out, CHAT_SPLITS, CHAT_SCHEMA)
        run.write_splits(files, dialogues.make, config.duplicates != "keep", config.num_examples)
        return run.write_account(_page(config, command, dialogues, files, run))


def _page(config: UltrachatConfig, command: str, dialogues: Dialogues, files: SplitFiles, run: Preparation) -> Page:
    turns, prompts, answers = (dialogues.columns[name] for name in ("turns", "prompt", "answer"))
    histograms = [
        Distribution("questions of a dialogue", "questions", {"all": turns}),
        Distribution("length of the first question", "characters", {"all": prompts}, doubling=True),
        Distribution("length of an answer", "characters", {"all": answers}, doubling=True),
    ]
    cased = run.ledger.repairs[_CASED]
    facts = {
        "dialogues": f"{len(turns):,}",
        "answers": f"{len(answers):,}",
        "rows read whose case was repaired": f"{cased:,} ({share(cased, run.ledger.read)})",
        "texts of test sets that were looked for": f"{dialogues.tests.texts:,}",
    }
    return Page(
        "Conversations", _ABOUT, command, files.counts, CHAT_SCHEMA, run.ledger, len(turns), facts, histograms,
        (), plain(config),
    )  # fmt: skip


def main(config: UltrachatConfig, command: str) -> str:
    """`zephyr-jax prepare ultrachat`."""
    return str(prepare_ultrachat(config, command))
