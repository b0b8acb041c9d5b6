"""Rated answers to a pair: which is chosen, which rejected."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Literal

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.prepare.order import folded
from zephyr_jax.prepare.rated import Scored

type Choice = Literal["random", "lowest", "second", "revision-2023"]


@dataclass(frozen=True)
class Rule:
    """How a pair is made of rated answers."""

    rejected: Choice = "random"
    least_gap: float | None = None
    """The chosen answer's score must be larger than the rejected one's by so much; 0: larger at all; None: or equal."""
    seed: int = 0

    def pair(self, prompt: str, answers: Sequence[Scored], of: int | None = None) -> tuple[Scored, Scored]:
        """Chosen and rejected. Raises SkippedRow when these answers make no pair.

        The chosen one is the first of those with the highest score. Only an answer whose score is low enough can be
        rejected. Their texts differ (see `distinct`), but for `revision-2023`, which takes them as they are, and counts those
        that cannot be used: the row has `of`.
        """
        if len(answers) < 2:
            raise SkippedRow("fewer than two of its answers can be used", prompt)
        chosen = max(answers, key=lambda each: each.score)
        if self.rejected == "revision-2023":
            return chosen, _drawn_in_2023(prompt, chosen, answers, of or len(answers))
        low = [each for each in answers if each is not chosen and self._is_low(chosen.score - each.score)]
        if not low:
            raise SkippedRow("no answer is rated low enough below the best", f"scores {_scores(answers)}: {prompt}")
        if self.rejected == "random":
            return chosen, low[self._draw(prompt) % len(low)]
        by_score = sorted(low, key=lambda each: (each.score, self._draw(each.text)))
        return chosen, by_score[0 if self.rejected == "lowest" else -1]

    def _is_low(self, gap: float) -> bool:
        return self.least_gap is None or (gap > 0 and gap >= self.least_gap)

    def _draw(self, text: str) -> int:
        """A number that this text and the seed decide, whatever else there is."""
        return int.from_bytes(blake2b(f"{self.seed}\nrejected\n{folded(text)}".encode(), digest_size=8).digest())


def distinct(answers: Sequence[Scored]) -> tuple[list[Scored], list[Scored]]:
    """Answers of which each text is there once, with its highest score, in their order; and the others."""
    best = {each.text: each for each in sorted(answers, key=lambda each: (each.score, -each.number))}
    kept = [each for each in answers if best[each.text] is each]
    return kept, [each for each in answers if best[each.text] is not each]


def _drawn_in_2023(prompt: str, chosen: Scored, answers: Sequence[Scored], of: int) -> Scored:
    """The draw of the data that the first Zephyr saw: one of all answers, again while it is the chosen one, by a generator
    that starts from 42 in every row. So the first answer is rejected, or the third where the first is chosen."""
    alike = (chosen.score, chosen.text, chosen.model)
    others = [each for each in answers if (each.score, each.text, each.model) != alike]
    if not others:
        raise SkippedRow("all its answers are the same text", prompt)
    usable, generator = {each.number: each for each in answers}, Random(42)
    drawn = usable.get(generator.randrange(of))
    while drawn and drawn not in others:
        drawn = usable.get(generator.randrange(of))
    if drawn is None:
        raise SkippedRow("the drawn answer cannot be used", prompt)
    if drawn.text == chosen.text:
        raise SkippedRow("the chosen and the drawn answer are the same text", prompt)
    return drawn


def _scores(answers: Sequence[Scored]) -> str:
    return ", ".join(f"{each.score:g}" for each in answers)
