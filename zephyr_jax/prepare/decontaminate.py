"""Texts of test sets, and whether another text holds one of them: word for word, or a long enough run of its words."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import Any

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.sections import DecontaminationOptions
from zephyr_jax.data.row_reader import SourceRow
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.prepare.raw import raw_rows

COLUMNS = ("question", "prompt", "instruction", "text", "problem", "query", "goal", "ctx", "turns", "messages")
SHORTEST_RUN = 6
"""Texts of fewer words are only found where they are the whole: as part of another they say little."""


class TestSets:
    """The texts of the files that a user names, as words without case and punctuation.

    A text of at least `ngram` words is found by any run of so many of its words, a shorter one (of six or more) by all of
    its words in a row, and every text where it is the whole.
    """

    __test__ = False  # a name that pytest would collect

    def __init__(self, options: DecontaminationOptions):
        self._whole: dict[str, str] = {}
        self._runs: dict[int, dict[str, str]] = {}
        self.texts = 0
        for file in options.against:
            for text in _texts_of(file):
                self._add(text, PurePath(file).name, options.ngram)

    def check(self, texts: Iterable[str]) -> None:
        """Raise SkippedRow when one of the texts is of a test set."""
        if not self._whole:
            return
        for text in texts:
            words = _words(text)
            if name := self._whole.get(" ".join(words)):
                raise SkippedRow(f"it is in the test set {name}", text)
            for length, runs in self._runs.items():
                for run in _runs_of(words, length):
                    if run in runs:
                        raise SkippedRow(f"it shares a run of words with the test set {runs[run]}", run)

    def _add(self, text: str, name: str, ngram: int) -> None:
        words = _words(text)
        if not words:
            return
        self.texts += 1
        self._whole.setdefault(" ".join(words), name)
        length = min(len(words), ngram)
        if length >= SHORTEST_RUN:
            runs = self._runs.setdefault(length, {})
            for run in _runs_of(words, length):
                runs.setdefault(run, name)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _runs_of(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def _texts_of(file: str) -> list[str]:
    found, rows = [], 0
    for row in raw_rows(file):
        rows += 1
        found += list(_strings(_value(row, file)))
    if not found:
        raise InputError(f"{file} holds {rows:,} rows and no text to look for. Name a test set with questions in it.")
    return found


def _value(row: SourceRow, file: str) -> Any:
    if row.problem:
        raise InputError(f"{file}: {row.place}: {row.problem}. A test set must be whole: fix the row or remove it.")
    named = {str(name).casefold(): value for name, value in row.content.items()}
    known = [named[name] for name in COLUMNS if name in named]
    if known:
        return next(filter(None, known), [])
    raise InputError(
        f"{file}: {row.place} has none of the columns {join_items(COLUMNS)}; it has {join_items(row.content)}. Rename the column "
        "that holds the questions."
    )


def _strings(value: Any) -> Iterator[str]:
    """Texts in a value: itself, those of a list, or what users say in messages."""
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict) and each.get("role", "user") == "user" and isinstance(each.get("content"), str):
            yield each["content"]
