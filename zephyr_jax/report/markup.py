"""Text into HTML, here and nowhere else: what a model, a row or a card says stays text, whatever it says."""

import html
import re

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_NEVER_CLOSED = {"meta"}
LONGEST = 4000
"""Letters of any one piece of text; more are cut, and the cut is told."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text as HTML shows it; what no file may hold (control characters, halves of pairs) becomes a question mark in a box."""
    return text if isinstance(text, Markup) else Markup(_safe(cut(str(text), LONGEST)))


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """`<name ...>content</name>`. Content that is no Markup is escaped, None is left out; `class_` is `class`, `a_b` is `a-b`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_safe(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _NEVER_CLOSED:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(*content)}</{name}>")


def joined(*content: object) -> Markup:
    """One after another."""
    return Markup("".join(escape(each) for each in content if each is not None))


def cut(text: str, most: int) -> str:
    """At most so many letters of a text, and a note where that is not all of it."""
    if len(text) <= most:
        return text
    return f"{text[:most]} … [cut: {most:,} of {len(text):,} characters are shown]"


def _safe(text: str) -> str:
    return html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text))
