"""The values of one JSON list, or of JSON objects one after another, read piece by piece."""

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from zephyr_jax.storage.strict_json import reject_conflicting_names

_PIECE = 2**20
_SPACE = " \t\r\n\ufeff"
_SLACK = 16  # characters: an error so close to the end of a piece may be the end of the piece


class JsonValues:
    """Iterates over the elements of a top-level list, or over top-level objects. Holds one value and one piece in memory."""

    def __init__(self, file: BinaryIO):
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")()
        self._json = json.JSONDecoder(object_pairs_hook=reject_conflicting_names)
        self._text, self._at, self._ended = "", 0, False

    def __iter__(self) -> Iterator[Any]:
        """Raises ValueError, with a reason, for text that is not JSON."""
        listed = self._next() == "["
        self._at += listed
        first = True
        while (character := self._next()) and not (listed and character == "]"):
            if listed and not first:
                self._take(",")
                self._next()
            yield self._value()
            first = False
        if listed:
            self._take("]")
            if self._next():
                raise ValueError("there is text after the list")

    def _next(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._fill()

    def _take(self, character: str) -> None:
        if self._next() != character:
            raise ValueError(f"expected `{character}`, got {self._text[self._at : self._at + 20]!r}")
        self._at += 1

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                complete = error.pos + _SLACK < len(self._text) and not error.msg.startswith("Unterminated")
                if complete or self._ended:
                    raise ValueError(error.msg) from error
            except RecursionError as error:
                raise ValueError("it is nested too deep") from error
            self._fill()

    def _fill(self) -> None:
        rest = self._text[self._at :]
        piece = self._file.read(max(_PIECE, len(rest)))
        self._ended = not piece
        try:
            self._text = rest + self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            raise ValueError("it is not UTF-8") from error
        self._at = 0
