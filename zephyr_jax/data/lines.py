"""Whether a JSON file holds rows, before it is handed to Arrow, which would end the process over some that do not.

Arrow 26 reads a line `null`, or one that is nested tens of thousands deep, and dies without a word.
"""

import json
import re

import fsspec

from zephyr_jax.errors import InputError, shown
from zephyr_jax.storage.text import parsed

_DEEPEST = 100
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


def check_objects(file: str, name: str) -> None:
    """Raise InputError, with the line, unless a file is objects: one a line, or in one list. `name` is what to call it."""
    if name.endswith(".json"):
        with fsspec.open(file, "rb") as whole:
            if _is_one_value(whole.read(), name):
                return
    rows = depth = 0
    with fsspec.open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            start = line.lstrip(b" \t\r\n\xef\xbb\xbf")[:1]
            if start and not depth and start != b"{":
                raise InputError(_no_row(f"{name} line {number}", line[:200].decode(errors="replace").strip()))
            rows += bool(start)
            depth = _depth(line, depth, f"{name} line {number}")
    if not rows:
        raise InputError(f"{name} has no rows, only empty lines. Give a file with at least one.")


def first_bad_line(file: str, name: str) -> str:
    """Words for the first line that is no JSON; nothing when each is."""
    with fsspec.open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                json.dumps(parsed(line), ensure_ascii=False).encode()
            except ValueError as error:
                return f"{name} line {number} ({shown(line.decode(errors='replace').strip())}, {error})"
    return ""


def _is_one_value(content: bytes, name: str) -> bool:
    """Whether it is one list of rows, or one row; else it may be lines."""
    _depth(content, 0, name)
    try:
        value = json.loads(content)
    except ValueError:
        return False
    rows = value if isinstance(value, list) else [value]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InputError(_no_row(f"{name} row {number}", row))
    return True


def _depth(line: bytes, depth: int, place: str) -> int:
    """How many lists and objects are open after a line, when `depth` were before it."""
    opened, closed = line.count(b"[") + line.count(b"{"), line.count(b"]") + line.count(b"}")
    if not depth and opened == closed and opened <= _DEEPEST:
        return depth
    for mark in re.findall(rb"[\[\]{}]", _TEXT.sub(b"", line)):
        depth = depth + 1 if mark in b"[{" else max(depth - 1, 0)
        if depth > _DEEPEST:
            raise InputError(f"{place} is nested more than {_DEEPEST} deep. That is no row: fix or remove it.")
    return depth


def _no_row(place: str, found: object) -> str:
    return f"{place} holds {shown(found)}. Every row must be one object with the same columns; fix or remove the row."
