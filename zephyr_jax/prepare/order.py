"""Rows in an order of their own, however they came, a part at a time: a million need not fit into memory."""

import json
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b, sha256
from itertools import groupby
from operator import itemgetter
from typing import IO, Any

from zephyr_jax.storage.files import scratch_file

_PARTS = 64
_WHOLE = 2**64


class Ordered:
    """Rows on scratch disk that are read back once, by the order of their keys, then of their content.

    In memory are the keys of one of 64 parts at a time, and the rows of one key.
    """

    def __init__(self) -> None:
        self._open = ExitStack()
        self._files = [self._open.enter_context(scratch_file()) for _ in range(_PARTS)]
        self.rows = 0

    def __enter__(self) -> "Ordered":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def add(self, key: str, content: dict[str, Any], place: str) -> None:
        """Put a row away; `key` is hexadecimal, `place` where it came from."""
        part = int(key[:2], 16) * _PARTS // 256
        self._files[part].write(f"{key}\t{json.dumps(content)}\t{json.dumps(place)}\n".encode())
        self.rows += 1

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        for part in self._files:
            with part as file:
                for line in _sorted(file):
                    key, content, place = line.split(b"\t")
                    yield key.decode(), json.loads(content), json.loads(place)


def _sorted(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file in the order of their keys (what stands before a tab), those of one key in that of their bytes."""
    file.seek(0)
    starts, place = list[tuple[bytes, int]](), 0
    for line in file:
        starts.append((line.partition(b"\t")[0], place))
        place += len(line)
    for _, alike in groupby(sorted(starts), key=itemgetter(0)):
        lines = []
        for _, start in alike:
            file.seek(start)
            lines.append(file.readline())
        yield from sorted(lines)


def folded(text: str) -> str:
    """Text as it is compared: words are the same whatever their case, width and spacing."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def order_key(seed: int, text: str) -> str:
    """Where a row stands: a draw by the seed and the folded text, equal for texts that are the same when folded."""
    return blake2b(f"{seed}\n{folded(text)}".encode(), digest_size=16).hexdigest()


def prompt_id(prompt: str) -> str:
    """The published name of a prompt: its SHA-256."""
    return sha256(prompt.encode()).hexdigest()


def shares(prompt: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that decide a prompt's split: by its folded text alone, so that no seed and no other row
    moves a prompt from one side to the other."""
    digest = sha256(folded(prompt).encode()).digest()
    return int.from_bytes(digest[:8]) / _WHOLE, int.from_bytes(digest[8:16]) / _WHOLE
