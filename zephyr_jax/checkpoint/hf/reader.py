"""Safetensors files read by ranges of rows, from disk or Cloud Storage, with little host memory.

The safetensors package maps complete files, and only from disk. Format: 8 bytes of header length (little endian), a JSON header,
then the bytes of the tensors.
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
"""A block of a tensor (one slice per axis) and the float32 array of that shape to copy it into."""

KINDS: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors package
_LFS_POINTER = b"version https://git-lfs"
_READ_BYTES = 4 * 2**20  # of one read
_READ_AHEAD = 6  # concurrent reads


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    kind: str
    """Dtype in the header, for example BF16."""
    sizes: tuple[int, ...]
    start: int
    """First byte in the file; `stop` is the one after the last."""
    stop: int


class TensorFile:
    """One safetensors file: its header, and rows of its tensors. Raises InputError for a missing or damaged file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            length, self._read = _remote(path) if is_remote(path) else self._local(path)
        except OSError as error:
            raise InputError(_damaged(path, error.strerror or "no such file")) from error
        self.entries = _header(path, length, self._read)

    def _local(self, path: Path) -> tuple[int, "_Read"]:
        check_regular(path)
        file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, file)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EISDIR, "not a regular file")

        def read(start: int, stop: int) -> bytes:
            return _complete(path, os.pread(file, stop - start, start), stop - start)

        return os.fstat(file).st_size, read

    def pieces(self, name: str) -> Iterator[np.ndarray]:
        """All values of a tensor in order, as float32 [n]; n depends on the number of values only, not on the dtype."""
        entry = self.entries[name]
        kind, count, step = _kind_of(self.path, name, entry), math.prod(entry.sizes), _READ_BYTES // 8
        with slow_io_warning(self.path, "reading"):
            for start in range(0, count, step):
                stop = min(start + step, count)
                data = self._read(entry.start + start * kind.itemsize, entry.start + stop * kind.itemsize)
                yield np.frombuffer(data, kind).astype(np.float32)

    def fill(self, name: str, targets: list[Target], pool: ThreadPoolExecutor) -> None:
        """Copy blocks of a tensor into their arrays; every row that a block needs is read once."""
        entry = self.entries[name]
        kind = _kind_of(self.path, name, entry)
        row = math.prod(entry.sizes[1:])
        spans = _row_ranges([index[0] for index, _ in targets], max(1, _READ_BYTES // max(row * kind.itemsize, 1)))

        def read(start: int, stop: int) -> np.ndarray:
            first = entry.start + start * row * kind.itemsize
            data = self._read(first, first + (stop - start) * row * kind.itemsize)
            return np.frombuffer(data, kind).reshape(stop - start, *entry.sizes[1:])

        with slow_io_warning(self.path, "reading"):
            for (start, stop), rows in _read_ahead(pool, read, spans):
                for (block, *rest), target in targets:
                    first, last = max(start, block.start), min(stop, block.stop)
                    if first < last:
                        part = rows[(slice(first - start, last - start), *rest)]
                        target[first - block.start : last - block.start] = part


def _kind_of(path: Path, name: str, entry: Entry) -> np.dtype:
    kind = KINDS.get(entry.kind)
    if kind is None:
        raise InputError(
            f"Unsupported dtype of tensor {name} in {path}: expected one of {join_items(KINDS)}, got {entry.kind}. Choose a "
            "checkpoint that is not quantized, or convert it."
        )
    return kind


def _row_ranges(blocks: list[slice], rows: int) -> list[tuple[int, int]]:
    """The union of ranges of rows, split into ranges of at most `rows`."""
    spans: list[list[int]] = []
    for start, stop in sorted({(block.start, block.stop) for block in blocks}):
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], stop)
        else:
            spans.append([start, stop])
    return [(at, min(at + rows, stop)) for start, stop in spans for at in range(start, stop, rows)]


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[int, int], np.ndarray], spans: list[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    waiting: deque[tuple[tuple[int, int], Future[np.ndarray]]] = deque()
    for span in spans:
        waiting.append((span, pool.submit(read, *span)))
        if len(waiting) == _READ_AHEAD:
            ready, rows = waiting.popleft()
            yield ready, rows.result()
    for ready, rows in waiting:
        yield ready, rows.result()


def new_pool() -> ThreadPoolExecutor:
    """Threads for concurrent reads."""
    return ThreadPoolExecutor(_READ_AHEAD, "safetensors")


type _Read = Callable[[int, int], bytes]


def _remote(path: Path) -> tuple[int, _Read]:
    with slow_io_warning(path, "opening"):
        length = int(client().info(os.fspath(path))["size"])

    def read(start: int, stop: int) -> bytes:
        return _complete(path, client().cat_file(os.fspath(path), start, stop) if stop > start else b"", stop - start)

    return length, read


def _complete(path: Path, data: bytes, expected: int) -> bytes:
    if len(data) != expected:
        raise InputError(_damaged(path, f"expected {expected} bytes, got {len(data)}"))
    return data


def _header(path: Path, length: int, read: _Read) -> dict[str, Entry]:
    if length < 8:
        raise InputError(_damaged(path, f"expected at least 8 bytes, got {length}"))
    first = read(0, 8)
    if _LFS_POINTER.startswith(first):
        raise InputError(
            f"Could not read {path} as safetensors: it is a Git LFS pointer of {length} bytes, not the weights. Run "
            "`git lfs pull` in that folder, or copy it again."
        )
    size = int.from_bytes(first, "little")
    if size > min(length - 8, _MAX_HEADER):
        raise InputError(_damaged(path, f"header of {size} bytes in a file of {length}"))
    try:
        content = parse_json(read(8, 8 + size))
    except ValueError as error:
        raise InputError(_damaged(path, f"the header is not JSON: {' '.join(str(error).split())[:100]}")) from error
    if not isinstance(content, dict):
        raise InputError(_damaged(path, f"expected an object as header, got a {type(content).__name__}"))
    entries = {name: _entry(path, name, value, 8 + size) for name, value in content.items() if name != "__metadata__"}
    _check_cover(path, entries, 8 + size, length)
    return entries


def _check_cover(path: Path, entries: dict[str, Entry], base: int, length: int) -> None:
    """Raise InputError unless the tensors cover all bytes from the header to the end of the file, each byte once."""
    end, previous = base, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.stop > length:
            raise InputError(_damaged(path, f"tensor {name[:80]} ends at byte {entry.stop} of a file of {length}"))
        if entry.start != end:
            raise InputError(
                _damaged(path, f"expected tensor {name[:80]} at byte {end}, behind {previous}, got {entry.start}")
            )
        end, previous = entry.stop, f"tensor {name[:80]}"
    if end != length:
        raise InputError(_damaged(path, f"{previous} ends at byte {end} of a file of {length}"))


def _entry(path: Path, name: str, value: Any, base: int) -> Entry:
    fields: dict[str, Any] = value if isinstance(value, dict) else {}
    kind, sizes, offsets = fields.get("dtype"), _numbers(fields.get("shape")), _numbers(fields.get("data_offsets"))
    if not isinstance(kind, str) or sizes is None or offsets is None or len(offsets) != 2:
        raise InputError(
            _damaged(
                path, f"expected dtype, shape and data_offsets of tensor {name[:80]}, got {truncate_repr(str(value))}"
            )
        )
    entry = Entry(kind, tuple(sizes), base + offsets[0], base + offsets[1])
    known = KINDS.get(kind)
    if entry.stop < entry.start or (known and entry.stop - entry.start != math.prod(sizes) * known.itemsize):
        span = f"bytes {offsets[0]} to {offsets[1]}"
        raise InputError(
            _damaged(path, f"tensor {name[:80]} of sizes {truncate_repr(list(sizes))} in {kind} does not fit {span}")
        )
    return entry


def _numbers(value: Any) -> list[int] | None:
    valid = isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)
    return value if valid else None


def _damaged(path: Path, reason: str) -> str:
    return f"Could not read {path} as safetensors: {reason}. It is missing, incomplete or damaged: copy it again."
