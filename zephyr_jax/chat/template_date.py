"""Chat templates that print the date: it is frozen once, in the template's source, so that it travels with it.

A template prints the date with `strftime_now(FORMAT)`, which transformers offers. Each such call is replaced by the
text that it gives on one day. Anything else that differs from one rendering to the next is refused by name.
"""

import ast
import json
import re
from collections import Counter
from datetime import date, datetime

from jinja2 import nodes

from zephyr_jax.chat.template_syntax import parse_template
from zephyr_jax.errors import InputError, join_items, truncate_repr

_CLOCK = "strftime_now"
_TEXT = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_CALL = re.compile(rf"\b{_CLOCK}\s*\(\s*(?:format\s*=\s*)?({_TEXT})\s*,?\s*\)", re.DOTALL)
_DEFINED = re.compile(rf"\b{_CLOCK}\s+is\s+(not\s+)?defined\b")
_RANDOM_FILTERS, _RANDOM_FUNCTIONS = {"random"}, {"lipsum"}


def now() -> datetime:
    """The clock of this machine: the one place that reads it for templates."""
    return datetime.now()


def prints_date(source: str) -> bool:
    """Whether a template reads the clock."""
    return _CLOCK in source and bool(_names(parse_template(source)).get(_CLOCK))


def freeze_date(source: str, day: date, choice: str) -> str:
    """The template with every `strftime_now(FORMAT)` replaced by the text of `day`, at midnight.

    Args:
        source: A Jinja template.
        day: The day to print.
        choice: The template's name or path, for errors.

    Raises:
        InputError: If the clock is read in another way than with a literal format, or something random is used.
    """
    if not prints_date(source):
        return source
    moment = datetime(day.year, day.month, day.day)
    frozen = _DEFINED.sub(lambda match: "false" if match[1] else "true", source)
    frozen = _CALL.sub(lambda match: json.dumps(moment.strftime(ast.literal_eval(match[1]))), frozen)
    if prints_date(frozen):
        raise InputError(
            f"The chat template `{choice}` reads the clock in a way that cannot be frozen. Expected `strftime_now` to be "
            f"called with a literal format, as in strftime_now('%d %b %Y'), got {truncate_repr(_first_use(frozen))}. Write the "
            "format into the call, or the date as a text."
        )
    return frozen


def check_nothing_random(source: str, choice: str) -> None:
    """Raise InputError for a template that draws random values: no two runs would see the same tokens."""
    tree = parse_template(source)
    if tree is None:
        return
    filters = {node.name for node in tree.find_all(nodes.Filter)} & _RANDOM_FILTERS
    matches = sorted(
        {f"the filter `{name}`" for name in filters} | {f"`{n}()`" for n in _RANDOM_FUNCTIONS & set(_names(tree))}
    )
    if matches:
        raise InputError(
            f"The chat template `{choice}` is random: it uses {join_items(matches)}. Expected a template that renders a "
            "conversation the same way each time. Take that out of the template, or choose another with `data.chat_template`."
        )


def _names(tree: nodes.Template | None) -> Counter[str]:
    """How often each global or unset variable is read."""
    if tree is None:
        return Counter()
    return Counter(node.name for node in tree.find_all(nodes.Name) if node.ctx == "load")


def _first_use(source: str) -> str:
    match = re.search(rf"{_CLOCK}.{{0,60}}", source)
    return match[0] if match else _CLOCK
