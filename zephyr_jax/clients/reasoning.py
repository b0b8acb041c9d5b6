"""Reasoning that a model writes before its answer (`<think>...</think>`): removed before a verdict is parsed."""

import re

_OPENING = re.compile(r"\s{0,1000}<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_CLOSING = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_VERDICT = re.compile(r"\s{0,1000}(?:\{|\[\s{0,100}\{|```)")


def strip_reasoning(text: str) -> str:
    """The answer without the reasoning before it.

    Reasoning ends at the last closing tag; its opening tag may be missing, because some chat templates write it into the
    prompt. A text with only an opening tag is all reasoning, and the answer is empty. A text that begins with an object, a list
    of objects or a code fence is an answer that may quote a tag: it is returned unchanged.
    """
    opened = starts_reasoning(text)
    if not opened and _VERDICT.match(text):
        return text
    ends = [match.end() for match in _CLOSING.finditer(text)]
    if ends:
        return text[ends[-1] :]
    return "" if opened else text


def starts_reasoning(text: str) -> bool:
    """Whether a text, or the first token of one, starts with a reasoning tag."""
    return _OPENING.match(text) is not None
