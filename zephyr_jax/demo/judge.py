"""The demo's judge: a rule from 1 to 10 over a whole answer, which is not the rater's rule (`rater.RULE`).

The rater, whose ratings make the pairs, looks for the requested nouns and a proper ending. The judge reads: whether the language
is sound, whether the story comes back to what was asked for and keeps to it, and whether it ends once.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

from zephyr_jax.demo.corpus import documents, requested_nouns
from zephyr_jax.demo.words import ALL_NOUNS, CLOSINGS, NAMES

RULE = (
    "1 point; 4 less one for each pair of neighbouring words that the teacher's language does not have; 3 for the requested "
    "nouns that occur at least twice; 1 if no other noun does; 1 if it ends with one of the closing sentences, said once"
)
_SOUND = 4.0


def score(prompt: str, answer: str) -> float:
    """From 1 to 10, by RULE."""
    wanted = requested_nouns(prompt)
    words = re.findall(r"[a-z]+", answer.lower())
    again = sum(words.count(noun) >= 2 for noun in wanted) / len(wanted) if wanted else 0.0
    strays = set(words) & set(ALL_NOUNS) - set(wanted)
    endings = sum(answer.count(closing) for closing in CLOSINGS)
    ends = endings == 1 and answer.rstrip().endswith(CLOSINGS)
    broken = sum(pair not in _language() for pair in _pairs(answer))
    return 1.0 + max(0.0, _SOUND - broken) * bool(words) + 3.0 * again + (bool(words) and not strays) + ends


def _pairs(text: str) -> list[tuple[str, str]]:
    """Neighbouring words and stops; nouns and names stand for each other, and ends of the text are stops, too."""
    found = re.findall(r"[A-Za-z]+|[.,!?]", text)
    words = ["noun" if w.lower() in ALL_NOUNS else "name" if w in NAMES else w.lower() for w in found]
    return list(zip(["", *words], [*words, ""], strict=True))


@cache
def _language() -> frozenset[tuple[str, str]]:
    return frozenset(pair for text in documents(seed=0, count=3000) for pair in _pairs(text))


@dataclass(frozen=True)
class Rate:
    """A share in percent with its standard error."""

    value: float
    error: float


def win_rate(scores: Sequence[float], others: Sequence[float]) -> Rate:
    """How often the first of two answers to the same prompt has the higher score; equal scores are half a win."""
    wins = [0.5 + 0.5 * ((one > other) - (one < other)) for one, other in zip(scores, others, strict=True)]
    error = stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else math.nan
    return Rate(100 * fmean(wins), 100 * error)
