"""The package's errors and the formatting of messages. A message is one paragraph: expected, got, and the fix."""

import re
import reprlib
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """An input (a file, a row, a setting) cannot be used; the command line prints the message and exits 2.

    Messages quote inputs, so that line breaks and control characters in them are escaped.
    """

    def __init__(self, message: str):
        super().__init__(escape_control_chars(message))


class TrainingError(RuntimeError):
    """A run had to stop, for example on a non-finite loss; the command line prints it and exits 3."""


class Stopped(Exception):
    """A run stopped on request after saving; the command line prints it and exits 75 (the same command resumes)."""


def escape_control_chars(text: str) -> str:
    """Text with line breaks and control characters escaped."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def terminal_text(text: str) -> str:
    """Text of a model or a data set as a terminal may show it: control characters are escaped, newlines and tabs stay.

    Escaped are ANSI and OSC sequences, carriage returns, bidirectional overrides, invisible format characters, line
    separators and lone surrogates. The joiners U+200C and U+200D stay: scripts and emoji need them.
    """
    return _CONTROL.sub(
        lambda match: _escaped(match[0]) if unicodedata.category(match[0]) in _ESCAPED else match[0], text
    )


_CONTROL = re.compile(r"[^\n\t\u200c\u200d -~]")
_ESCAPED = ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode()


def truncate_repr(value: object, longest: int = 80) -> str:
    """A value as messages quote it: its `repr`, cut where it is long; nested ones to a few levels."""
    quoted = _SHORT.repr(value)
    return quoted if len(quoted) <= longest else f"{quoted[:longest]}..."


_SHORT = reprlib.Repr(maxstring=70, maxother=70, maxlong=70, maxdict=6, maxlist=6, maxlevel=4)


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return ` Did you mean ...?` for the nearest known word, or the sorted known words when none is near."""
    names = sorted(known)
    near = get_close_matches(word[:200], names, n=1, cutoff=0.6)
    return (
        f" Did you mean `{prefix}{near[0]}`?"
        if near
        else f" Known here: {join_items((prefix + name for name in names), 40)}."
    )


def at_revision(revision: str | None) -> str:
    """` at revision REVISION`, or empty text without one."""
    return f" at revision {revision}" if revision else ""


def join_items(items: Iterable[object], limit: int = 12) -> str:
    """Join items with commas, cut after `limit` with a count of the rest."""
    names = [str(item) for item in items]
    cut = f", ... ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + cut
