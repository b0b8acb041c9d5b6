"""A part of a reference table: one Parquet file of entries that holds a digest of itself. Never imports jax.

The digest covers the whole file, footer and all, with zeros where the digest itself stands. So no byte can change unseen.
Parts from before there were digests have none; they are read as they are (most have checksums of their pages), and
`zephyr-jax reference gc` gives them one when it merges them.
"""

import io
from binascii import hexlify
from hashlib import blake2b

import numpy as np
import pyarrow
import pyarrow.parquet

from zephyr_jax.errors import InputError
from zephyr_jax.reference.index import Entries, codes_from, merged
from zephyr_jax.storage.files import Path

_COLUMNS = {"key": pyarrow.string(), "sum": pyarrow.float32(), "count": pyarrow.int32()}
_MARK = b"<zephyr-jax digest>"  # before and after the digest: one flipped byte cannot make it look absent
_UNSET = _MARK + b"0" * 32 + _MARK
_ROWS = 2**16  # entries that are converted together
PREFIX, SUFFIX = "part-", ".parquet"


def packed(entries: Entries) -> bytes:
    """The bytes of a part."""
    ends = pyarrow.py_buffer(np.arange(len(entries) + 1, dtype=np.int32) * 32)
    digits = pyarrow.py_buffer(hexlify(np.ascontiguousarray(entries.codes)))
    numbers = [pyarrow.py_buffer(np.ascontiguousarray(column)) for column in (entries.sums, entries.counts)]
    columns = [
        pyarrow.Array.from_buffers(kind, len(entries), [None, *buffers])
        for kind, buffers in zip(_COLUMNS.values(), ([ends, digits], *([each] for each in numbers)), strict=True)
    ]  # pyarrow imports pandas when it is given arrays, or asked for some
    schema, file = pyarrow.schema(_COLUMNS.items()), io.BytesIO()
    with pyarrow.parquet.ParquetWriter(
        file, schema, write_page_checksum=True, store_schema=False, compression="zstd", use_dictionary=["count"]
    ) as writer:
        writer.write_table(pyarrow.table(columns, schema=schema), row_group_size=_ROWS)
        writer.add_key_value_metadata({"zephyr_jax": _UNSET.decode()})
    raw = file.getvalue()
    return raw.replace(_UNSET, _MARK + _digest(raw) + _MARK)


def has_digest(raw: bytes) -> bool:
    """Whether a part's bytes hold a digest, right or wrong."""
    return _MARK in raw


def read_part(path: Path, command: str = "zephyr-jax reference") -> Entries:
    """The entries of one file. Raises InputError, with `command` to make it anew, unless it is as it was written."""
    try:
        return unpacked(path.read_bytes())
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise InputError(
            f"The reference table's file {path} cannot be read: {str(error)[:300]}. Delete that file and run "
            f"`{command}` again: only its entries are computed anew."
        ) from error


def unpacked(raw: bytes) -> Entries:
    """The entries in a part's bytes. Raises ValueError, OSError or ArrowException for a damaged one."""
    if has_digest(raw):
        _check_digest(raw)
    file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(raw), page_checksum_verification=True)
    schema = file.schema_arrow
    if any(schema.names.count(name) != 1 or schema.field(name).type != kind for name, kind in _COLUMNS.items()):
        raise ValueError(f"its columns are {' '.join(str(schema.remove_metadata()).split())[:200]}")
    batches = file.iter_batches(_ROWS, columns=list(_COLUMNS), use_threads=False)
    return merged([_entries(batch) for batch in batches])


def _check_digest(raw: bytes) -> None:
    before, *rest = raw.split(_MARK)
    if len(rest) != 2 or len(rest[0]) != 32:
        raise ValueError("the place of its digest is damaged")
    found = _digest(before, _UNSET, rest[1])
    if found != rest[0]:
        raise ValueError(f"its digest is {found.decode()} and should be {rest[0].decode(errors='replace')}")


def _digest(*pieces: bytes) -> bytes:
    digest = blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest().encode()


def _entries(batch: pyarrow.RecordBatch) -> Entries:
    empty = [name for name in _COLUMNS if batch.column(name).null_count]
    if empty:
        raise ValueError(f"its column {empty[0]} has entries without a value")
    keys, sums, counts = (batch.column(name) for name in _COLUMNS)
    if not len(keys):
        return Entries()
    ends = np.frombuffer(keys.buffers()[1], np.int32)[keys.offset : keys.offset + len(keys) + 1]
    if (np.diff(ends) != 32).any():
        raise ValueError("a key has other than 32 digits")
    codes = codes_from(memoryview(keys.buffers()[2])[ends[0] : ends[-1]])
    return Entries(codes, _numbers(sums, np.float32), _numbers(counts, np.int32))


def _numbers(column: pyarrow.Array, kind: type[np.generic]) -> np.ndarray:
    return np.frombuffer(column.buffers()[1], kind)[column.offset : column.offset + len(column)]
