"""`zephyr-jax prepare ultrafeedback`: rated answers -> the preferences of dDPO."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.prepare import UltrafeedbackConfig
from zephyr_jax.data.row_reader import SourceRow
from zephyr_jax.prepare.binarize import PairRule, unique_texts
from zephyr_jax.prepare.card import Distribution, NamedCounts, Summary
from zephyr_jax.prepare.decontaminate import TestSets
from zephyr_jax.prepare.pipeline import Measurements, format_share, run_preparation
from zephyr_jax.prepare.rated import (
    RatedAnswer,
    ScoredAnswer,
    parse_answer,
    parse_completions,
    parse_prompt,
    row_source,
    score_answer,
)
from zephyr_jax.prepare.rejections import RejectionLog
from zephyr_jax.prepare.sorted_rows import order_key, prompt_id
from zephyr_jax.prepare.splits import PAIR_SCHEMA, PAIR_SPLITS, messages_of_split, pair_splits

_ABOUT = (
    "Preferences made by `zephyr-jax prepare ultrafeedback` as UltraFeedback binarized was made: of each prompt's rated answers "
    "the best is chosen, another one rejected."
)
_SIDES = ("chosen", "rejected")


class UltrafeedbackSteps:
    """Score repair, decontamination, binarization and the splits of each pair."""

    splits, schema = PAIR_SPLITS, PAIR_SCHEMA

    def __init__(self, config: UltrafeedbackConfig, log: RejectionLog):
        self._config, self._log = config, log
        self._rule = PairRule(config.rejected, config.least_gap, config.seed)
        self._test_sets = TestSets(config.decontaminate)
        self._has_score_bug = False
        """Whether any overall score of 10 was a 1; known once every row has been parsed."""
        self._measurements = Measurements(*_SIDES, *(f"score_{side}" for side in _SIDES))

    def parse(self, row: SourceRow) -> tuple[str, dict[str, Any]]:
        """Prompt and answers of a raw row under the key of the prompt. Raises SkippedRow."""
        content = row.require()
        prompt = parse_prompt(content)
        if row_source(content) in self._config.exclude_sources:
            raise SkippedRow(f"its source is {row_source(content)}", prompt)
        completions, answers = parse_completions(content), list[RatedAnswer]()
        for index, completion in enumerate(completions):
            try:
                answers.append(parse_answer(index, completion))
            except SkippedRow as error:
                self._log.skip(row.location, error, completion, index)
        self._has_score_bug |= any(answer.was_one for answer in answers)
        check_all = self._config.decontaminate.scope == "all"
        self._test_sets.check([prompt, *(answer.text for answer in answers if check_all)])
        parsed = {"prompt": prompt, "answers": [asdict(answer) for answer in answers], "of": len(completions)}
        return order_key(self._config.seed, prompt), parsed

    def make_rows(self, content: dict[str, Any], location: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The pair, once for each split that it belongs to. Raises SkippedRow for answers that make no pair."""
        prompt = content["prompt"]
        answers, copies = list(self._score(content["answers"], location)), list[ScoredAnswer]()
        if self._config.rejected != "revision-2023":
            answers, copies = unique_texts(answers)
        for copy in copies:
            error = SkippedRow("an answer is the same text as another", copy.text)
            self._log.skip(location, error, copy, copy.index)
        chosen, rejected = self._rule.select_pair(prompt, answers, content["of"])
        question = {"content": prompt, "role": "user"}
        dialogues = [[question, {"content": answer.text, "role": "assistant"}] for answer in (chosen, rejected)]
        scores = {"score_chosen": chosen.score, "score_rejected": rejected.score}
        self._measurements.add(chosen=len(chosen.text), rejected=len(rejected.text), **scores)
        row = {"prompt": prompt, "prompt_id": prompt_id(prompt), **dict(zip(_SIDES, dialogues, strict=True)), **scores}
        for split in pair_splits(prompt, self._config.test_fraction):
            yield split, {**row, "messages": messages_of_split(split, dialogues[0])}

    def summary(self) -> Summary:
        """Numbers of pairs and of biases such as length, and histograms of lengths and scores."""
        lengths = {side: self._measurements[side] for side in _SIDES}
        scores = {side: self._measurements[f"score_{side}"] for side in _SIDES}
        longer, gaps = lengths["chosen"] - lengths["rejected"], scores["chosen"] - scores["rejected"]
        pairs = len(gaps)
        bug = "found and repaired" if self._config.repair_scores else "found, not repaired"
        by_length = {"chosen": longer > 0, "rejected": longer < 0, "neither": longer == 0}
        by_length_counts = {name: int(matches.sum()) for name, matches in by_length.items()}
        return Summary(
            title="Preferences",
            about=_ABOUT,
            kept=pairs,
            statistics={
                "pairs": f"{pairs:,}",
                "the chosen answer is longer": format_share(int(np.sum(longer > 0)), pairs),
                "both have the same length": format_share(int(np.sum(longer == 0)), pairs),
                "both have the same score": format_share(int(np.sum(gaps == 0)), pairs),
                "the bug that stored 1 as 10": bug if self._has_score_bug else "not found",
                "texts of test sets": f"{self._test_sets.num_texts:,}",
            },
            distributions=[
                Distribution("length of an answer", "characters", lengths, doubling=True),
                Distribution("score", "points", scores),
                Distribution("chosen score minus rejected score", "points", {"all": gaps}),
            ],
            counts=[NamedCounts("longer answer", "pairs", by_length_counts, percent=True)],
        )

    def _score(self, answers: list[dict[str, Any]], location: str) -> Iterator[ScoredAnswer]:
        repair = self._config.repair_scores and self._has_score_bug
        for answer in answers:
            try:
                scored, repaired = score_answer(RatedAnswer(**answer), self._config.score, repair)
            except SkippedRow as error:
                self._log.skip(location, error, answer, answer["index"])
                continue
            if repaired:
                self._log.repair("a score of 10 was a 1", f"mean rating {answer['mean']:g}: {answer['text']}")
            yield scored


def main(config: UltrafeedbackConfig, command: str) -> str:
    """`zephyr-jax prepare ultrafeedback`: write the splits and the data card; returns a summary. Raises InputError."""
    steps = partial(UltrafeedbackSteps, config)
    return run_preparation("prepare ultrafeedback", config, command, steps, unique=config.duplicates == "drop")
