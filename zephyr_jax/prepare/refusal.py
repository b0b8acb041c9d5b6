"""Detects answers about having no emotions or opinions: "I do not have emotions", "I don't have opinions"."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_jax.prepare.dialogue import Messages

_PERSONAL = (
    r"personal (?:experiences?|views?|thoughts?|stances?|perspectives?|judge?ments?|tastes?|lives|life|favou?rites?|bias|"
    r"interests?|likes?)|subjective experiences?"
)
_VIEW = rf"opinions?|beliefs?|preferences?|viewpoints?|{_PERSONAL}"
_LACKING = rf"emotions?|feelings?|bias(?:es)?|consciousness|sentience|self-awareness|desires|sensations|{_VIEW}"
_NOT = r"(?:do not|don't|cannot|can not|can't|could not|couldn't)"
_SUBJECT = (
    r"\bI(?:"
    rf"(?:,? (?:as|being) an? [\w' -]{{2,40}},)?(?: \w+)? {_NOT}|"  # I, as a program, really don't
    rf"(?:'m| am) (?:[\w'-]+,? ){{1,10}}?(?:and|but|so)(?: I)?(?: therefore| thus| also)? {_NOT}|"  # I am a program and don't
    r"(?: am|'m) (?:just |also )?(?:not (?:able|capable|programmed|designed|built)|unable|incapable) (?:to|of))"
)
_HAVE = r"(?:have|hold|possess|feel|form|experience|having|holding|feeling|forming|experiencing)(?! back)"
_GIVE = r"(?:express|provide|give|offer|share|expressing|providing|giving|offering|sharing)"
_WHOSE = r"(?:you |with you |any |an? |my |own |personal |subjective |honest |such )"
_PATTERNS = (
    rf"{_SUBJECT} (?:\w+ ){{0,2}}?{_HAVE} (?:[\w'-]+,? ){{0,5}}?(?:{_LACKING})\b",
    rf"{_SUBJECT} (?:\w+ )?{_GIVE} {_WHOSE}{{0,4}}(?:{_VIEW})\b",
    rf"\bI (?:have no|lack) (?:(?!doubt|idea|objection|problem|question|reason)[\w'-]+,? ){{0,3}}?(?:{_LACKING})\b",
)
_EXCERPT_CONTEXT = 120  # characters


@dataclass(frozen=True)
class Refusal:
    """A refusal in a dialogue."""

    turn: int
    """Index of the message."""
    excerpt: str
    """The phrase with some context."""


class RefusalDetector:
    """Matches built-in patterns and `phrases`, plain text in any case."""

    def __init__(self, phrases: Sequence[str] = ()):
        escaped = [re.escape(_normalize(phrase)) for phrase in phrases]
        self._pattern = re.compile("|".join([*_PATTERNS, *escaped]), re.IGNORECASE)

    def find(self, messages: Messages) -> Refusal | None:
        """The first answer that matches."""
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            match = self._pattern.search(_normalize(message["content"]))
            if match:
                start, end = max(match.start() - _EXCERPT_CONTEXT, 0), match.end() + _EXCERPT_CONTEXT
                return Refusal(turn, message["content"][start:end])
        return None


def _normalize(text: str) -> str:
    """The text with one kind of apostrophe and space, equal in length."""
    return text.replace("’", "'").replace("\u00a0", " ")
