"""What a model thinks before it answers, as text: taken away before an answer is read for a verdict."""

import re

_OPENING = re.compile(r"\s{0,1000}<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_CLOSING = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_VERDICT = re.compile(r"\s{0,1000}(?:\{|\[\s{0,100}\{|```)")


def without_thought(text: str) -> str:
    """The answer without the thought before it.

    A thought ends at the last closing tag; its opening tag may be missing, as where the chat template writes it. Without a
    closing tag, a text that begins with an opening tag is all thought, and the answer is empty. A text that begins with an
    object, a list of objects or a fence is an answer that may quote a tag: nothing is taken from it.
    """
    opened = opens_thought(text)
    if not opened and _VERDICT.match(text):
        return text
    ends = [found.end() for found in _CLOSING.finditer(text)]
    if ends:
        return text[ends[-1] :]
    return "" if opened else text


def opens_thought(text: str) -> bool:
    """Whether a text, or the first token of one, begins a thought."""
    return _OPENING.match(text) is not None
