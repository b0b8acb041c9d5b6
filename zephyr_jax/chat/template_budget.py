"""What one rendering of a chat template may take: time, text, and the size of single values."""

import re
import time
from contextvars import ContextVar
from typing import Any

from jinja2 import TemplateError

MAX_SECONDS = 10.0
"""Wall time of one rendering."""
MAX_CHARACTERS = 2**28
"""Characters (and list items) that one rendering may make in all."""
_MAX_NUMBER = 10**7
_MAX_ITEMS = 2**18  # of a list or dict, those of its items counted wherever they appear
MAX_BITS = 2**16
"""Of an integer."""
_INTERVAL = 1000  # characters between two looks at the clock
_WIDTH = re.compile(r"\d{7,}|%[-+ #0]*\*")
_SIZED = (str, list, tuple, dict)
_GROWING = ("indent", "expandtabs", "replace", "wordwrap")


class TemplateLimitError(TemplateError):
    """A template runs too long, or makes too much text."""


class RenderBudget:
    """What one rendering has left."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + MAX_SECONDS
        self._left = MAX_CHARACTERS
        self._next_check = self._left - _INTERVAL

    def charge(self, size: int) -> None:
        """Take `size` characters off, and one for the work. Raises TemplateLimitError when nothing is left, or no time."""
        self._left -= size + 1
        if self._left < self._next_check:
            self._check()

    def _check(self) -> None:
        self._next_check = self._left - _INTERVAL
        if self._left < 0:
            raise TemplateLimitError(f"it makes more than {MAX_CHARACTERS:,} characters")
        if time.monotonic() > self._deadline:
            raise TemplateLimitError(f"it runs longer than {MAX_SECONDS:g} seconds")


budget: ContextVar[RenderBudget] = ContextVar("budget")
"""That of the rendering under way."""


def charge(value: Any) -> Any:
    """The value, whose size is charged."""
    budget.get().charge(len(value) if isinstance(value, _SIZED) else 0)
    return value


def charge_whole(value: Any) -> Any:
    """The same, and no more items in all than a list or dict may have: `[x, x]` in a loop doubles what `str` would write."""
    if not isinstance(value, list | tuple | dict):
        return charge(value)
    count, characters, stack = 0, 0, [value]
    while stack:
        item = stack.pop()
        count += 1
        characters += len(item) if isinstance(item, str) else 0
        check_size(count, _MAX_ITEMS)
        check_size(characters, MAX_CHARACTERS)
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            stack += item
    budget.get().charge(count)
    return value


def check_call(name: str, value: Any, arguments: list[Any]) -> None:
    """Refuse what makes a large result at once. Raises TemplateLimitError."""
    numbers = [abs(argument) for argument in arguments if isinstance(argument, int)]
    check_size(max(numbers, default=0), _MAX_NUMBER)
    if isinstance(value, str) and name in _GROWING:
        texts = [len(argument) for argument in arguments if isinstance(argument, str)]
        check_size((len(value) + 1) * max(*numbers, *texts, 1, 1), MAX_CHARACTERS)
    elif isinstance(value, str) and name in ("format", "format_map"):
        check_format(value)
    elif name == "join":
        items = next((argument for argument in (value, *arguments) if isinstance(argument, list | tuple)), ())
        separators = [len(argument) for argument in (value, *arguments) if isinstance(argument, str)]
        longest = max(separators, default=0)
        check_size(
            sum(longest + (len(argument) if isinstance(argument, str) else 1) for argument in items), MAX_CHARACTERS
        )


def check_product(left: Any, right: Any) -> None:
    """Raise TemplateLimitError for a multiplication with a large result."""
    if isinstance(left, int) and isinstance(right, int):
        check_size(left.bit_length() + right.bit_length(), MAX_BITS)
        return
    for items, count in ((left, right), (right, left)):
        if isinstance(items, str | list | tuple) and isinstance(count, int):
            check_size(len(items) * count, MAX_CHARACTERS if isinstance(items, str) else _MAX_ITEMS)


def check_format(text: str) -> None:
    """Raise TemplateLimitError for a format with a large width."""
    if _WIDTH.search(text):
        raise TemplateLimitError("it formats with a width of seven digits or more, or one that is given apart")


def check_size(size: int, limit: int) -> None:
    """Raise TemplateLimitError for a size above its limit."""
    if size > limit:
        raise TemplateLimitError(f"it asks for a value of size {min(size, 10**18):,}; at most {limit:,} is allowed")
