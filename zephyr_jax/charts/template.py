"""Jinja templates with autoescape: the only place where text becomes markup. Text of models, rows and settings stays text."""

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_PACKAGE = Path(__file__).parents[1]
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
MAX_CHARS = 4000
"""Longer pieces of text are cut, and marked as cut."""


def render(name: str, **values: object) -> str:
    """Render a template, named by its path below `zephyr_jax`. Every value that is not itself a template's output is escaped."""
    return _environment().get_template(name).render(values)


def truncate(text: object, max_chars: int) -> str:
    """At most `max_chars` characters of a text, with a note if it is longer."""
    text = str(text)
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]} … [cut: {max_chars:,} of {len(text):,} characters are shown]"


def stylesheet(name: str) -> str:
    """The text of a CSS file, named by its path below `zephyr_jax`."""
    return (_PACKAGE / name).read_text()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_PACKAGE),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cut"] = truncate
    return environment


def _printable(value: Any) -> Any:
    """Replace what an HTML or XML file cannot hold (control characters, lone surrogates), before escaping."""
    if hasattr(value, "__html__"):
        return value
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", truncate(value, MAX_CHARS))
