"""`zephyr-jax prepare ultrafeedback`: rated answers to the pairs of dDPO."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.prepare import UltrafeedbackConfig
from zephyr_jax.data.row_reader import SourceRow
from zephyr_jax.prepare.binarize import Rule, distinct
from zephyr_jax.prepare.card import Distribution, NamedCounts, Page
from zephyr_jax.prepare.decontaminate import TestSets
from zephyr_jax.prepare.filter_stats import Ledger
from zephyr_jax.prepare.order import order_key, prompt_id
from zephyr_jax.prepare.pipeline import Columns, Preparation, Split, plain, preparation, share
from zephyr_jax.prepare.rated import Answer, Scored, answer_of, completions_of, prompt_of, settle, source_of
from zephyr_jax.prepare.splits import PAIR_SCHEMA, PAIR_SPLITS, SplitFiles, for_split, pair_splits

_ABOUT = (
    "Preferences made by `zephyr-jax prepare ultrafeedback` the way UltraFeedback binarized was: of each prompt's rated answers "
    "the best is chosen, another one rejected."
)


class Ratings:
    """The steps of a row, by the settings, and what is counted on the way."""

    def __init__(self, config: UltrafeedbackConfig, ledger: Ledger):
        self._config, self._ledger = config, ledger
        self._rule = Rule(config.rejected, config.least_gap, config.seed)
        self.tests = TestSets(config.decontaminate)
        self._shows_bug = False
        self.columns = Columns("chosen", "rejected", "score_chosen", "score_rejected")

    @property
    def repair(self) -> bool:
        """Whether scores are put right: known once every row has been taken."""
        return self._config.repair_scores and self._shows_bug

    @property
    def bug(self) -> str:
        """Whether the bug was found and repaired, in words."""
        found = "found, and repaired" if self._config.repair_scores else "found, and left as it is"
        return found if self._shows_bug else "not found"

    def take(self, row: SourceRow) -> tuple[str, dict[str, Any]]:
        """A raw row to its prompt and answers, under the key of its prompt. Raises SkippedRow."""
        raw = row.require()
        prompt = prompt_of(raw)
        if source_of(raw) in self._config.exclude_sources:
            raise SkippedRow(f"its source is {source_of(raw)}", prompt)
        completions, answers = completions_of(raw), []
        for number, each in enumerate(completions):
            try:
                answers.append(answer_of(number, each))
            except SkippedRow as why:
                self._ledger.leave_out(row.place, why, each, number)
        self._shows_bug |= any(each.was_one for each in answers)
        everything = self._config.decontaminate.scope == "all"
        self.tests.check([prompt, *(each.text for each in answers if everything)])
        kept = {"prompt": prompt, "answers": [asdict(each) for each in answers], "of": len(completions)}
        return order_key(self._config.seed, prompt), kept

    def make(self, content: dict[str, Any], place: str) -> Iterator[Split]:
        """Rows of the splits that a pair belongs to. Raises SkippedRow when there is no pair."""
        prompt = content["prompt"]
        scored = list(self._scored(content["answers"], place))
        answers, copies = (scored, []) if self._config.rejected == "revision-2023" else distinct(scored)
        for each in copies:
            self._ledger.leave_out(
                place, SkippedRow("an answer is the same text as another", each.text), each, each.number
            )
        chosen, rejected = self._rule.pair(prompt, answers, content["of"])
        question = {"content": prompt, "role": "user"}
        dialogues = [[question, {"content": each.text, "role": "assistant"}] for each in (chosen, rejected)]
        row = {
            "prompt": prompt, "prompt_id": prompt_id(prompt), "chosen": dialogues[0], "rejected": dialogues[1],
            "score_chosen": chosen.score, "score_rejected": rejected.score,
        }  # fmt: skip
        self.columns.add(
            chosen=len(chosen.text), rejected=len(rejected.text),
            score_chosen=chosen.score, score_rejected=rejected.score,
        )  # fmt: skip
        for name in pair_splits(prompt, self._config.test_fraction):
            yield name, {**row, "messages": for_split(name, dialogues[0])}

    def _scored(self, answers: list[dict[str, Any]], place: str) -> Iterator[Scored]:
        for each in answers:
            try:
                scored, mended = settle(Answer(**each), self._config.score, self.repair)
            except SkippedRow as why:
                self._ledger.leave_out(place, why, each, each["number"])
                continue
            if mended:
                self._ledger.repaired("a score of 10 was a 1", f"mean rating {each['mean']:g}: {each['text']}")
            yield scored


def prepare_ultrafeedback(config: UltrafeedbackConfig, command: str) -> str:
    """Write the splits and the account; a summary for people. The same command gives the same files. Raises InputError."""
    with preparation("prepare ultrafeedback", config) as run:
        ratings = Ratings(config, run.ledger)
        run.read(ratings.take)
        files = SplitFiles(run.out, PAIR_SPLITS, PAIR_SCHEMA)
        run.write_splits(files, ratings.make, config.duplicates == "drop")
        return run.write_account(_page(config, command, ratings, files, run))


def _page(config: UltrafeedbackConfig, command: str, ratings: Ratings, files: SplitFiles, run: Preparation) -> Page:
    names = ("chosen", "rejected")
    lengths = {name: ratings.columns[name] for name in names}
    scores = {name: ratings.columns[f"score_{name}"] for name in names}
    longer, gaps = lengths["chosen"] - lengths["rejected"], scores["chosen"] - scores["rejected"]
    histograms = [
        Distribution("length of an answer", "characters", lengths, doubling=True),
        Distribution("score", "points", scores),
        Distribution("chosen score less rejected score", "points", {"all": gaps}),
    ]
    pairs = len(gaps)
    which = {"the chosen": longer > 0, "the rejected": longer < 0, "neither": longer == 0}
    bars = [
        NamedCounts(
            "which answer is the longer one", "pairs", {name: int(each.sum()) for name, each in which.items()}, True
        )
    ]
    facts = {
        "pairs": f"{pairs:,}",
        "the chosen answer is the longer one": share(int(np.sum(longer > 0)), pairs),
        "both are of one length": share(int(np.sum(longer == 0)), pairs),
        "both have one score": share(int(np.sum(gaps == 0)), pairs),
        "the bug that stored 1 as 10": ratings.bug,
        "texts of test sets that were looked for": f"{ratings.tests.texts:,}",
    }
    return Page(
        "Preferences", _ABOUT, command, files.counts, PAIR_SCHEMA, run.ledger, pairs, facts, histograms, bars,
        plain(config),
    )  # fmt: skip


def main(config: UltrafeedbackConfig, command: str) -> str:
    """`zephyr-jax prepare ultrafeedback`."""
    return str(prepare_ultrafeedback(config, command))
