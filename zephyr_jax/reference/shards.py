"""Shards of a reference table: Parquet files whose names end in a digest of their bytes. Never imports jax.

A shard is written atomically under its final name, so a killed writer leaves none or a whole one, and any changed byte is found
before the file is parsed.
"""

import io
from hashlib import blake2b

import numpy as np
import pyarrow
import pyarrow.parquet

from zephyr_jax.errors import InputError
from zephyr_jax.reference.index import KEY, LogprobIndex, merge
from zephyr_jax.storage.files import Path, list_names, write_atomic

_SCHEMA = pyarrow.schema({"key": pyarrow.binary(16), "sum": pyarrow.float32(), "count": pyarrow.int32()}.items())
_PREFIX, _SUFFIX = "shard-", ".parquet"


def shard_names(folder: Path) -> list[str]:
    """File names of a table's shards in their order of precedence: of a key in several, the last shard by name wins."""
    return [name for name in list_names(folder) if name.startswith(_PREFIX) and name.endswith(_SUFFIX)]


def write_shard(folder: Path, name: str, index: LogprobIndex) -> str:
    """Write one file atomically; returns its name `shard-NAME-DIGEST.parquet`."""
    content = encode_shard(index)
    file_name = f"{_PREFIX}{name}-{_digest(content)}{_SUFFIX}"
    write_atomic(folder / file_name, content)
    return file_name


def read_shard(path: Path, command: str = "zephyr-jax reference") -> LogprobIndex:
    """Read and verify one file.

    Args:
        path: the file.
        command: command line that computes its entries, for the error.

    Raises:
        InputError: unless it holds the bytes that were written.
    """
    try:
        content = path.read_bytes()
        expected = path.name.removesuffix(_SUFFIX).rpartition("-")[2]
        if _digest(content) != expected:
            raise ValueError(f"expected the digest {expected}, got {_digest(content)}")
        return _decode_shard(content)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(
            f"The reference table's shard {path} cannot be read: {str(error)[:300]}. Delete this file and run `{command}` again: "
            "only its entries are recomputed."
        ) from error


def encode_shard(index: LogprobIndex) -> bytes:
    """The bytes of a shard, the same for the same entries."""
    # built from buffers, because pyarrow imports pandas when it converts from or to NumPy arrays
    columns = [
        pyarrow.Array.from_buffers(kind, len(index), [None, pyarrow.py_buffer(np.ascontiguousarray(column))])
        for kind, column in zip(_SCHEMA.types, (index.keys, index.sums, index.counts), strict=True)
    ]
    file = io.BytesIO()
    table = pyarrow.table(columns, schema=_SCHEMA)
    pyarrow.parquet.write_table(table, file, store_schema=False, compression="zstd", use_dictionary=["count"])
    return file.getvalue()


def _decode_shard(content: bytes) -> LogprobIndex:
    table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).read(use_threads=False)
    if not table.schema.equals(_SCHEMA) or any(column.null_count for column in table.columns):
        raise ValueError(f"expected the columns {_SCHEMA} without nulls, got {table.schema}")
    keys, sums, counts = table.columns
    return merge([LogprobIndex(_array(keys, KEY), _array(sums, np.float32), _array(counts, np.int32))])


def _array(column: pyarrow.ChunkedArray, dtype: np.typing.DTypeLike) -> np.ndarray:
    array = column.combine_chunks()
    if not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=16).hexdigest()
