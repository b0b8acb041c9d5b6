"""Answers that speak of the speaker's lack of feelings and views: "I do not have emotions", "I don't have opinions"."""

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
_PHRASES = (
    rf"{_SUBJECT} (?:\w+ ){{0,2}}?{_HAVE} (?:[\w'-]+,? ){{0,5}}?(?:{_LACKING})\b",
    rf"{_SUBJECT} (?:\w+ )?{_GIVE} {_WHOSE}{{0,4}}(?:{_VIEW})\b",
    rf"\bI (?:have no|lack) (?:(?!doubt|idea|objection|problem|question|reason)[\w'-]+,? ){{0,3}}?(?:{_LACKING})\b",
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
