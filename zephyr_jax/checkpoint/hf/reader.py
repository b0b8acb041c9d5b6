"""Safetensors files read by ranges of rows, from disk or from Cloud Storage, so that little is ever held in host memory.

The safetensors package maps whole files, and only from disk. The format is its specification's: 8 bytes of header length
(little endian), a JSON header, then the tensors' bytes.
"""

import errno
import math
import os
import stat
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.storage.cloud import client, is_remote, slow_io_warning
from zephyr_jax.storage.files import Path, check_regular
from zephyr_jax.storage.strict_json import parse_json

type Target = tuple[tuple[slice, ...], np.ndarray]
"""A block of a tensor (one slice an axis) and the float32 array of that shape which it goes into."""

KINDS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors package refuses longer ones too
_POINTER = b"version https://git-lfs"
_PIECE = 4 * 2**20  # bytes of one read
_AHEAD = 6  # pieces that are on their way at once


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    kind: str
    """Its dtype, as the header spells it."""
    sizes: tuple[int, ...]
    start: int
    """Where its bytes begin in the file."""
    stop: int


class TensorFile:
    """One safetensors file: its header, and rows of its tensors. Raises InputError when it is missing or damaged."""

    def __init__(self, path: Path):
        self.path = path
        try:
            length, self._read = _remote(path) if is_remote(path) else self._local(path)
        except OSError as error:
            raise InputError(_damaged(path, error.strerror or "it is not there")) from error
        self.entries = _header(path, length, self._read)

    def _local(self, path: Path) -> tuple[int, "_Read"]:
        check_regular(path)
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EISDIR, "it is no file")

        def read(start: int, stop: int) -> bytes:
            return _complete(path, os.pread(file, stop - start, start), stop - start)

        return os.fstat(file).st_size, read

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """All values of a tensor in order, float32 [n] at a time; the same n for every tensor of as many values."""
        entry = self.entries[name]
        kind, count, most = _kind_of(self.path, name, entry), math.prod(entry.sizes), _PIECE // 8
        with slow_io_warning(self.path, "reading"):
            for start in range(0, count, most):
                stop = min(start + most, count)
                data = self._read(entry.start + start * kind.itemsize, entry.start + stop * kind.itemsize)
                yield np.frombuffer(data, kind).astype(np.float32)

    def fill(self, name: str, targets: list[Target], pool: ThreadPoolExecutor) -> None:
        """Copy blocks of a tensor into their arrays. Every row that some block needs is read once, in pieces."""
        entry = self.entries[name]
        kind = _kind_of(self.path, name, entry)
        row = math.prod(entry.sizes[1:])
        spans = _pieces([index[0] for index, _ in targets], max(1, _PIECE // max(row * kind.itemsize, 1)))

        def read(start: int, stop: int) -> np.ndarray:
            first = entry.start + start * row * kind.itemsize
            data = self._read(first, first + (stop - start) * row * kind.itemsize)
            return np.frombuffer(data, kind).reshape(stop - start, *entry.sizes[1:])

        with slow_io_warning(self.path, "reading"):
            for (start, stop), rows in _ahead(pool, read, spans):
                for (block, *rest), target in targets:
                    first, last = max(start, block.start), min(stop, block.stop)
                    if first < last:
                        part = rows[(slice(first - start, last - start), *rest)]
                        target[first - block.start : last - block.start] = part


def _kind_of(path: Path, name: str, entry: Entry) -> np.dtype:
    kind = KINDS.get(entry.kind)
    if kind is None:
        raise InputError(
            f"Tensor {name} in {path} is of dtype {entry.kind}; weights are read from {join_items(KINDS)}. Take the "
            "checkpoint that is not quantized, or convert it first."
        )
    return kind


def _pieces(blocks: list[slice], rows: int) -> list[tuple[int, int]]:
    """The union of ranges of rows, cut into pieces of at most `rows`."""
    spans: list[list[int]] = []
    for start, stop in sorted({(block.start, block.stop) for block in blocks}):
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], stop)
        else:
            spans.append([start, stop])
    return [(at, min(at + rows, stop)) for start, stop in spans for at in range(start, stop, rows)]


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[int, int], np.ndarray], spans: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    waiting: deque[tuple[tuple[int, int], Future[np.ndarray]]] = deque()
    for span in spans:
        waiting.append((span, pool.submit(read, *span)))
        if len(waiting) == _AHEAD:
            ready, rows = waiting.popleft()
            yield ready, rows.result()
    for ready, rows in waiting:
        yield ready, rows.result()


