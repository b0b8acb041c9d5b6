"""Answers that speak of the speaker's lack of feelings and views: "I do not have emotions", "I don't have opinions"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_jax.prepare.dialogue import Messages

_LACKING = (
    r"emotions?|feelings?|opinions?|beliefs?|preferences?|viewpoints?|biases|consciousness|sentience|self-awareness|desires|"
    r"sensations|personal (?:experiences?|views?|thoughts?|stances?|perspectives?|judge?ments?|tastes?|lives|life|favou?rites?)"
)
_NOT = r"(?:do not|don't|cannot|can not|can't|am (?:not able|unable|not capable) (?:to|of))"
_HAVE = r"(?:have|hold|possess|feel|form|experience|experiencing|having|express)"
_PHRASES = (
    rf"\bI (?:\w+ )?{_NOT} (?:\w+ ){{0,2}}?{_HAVE} (?:[\w'-]+,? ){{0,5}}?(?:{_LACKING})\b",
    rf"\bI (?:have no|lack) (?:[\w'-]+,? ){{0,3}}?(?:{_LACKING})\b",
)
_AROUND = 120


@dataclass(frozen=True)
class Refusal:
    """Where a dialogue has one."""

    turn: int
    """Index of the message."""
    about: str
    """The words, with what stands around them."""


class Refusals:
    """What counts as one: the phrases that are known here, and `also`, plain text in any case."""

    def __init__(self, also: Sequence[str] = ()):
        more = [re.escape(_plain(phrase)) for phrase in also]
        self._pattern = re.compile("|".join([*_PHRASES, *more]), re.IGNORECASE)

    def first(self, messages: Messages) -> Refusal | None:
        """The first answer that has such a phrase."""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            found = self._pattern.search(_plain(message["content"]))
            if found:
                start, end = max(found.start() - _AROUND, 0), found.end() + _AROUND
                return Refusal(turn, message["content"][start:end])
        return None


def _plain(text: str) -> str:
    """Letter for letter the same, with one kind of apostrophe and space."""
    return text.replace("’", "'").replace("\u00a0", " ")
