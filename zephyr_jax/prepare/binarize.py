"""Rated answers -> a pair: which answer is chosen, which is rejected."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from random import Random
from typing import Literal

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.prepare.rated import ScoredAnswer
from zephyr_jax.prepare.sorted_rows import fold_text

type RejectedChoice = Literal["random", "lowest", "second", "revision-2023"]


@dataclass(frozen=True)
class PairRule:
    """How a pair is selected among scored answers."""

    rejected: RejectedChoice = "random"
    min_margin: float | None = None
    """Minimum of the chosen minus the rejected score; 0: any positive margin; None: ties are allowed."""
    seed: int = 0

    def select_pair(
        self, prompt: str, answers: Sequence[ScoredAnswer], num_completions: int | None = None
    ) -> tuple[ScoredAnswer, ScoredAnswer]:
        """Select the chosen answer, the first with the highest score, and the rejected one.

        Args:
            prompt: The prompt, which seeds the draw.
            answers: Usable answers with different texts (see `unique_texts`); for `revision-2023` all usable ones.
            num_completions: Answers of the row, unusable ones included; default: `len(answers)`.

        Raises:
            SkippedRow: These answers make no pair.
        """
        if len(answers) < 2:
            raise SkippedRow("fewer than two of its answers can be used", prompt)
        chosen = max(answers, key=lambda answer: answer.score)
        if self.rejected == "revision-2023":
            return chosen, _draw_of_2023(prompt, chosen, answers, num_completions or len(answers))
        lower = [answer for answer in answers if answer is not chosen and self._allows(chosen.score - answer.score)]
        if not lower:
            scores = ", ".join(f"{answer.score:g}" for answer in answers)
            raise SkippedRow("no answer is rated low enough below the best", f"scores {scores}: {prompt}")
        if self.rejected == "random":
            return chosen, lower[self._draw(prompt) % len(lower)]
        by_score = sorted(lower, key=lambda answer: (answer.score, self._draw(answer.text)))
        return chosen, by_score[0 if self.rejected == "lowest" else -1]

    def _allows(self, margin: float) -> bool:
        return self.min_margin is None or (margin > 0 and margin >= self.min_margin)

    def _draw(self, text: str) -> int:
        """A pseudorandom number that depends on this text and the seed only."""
        return int.from_bytes(blake2b(f"{self.seed}\nrejected\n{fold_text(text)}".encode(), digest_size=8).digest())


def unique_texts(answers: Sequence[ScoredAnswer]) -> tuple[list[ScoredAnswer], list[ScoredAnswer]]:
    """(answers of which each text appears once, with its highest score, in order; the other copies)."""
    best = {answer.text: answer for answer in sorted(answers, key=lambda answer: (answer.score, -answer.index))}
    return (
        [answer for answer in answers if best[answer.text] is answer],
        [answer for answer in answers if best[answer.text] is not answer],
    )


def _draw_of_2023(
    prompt: str, chosen: ScoredAnswer, answers: Sequence[ScoredAnswer], num_completions: int
) -> ScoredAnswer:
    """The rejected answer of the data set's first revision, which the first Zephyr was trained on.

    It drew one of all answers, again while that was the chosen one, from a generator seeded with 42 in every row: so the first
    answer is rejected, or the third where the first is chosen.
    """
    identity = (chosen.score, chosen.text, chosen.model)
    others = [answer for answer in answers if (answer.score, answer.text, answer.model) != identity]
    if not others:
        raise SkippedRow("all its answers are the same text", prompt)
    usable, generator = {answer.index: answer for answer in answers}, Random(42)
    drawn = usable.get(generator.randrange(num_completions))
    while drawn and drawn not in others:
        drawn = usable.get(generator.randrange(num_completions))
    if drawn is None:
        raise SkippedRow("the drawn answer cannot be used", prompt)
    if drawn.text == chosen.text:
        raise SkippedRow("the chosen and the drawn answer are the same text", prompt)
    return drawn