def new_pool() -> ThreadPoolExecutor:
    """Threads that read ahead."""
    return ThreadPoolExecutor(_AHEAD, "safetensors")


type _Read = Callable[[int, int], bytes]


def _remote(path: Path) -> tuple[int, _Read]:
    with slow_io_warning(path, "opening"):
        length = int(client().info(os.fspath(path))["size"])

    def read(start: int, stop: int) -> bytes:
        return _complete(path, client().cat_file(os.fspath(path), start, stop) if stop > start else b"", stop - start)

    return length, read


def _complete(path: Path, data: bytes, wanted: int) -> bytes:
    if len(data) != wanted:
        raise InputError(_damaged(path, f"{wanted} bytes were asked for and {len(data)} came"))
    return data


def _header(path: Path, length: int, read: _Read) -> dict[str, Entry]:
    if length < 8:
        raise InputError(_damaged(path, f"it has {length} bytes, less than the 8 that say how long its header is"))
    first = read(0, 8)
    if _POINTER.startswith(first):
        raise InputError(
            f"{path} cannot be opened as safetensors: it is a Git LFS pointer of {length} bytes, not the weights. Run "
            "`git lfs pull` in that folder, or copy it again."
        )
    size = int.from_bytes(first, "little")
    if size > min(length - 8, _LONGEST_HEADER):
        raise InputError(_damaged(path, f"its header claims {size} bytes and the file has {length}"))
    try:
        content = parse_json(read(8, 8 + size))
    except ValueError as error:
        raise InputError(_damaged(path, f"its header is no JSON: {' '.join(str(error).split())[:100]}")) from error
    if not isinstance(content, dict):
        raise InputError(_damaged(path, f"its header holds a {type(content).__name__}, not tensors by name"))
    found = {name: _entry(path, name, said, 8 + size) for name, said in content.items() if name != "__metadata__"}
    _check_cover(path, found, 8 + size, length)
    return found


def _check_cover(path: Path, found: dict[str, Entry], base: int, length: int) -> None:
    """Tensors must lie side by side, from the header to the file's end: no byte in two of them, none in none."""
    at, before = base, "the header"
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.stop > length:
            raise InputError(_damaged(path, f"tensor {name[:80]} ends at byte {entry.stop} and the file at {length}"))
        if entry.start != at:
            raise InputError(
                _damaged(path, f"tensor {name[:80]} begins at byte {entry.start} and {before} before it ends at {at}")
            )
        at, before = entry.stop, f"tensor {name[:80]}"
    if at != length:
        raise InputError(_damaged(path, f"{before} ends at byte {at} and the file at {length}"))


def _entry(path: Path, name: str, said: Any, base: int) -> Entry:
    fields: dict[str, Any] = said if isinstance(said, dict) else {}
    kind, sizes, offsets = fields.get("dtype"), _numbers(fields.get("shape")), _numbers(fields.get("data_offsets"))
    if not isinstance(kind, str) or sizes is None or offsets is None or len(offsets) != 2:
        raise InputError(_damaged(path, f"its header says {truncate_repr(str(said))} of tensor {name[:80]}"))
    entry = Entry(kind, tuple(sizes), base + offsets[0], base + offsets[1])
    known = KINDS.get(kind)
    if entry.stop < entry.start or (known and entry.stop - entry.start != math.prod(sizes) * known.itemsize):
        raise InputError(
            _damaged(
                path,
                f"tensor {name[:80]} of sizes {truncate_repr(list(sizes))} in {kind} cannot lie at bytes {offsets[0]} to "
                f"{offsets[1]}",
            )
        )
    return entry


def _numbers(value: Any) -> list[int] | None:
    whole = isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)
    return value if whole else None


def _damaged(path: Path, why: str) -> str:
    return f"{path} cannot be opened as safetensors: {why}. It is missing, cut short or damaged: copy it again."
