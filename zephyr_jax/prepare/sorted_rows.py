"""Rows sorted by a drawn key, whatever order they come in, on scratch disk: a million rows need not fit into memory."""

import json
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import blake2b, sha256
from itertools import groupby
from operator import itemgetter
from typing import IO, Any

from zephyr_jax.storage.files import scratch_file

_BUCKETS = 64


class SortedRows:
    """Rows that are written to scratch disk and read back once, sorted by key, then by content.

    Memory holds the keys of one of 64 buckets at a time, and the rows of one key.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._files = [self._stack.enter_context(scratch_file()) for _ in range(_BUCKETS)]
        self.count = 0

    def __enter__(self) -> "SortedRows":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, key: str, content: dict[str, Any], location: str) -> None:
        """Store a row; `key` is hexadecimal, `location` the file and line that it came from."""
        bucket = int(key[:2], 16) * _BUCKETS // 256
        self._files[bucket].write(f"{key}\t{json.dumps(content)}\t{json.dumps(location)}\n".encode())
        self.count += 1

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any], str]]:
        """Yields (key, content, location)."""
        for bucket in self._files:
            with bucket as file:
                for line in _sorted_lines(file):
                    key, content, location = line.split(b"\t")
                    yield key.decode(), json.loads(content), json.loads(location)


def _sorted_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines sorted by their keys (the text before the first tab), lines of one key by their bytes."""
    file.seek(0)
    keys, offset = list[tuple[bytes, int]](), 0
    for line in file:
        keys.append((line.partition(b"\t")[0], offset))
        offset += len(line)
    for _, group in groupby(sorted(keys), key=itemgetter(0)):
        lines = []
        for _, start in group:
            file.seek(start)
            lines.append(file.readline())
        yield from sorted(lines)


def fold_text(text: str) -> str:
    """Text for comparisons: equal whatever the case, width and spacing of its words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def order_key(seed: int, text: str) -> str:
    """Sort key of a row, drawn from the seed and the folded text: texts that are equal when folded have equal keys."""
    return blake2b(f"{seed}\n{fold_text(text)}".encode(), digest_size=16).hexdigest()


def prompt_id(prompt: str) -> str:
    """SHA-256 of a prompt, its id in the published data sets."""
    return sha256(prompt.encode()).hexdigest()


def split_draws(prompt: str) -> tuple[float, float]:
    """Two numbers in [0, 1) that decide a prompt's split, drawn from its folded text alone.

    No seed and no other row moves a prompt from one split to another.
    """
    digest = sha256(fold_text(prompt).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64, int.from_bytes(digest[8:16]) / 2**64
