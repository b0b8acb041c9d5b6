"""Decontamination: whether a text holds one of a test set, whole or by a long enough n-gram of its words."""

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
MIN_NGRAM = 6
"""Texts of fewer words match whole texts only: as a part of another text they mean little."""


class TestSets:
    """Texts of test set files as words without case and punctuation.

    A text of at least `ngram` words matches by any n-gram of that length, a shorter one (of six or more) by all of its words in
    a row, and every text where it is the whole.
    """

    __test__ = False  # pytest would collect the name

    def __init__(self, options: DecontaminationOptions):
        self._file_of_text: dict[str, str] = {}
        self._file_of_ngram: dict[int, dict[str, str]] = {}
        self.num_texts = 0
        for file in options.against:
            for text in _read_texts(file):
                self._add(text, PurePath(file).name, options.ngram)

    def check(self, texts: Iterable[str]) -> None:
        """Raise SkippedRow when one of the texts matches a test set."""
        if not self._file_of_text:
            return
        for text in texts:
            words = _words(text)
            if file := self._file_of_text.get(" ".join(words)):
                raise SkippedRow(f"it is in the test set {file}", text)
            for length, files in self._file_of_ngram.items():
                for ngram in _ngrams(words, length):
                    if ngram in files:
                        raise SkippedRow(f"it shares a run of words with the test set {files[ngram]}", ngram)

    def _add(self, text: str, file: str, ngram: int) -> None:
        words = _words(text)
        if not words:
            return
        self.num_texts += 1
        self._file_of_text.setdefault(" ".join(words), file)
        length = min(len(words), ngram)
        if length >= MIN_NGRAM:
            files = self._file_of_ngram.setdefault(length, {})
            for words_in_a_row in _ngrams(words, length):
                files.setdefault(words_in_a_row, file)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _ngrams(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def _read_texts(file: str) -> list[str]:
    texts = [text for row in raw_rows(file) for text in _strings(_text_column(row, file))]
    if not texts:
        raise InputError(f"{file} has no text to look for. Name a test set with questions in it.")
    return texts


def _text_column(row: SourceRow, file: str) -> Any:
    if row.problem:
        raise InputError(f"{file}: {row.location}: {row.problem}. Fix or remove the row of the test set.")
    values = {str(name).casefold(): value for name, value in row.content.items()}
    known = [values[name] for name in COLUMNS if name in values]
    if known:
        return next(filter(None, known), [])
    raise InputError(
        f"{file}: {row.location}: expected one of the columns {join_items(COLUMNS)}, got {join_items(row.content)}. Rename the "
        "column that holds the questions."
    )


def _strings(value: Any) -> Iterator[str]:
    """Texts in a value: itself, those of a list, or those of user messages."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and item.get("role", "user") == "user" and isinstance(item.get("content"), str):
            yield item["content"]
