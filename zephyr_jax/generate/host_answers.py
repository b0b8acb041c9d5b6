"""Answers of `generate` on several hosts: which process generates which, a journal on each, and all of them on process 0.

Process 0 writes the journal `OUTPUT.part`, process N `OUTPUT.part-N`. The number of processes may change between two starts: an
answer in any journal that a process reads is not generated again.
"""

import json
import logging
import re
from functools import partial
from typing import Any

import jax
import numpy as np

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.parallel.exchange import broadcast_bytes, gather_on_host0
from zephyr_jax.storage.files import list_names, open_path
from zephyr_jax.storage.journal import Journal, read_journal

_logger = logging.getLogger(__name__)


class HostAnswers:
    """Tokens of the answers that this process has, by the index of their prompt.

    Args:
        output: Output file, beside which the journal is written; None: nothing is kept on disk.
        header: Everything that the answers depend on; the same on every host.
        num_prompts: Number of prompts of all hosts.

    Raises:
        InputError: A journal is damaged, in use, or of other work; or (in process 0) the hosts have different work.
    """

    def __init__(self, output: str | None, header: dict[str, Any], num_prompts: int):
        process, problem = jax.process_index(), partial(_line_error, num_prompts)
        self._count = f"{num_prompts:,}"
        self._journal = Journal(_journal_path(output, process), header, problem) if output else None
        self._left_over = [open_path(_journal_path(output, number)) for number in _left_over(output)] if output else []
        lines = [line for path in self._left_over for line in read_journal(path, header, problem)]
        lines += self._journal.lines if self._journal else []
        self.tokens: dict[int, list[int]] = {line["index"]: line["tokens"] for line in lines}
        parts = gather_on_host0(_work(header, self.tokens, num_prompts))
        owners = divide(parts, num_prompts).tobytes() if parts else b""
        is_owned = np.frombuffer(broadcast_bytes(owners), np.int32) == process
        self._owned: list[int] = np.flatnonzero(is_owned).tolist()

    @property
    def missing(self) -> list[int]:
        """Indices of the prompts that this process has to answer."""
        return [index for index in self._owned if index not in self.tokens]

    def add(self, index: int, tokens: list[int]) -> None:
        """Keep an answer."""
        self.tokens[index] = tokens
        if self._journal:
            self._journal.add({"index": index, "tokens": tokens})

    def close(self) -> None:
        """Flush the journal to disk, or upload it."""
        if self._journal:
            self._journal.close()

    def gather(self) -> dict[int, list[int]]:
        """The answers of all processes in process 0, which waits for them; an empty dict in the others."""
        if jax.process_count() == 1:
            return self.tokens
        _logger.info("finished %s of %s answers; waiting for the other hosts", f"{len(self._owned):,}", self._count)
        owned = [(index, self.tokens[index]) for index in self._owned]
        parts = gather_on_host0(json.dumps(owned).encode())
        return {index: tokens for part in parts for index, tokens in json.loads(part)}

    def end(self) -> None:
        """Remove the journals, in every process once process 0 has written the output and called this."""
        broadcast_bytes(b"")
        if self._journal:
            self._journal.delete()
        for path in self._left_over:
            path.unlink(missing_ok=True)


def divide(parts: list[bytes], num_prompts: int) -> np.ndarray:
    """Which process has or generates each answer.

    An answer belongs to the first process that has it. The missing ones are dealt out in turn, so that prompts that are sorted by
    length give every process as much to do.

    Args:
        parts: The `_work` of every process.
        num_prompts: N, the number of prompts.

    Returns:
        int32 [N].

    Raises:
        InputError: The processes have different work.
    """
    works = [json.loads(part) for part in parts]
    for process, work in enumerate(works):
        expected, header = works[0]["header"], work["header"]
        names = sorted(name for name in expected.keys() | header.keys() if expected.get(name) != header.get(name))
        if names:
            pairs = [
                f"{name} {truncate_repr(expected.get(name))} and {truncate_repr(header.get(name))}" for name in names
            ]
            raise InputError(
                f"`generate`: expected the same work on all hosts, got on hosts 0 and {process}: {join_items(pairs, 4)}. Start "
                "the same command on every host, with model and prompts on shared storage, on gs:// or in equal copies."
            )
    has = np.stack([_from_hex(work["finished"], num_prompts) for work in works])
    missing = np.flatnonzero(~has.any(axis=0))
    owners = has.argmax(axis=0).astype(np.int32)
    owners[missing] = np.arange(len(missing)) % len(works)
    return owners


def _work(header: dict[str, Any], finished: dict[int, list[int]], num_prompts: int) -> bytes:
    """What a process works on, and one bit for each prompt: whether the process has its answer."""
    mask = np.zeros(num_prompts, bool)
    mask[list(finished)] = True
    return json.dumps({"header": header, "finished": np.packbits(mask).tobytes().hex()}).encode()


def _from_hex(text: str, num_prompts: int) -> np.ndarray:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=num_prompts)
    return bits.astype(bool)


def _journal_path(output: str, process: int) -> str:
    return f"{output}.part-{process}" if process else f"{output}.part"


def _left_over(output: str) -> list[int]:
    """Processes beyond the present number that have left a journal beside the output."""
    path = open_path(output)
    names = (re.fullmatch(rf"{re.escape(path.name)}\.part-([1-9]\d*)", name) for name in list_names(path.parent))
    return sorted(number for name in names if name and (number := int(name[1])) >= jax.process_count())


def _line_error(num_prompts: int, line: dict[str, Any]) -> str:
    """Why a line of the journal is invalid; empty if it is valid."""
    index, tokens = line.get("index"), line.get("tokens")
    valid_tokens = isinstance(tokens, list) and all(type(token) is int and 0 <= token < 2**31 for token in tokens)
    if type(index) is int and 0 <= index < num_prompts and valid_tokens:
        return ""
    return f"expected an `index` below {num_prompts:,} and a list of token ids in `tokens`, got {truncate_repr(line)}"
