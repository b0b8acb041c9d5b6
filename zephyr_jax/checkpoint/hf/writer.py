"""Safetensors files written one tensor at a time, with at most one tensor in host memory.

The safetensors package writes only complete dicts of arrays. Format: 8 bytes of header length (little endian), a JSON header
padded with spaces, then the bytes of the tensors in the order of the header.
"""

import json
import math
from collections.abc import Callable

import numpy as np

from zephyr_jax.storage.files import Path, atomic_file, write_atomic, write_chunked

type TensorSource = tuple[str, tuple[int, ...], Callable[[], np.ndarray]]
"""Tensor name, sizes, and the function that returns its value."""

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_safetensors(
    folder: Path, sources: list[TensorSource], kind: np.dtype, limit: int | None, stem: str = "model"
) -> None:
    """Write safetensors files, and an index where there are several.

    Args:
        folder: Where to write.
        sources: The tensors, in order.
        kind: Dtype of all of them.
        limit: Bytes per file, except for a single tensor that is larger; None for one file.
        stem: Of the files' names.
    """
    files = _divide(sources, kind.itemsize, limit)
    names = [_file_name(stem, number, len(files)) for number in range(1, len(files) + 1)]
    for name, part in zip(names, files, strict=True):
        _write_file(folder / name, part, kind)
    if len(files) > 1:
        total = sum(math.prod(sizes) for _, sizes, _ in sources) * kind.itemsize
        weight_map = {source[0]: name for name, part in zip(names, files, strict=True) for source in part}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_atomic(folder / f"{stem}.safetensors.index.json", json.dumps(index, indent=2, sort_keys=True) + "\n")


def _divide(sources: list[TensorSource], itemsize: int, limit: int | None) -> list[list[TensorSource]]:
    files: list[list[TensorSource]] = [[]]
    used = 0
    for source in sources:
        size = math.prod(source[1]) * itemsize
        if files[-1] and limit is not None and used + size > limit:
            files.append([])
            used = 0
        files[-1].append(source)
        used += size
    return files


def _file_name(stem: str, number: int, count: int) -> str:
    return f"{stem}.safetensors" if count == 1 else f"{stem}-{number:05d}-of-{count:05d}.safetensors"


def _write_file(path: Path, part: list[TensorSource], kind: np.dtype) -> None:
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
        for _, _, read in part:
            write_chunked(file, np.ascontiguousarray(read()).reshape(-1).view(np.uint8).data)
