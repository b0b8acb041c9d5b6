"""Content keys: cache keys of files, taken from their bytes and never from sizes or dates."""

import os
import pathlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import xxhash

from zephyr_jax.storage.cloud import client, is_remote, slow_io_warning

_CHUNK = 256 * 2**20  # bytes that one thread hashes
_READ = 2**20  # bytes of one read
_THREADS = 8

type _Piece = tuple[str, int, int]
"""(file, first byte, number of bytes)"""


def content_key(paths: Iterable[str | os.PathLike[str]]) -> str:
    """A key of the content of files and folders.

    Equal content gives an equal key wherever it is stored; a replaced file gives another key even where its size and
    modification time are those of the old one. Local files are hashed with XXH3, which is as fast as memory; `gs://`
    objects are not read: their generation changes with every write.

    Args:
        paths: Files or folders, in an order that counts. A folder counts with all files in it and their relative names,
            except hidden ones. The names of the given files and folders do not count.

    Returns:
        32 hexadecimal digits.

    Raises:
        OSError: A file cannot be read.
    """
    entries = [entry for path in paths for entry in _entries(os.fspath(path).removeprefix("file://"))]
    pieces = [piece for _, version, size, path in entries if not version for piece in _pieces(path, size)]
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_hash_piece, pieces))
    combined = xxhash.xxh3_128()
    for name, version, size, _ in entries:
        combined.update(f"{name}\0{version}\0{size}\0".encode(errors="surrogateescape"))
    for digest in digests:
        combined.update(digest)
    return combined.hexdigest()


def _entries(path: str) -> list[tuple[str, str, int, str]]:
    """(hashed name, generation of a `gs://` object or "", bytes, path) of a file, or of every file in a folder."""
    if is_remote(path):
        with slow_io_warning(path, "looking at"):
            objects = client().find(path, detail=True)
        prefix = path.removeprefix("gs://").rstrip("/")
        return [
            (name.removeprefix(prefix), str(info["generation"]), int(info["size"]), f"gs://{name}")
            for name, info in sorted(objects.items())
        ]
    local = pathlib.Path(path)
    if not local.is_dir():
        return [("", "", local.stat().st_size, path)]
    named = [(file.relative_to(local), file) for file in sorted(local.rglob("*")) if file.is_file()]
    return [
        (name.as_posix(), "", file.stat().st_size, os.fspath(file))
        for name, file in named
        if not any(part.startswith(".") for part in name.parts)
    ]


def _pieces(path: str, size: int) -> list[_Piece]:
    return [(path, start, min(_CHUNK, size - start)) for start in range(0, max(size, 1), _CHUNK)]


def _hash_piece(piece: _Piece) -> bytes:
    path, start, remaining = piece
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(min(_READ, max(remaining, 1))))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while remaining and (count := file.readinto(buffer[: min(remaining, len(buffer))])):
            digest.update(buffer[:count])
            remaining -= count
    return digest.digest()
