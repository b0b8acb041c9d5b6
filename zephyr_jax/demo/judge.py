"""The demo's judge: a rule from 1 to 10 over a whole answer, which is not the rater's rule (`corpus.rate`).

The rater, whose ratings make the pairs, looks for the requested nouns and a proper ending. The judge reads for a story: whether it
comes back to what was asked for, keeps to it, goes somewhere, and ends once.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from zephyr_jax.demo.corpus import requested_nouns
from zephyr_jax.demo.words import ALL_NOUNS, CLOSINGS

RULE = (
    "1 point; 4 for the requested nouns that occur at least twice; 2 if no other noun of the lists occurs; 2 if one of the closing "
    "sentences stands at the end, and only there; 1 if there are 3 to 9 sentences and none twice"
)


def score(prompt: str, answer: str) -> float:
    """From 1 to 10, by RULE."""
    wanted = requested_nouns(prompt)
    words = re.findall(r"[a-z]+", answer.lower())
    again = sum(words.count(noun) >= 2 for noun in wanted) / len(wanted) if wanted else 0.0
    strays = set(words) & set(ALL_NOUNS) - set(wanted)
    endings = sum(answer.count(closing) for closing in CLOSINGS)
    ends = endings == 1 and answer.rstrip().endswith(CLOSINGS)
    sentences = [each.strip() for each in re.split(r"(?<=[.!?])\s+", answer.strip()) if each.strip()]
    told = 3 <= len(sentences) <= 9 and len(set(sentences)) == len(sentences)
    return 1.0 + 4.0 * again + 2.0 * (bool(words) and not strays) + 2.0 * ends + 1.0 * told


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
