"""The demo's judge: a rule that scores a whole answer from 1 to 10 and differs from the rater's rule (`rater.RULE`).

The rater, whose ratings make the pairs, checks the requested nouns and the ending. The judge also checks the language, whether
the story stays with the requested nouns, and that it ends once.
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
    "1 point; 4 minus one for each bigram that the teacher's language does not have; 3 times the share of requested nouns that "
    "occur at least twice; 1 if no other noun occurs; 1 if it ends with one of the closing sentences and holds no other"
)
_MAX_LANGUAGE_POINTS = 4.0


def score(prompt: str, answer: str) -> float:
    """Score of an answer from 1 to 10, by RULE."""
    requested = requested_nouns(prompt)
    words = re.findall(r"[a-z]+", answer.lower())
    repeated = sum(words.count(noun) >= 2 for noun in requested) / len(requested) if requested else 0.0
    strays = set(words) & set(ALL_NOUNS) - set(requested)
    num_closings = sum(answer.count(closing) for closing in CLOSINGS)
    ends = num_closings == 1 and answer.rstrip().endswith(CLOSINGS)
    unknown = sum(bigram not in _language() for bigram in _bigrams(answer))
    language = max(0.0, _MAX_LANGUAGE_POINTS - unknown) * bool(words)
    return 1.0 + language + 3.0 * repeated + (bool(words) and not strays) + ends


def _bigrams(text: str) -> list[tuple[str, str]]:
    """Adjacent words and punctuation, with nouns and names as classes and empty marks at both ends of the text."""
    tokens = re.findall(r"[A-Za-z]+|[.,!?]", text)
    classes = ["noun" if w.lower() in ALL_NOUNS else "name" if w in NAMES else w.lower() for w in tokens]
    return list(zip(["", *classes], [*classes, ""], strict=True))


@cache
def _language() -> frozenset[tuple[str, str]]:
    return frozenset(bigram for text in documents(seed=0, count=3000) for bigram in _bigrams(text))


@dataclass(frozen=True)
class WinRate:
    """A win rate in percent with its standard error."""

    value: float
    error: float


def win_rate(scores: Sequence[float], others: Sequence[float]) -> WinRate:
    """How often the first of two answers to the same prompt has the higher score; equal scores are half a win."""
    wins = [0.5 + 0.5 * ((one > other) - (one < other)) for one, other in zip(scores, others, strict=True)]
    error = stdev(wins) / math.sqrt(len(wins)) if len(wins) > 1 else math.nan
    return WinRate(100 * fmean(wins), 100 * error)
