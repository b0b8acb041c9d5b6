"""Reasoning and answer of a text that arrives in pieces."""

from typing import NamedTuple

from zephyr_jax.chat.reasoning import CLOSE_TAG, OPEN_TAG
from zephyr_jax.generate.text_stream import overlap


class AnswerText(NamedTuple):
    """New text of an answer."""

    reasoning: str
    content: str


class ReasoningStream:
    """Splits a text into the reasoning of a leading `<think>...</think>` and the answer, as `split_block` does for a whole text.

    A text that is cut before `</think>` is all reasoning. A text without the block is all answer, unchanged.

    Args:
        opened: Whether the generation prompt ends with `<think>`, so that the text begins inside the block.
    """

    def __init__(self, opened: bool = False):
        self._opened = opened
        self._pending = ""
        self._state = "start"  # start, reasoning, closed (before the first character of the answer), answer
        self._has_reasoning = False

    def feed(self, text: str, last: bool = False) -> AnswerText:
        """Add text; returns what can be emitted. `last`: no more text follows, so emit everything."""
        self._pending += text
        if self._state == "start":
            self._start(last)
        reasoning = self._reasoning(last) if self._state == "reasoning" else ""
        return AnswerText(reasoning, self._content())

    def _start(self, last: bool) -> None:
        """Leave the state `start` once it is known whether the text begins with `<think>`."""
        text = self._pending.lstrip()
        if text.startswith(OPEN_TAG):
            self._state, self._pending = "reasoning", text.removeprefix(OPEN_TAG)
        elif last or not OPEN_TAG.startswith(text):
            self._state = "reasoning" if self._opened else "answer"

    def _reasoning(self, last: bool) -> str:
        """Text of the reasoning without whitespace around it."""
        text, tag, after = self._pending.partition(CLOSE_TAG)
        if tag:
            self._state, self._pending = "closed", after
        else:
            size = len(text) if last else len(text) - overlap(text, CLOSE_TAG)
            text = text[:size].rstrip()
            self._pending = "" if last else self._pending[len(text) :]
        text = text.rstrip() if self._has_reasoning else text.strip()
        self._has_reasoning = self._has_reasoning or bool(text)
        return text

    def _content(self) -> str:
        if self._state == "closed":
            self._pending = self._pending.lstrip()
            self._state = "answer" if self._pending else "closed"
        if self._state != "answer":
            return ""
        text, self._pending = self._pending, ""
        return text
