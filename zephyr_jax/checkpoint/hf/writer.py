"""Safetensors files written one tensor at a time, so that no more than one tensor is ever held in host memory.

The safetensors package writes only from whole dicts of arrays. The format is its specification's: 8 bytes of header
length (little endian), a JSON header padded with spaces, then the tensors' bytes in header order.
"""

import json
import math
from collections.abc import Callable

import numpy as np

from zephyr_jax.storage.files import Path, atomic_file, write_atomic, write_chunked

type Piece = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]
"""Tensor name, sizes, and the function that brings its value."""

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_safetensors(folder: Path, pieces: list[Piece], kind: np.dtype, limit: int) -> None:
    """Write `pieces` in order into files of at most `limit` bytes (one tensor at least), with an index if several."""
    files = _divide(pieces, kind.itemsize, limit)
    names = [_file_name(number, len(files)) for number in range(1, len(files) + 1)]
    for name, part in zip(names, files, strict=True):
        _write_file(folder / name, part, kind)
    if len(files) > 1:
        total = sum(math.prod(sizes) for _, sizes, _ in pieces) * kind.itemsize
        weight_map = {piece[0]: name for name, part in zip(names, files, strict=True) for piece in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomic(folder / "model.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")


def _divide(pieces: list[Piece], item: int, limit: int) -> list[list[Piece]]:
    files: list[list[Piece]] = [[]]
    used = 0
    for piece in pieces:
        size = math.prod(piece[1]) * item
        if files[-1] and used + size > limit:
            files.append([])
            used = 0
        files[-1].append(piece)
        used += size
    return files


def _file_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_file(path: Path, part: list[Piece], kind: np.dtype) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, sizes, _ in part:
        end = offset + math.prod(sizes) * kind.itemsize
        header[name] = {"dtype": _NAMES[kind.name], "shape": list(sizes), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, bring in part:
            write_chunked(file, np.ascontiguousarray(bring()).reshape(-1).view(np.uint8).data)
