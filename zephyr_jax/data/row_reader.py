"""Rows of one file, one at a time: JSON (lines or one list), CSV, TSV, Parquet, Arrow or plain text, compressed or not.

Every value keeps the type that its file gives it: nothing is inferred from other rows or files, so a string that looks
like a date stays a string, an integer keeps all its digits, and a column may change its type from row to row.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.data.json_values import JsonValues
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.storage.strict_json import parse_json

_BATCH = 256  # rows that are converted from Arrow at one time
_EXCERPT = 200  # characters of a bad row
_BOM = b"\xef\xbb\xbf"
_LFS = b"version https://git-lfs.github.com/spec/"
_WIDE = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_BINARY = {b"PAR1": "Parquet", b"ARROW1": "Arrow"}
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz"}


class SourceRow(NamedTuple):
    """A row of a file, or why it cannot be parsed."""

    location: str
    """File and line or row: `chats.jsonl line 12`."""
    content: dict[str, Any]
    problem: str = ""
    """Why the content is missing; empty otherwise. Equal for rows with the same fault."""
    excerpt: str = ""
    """The beginning of what is there instead."""

    def require(self) -> dict[str, Any]:
        """The content. Raises SkippedRow for a row without one."""
        if self.problem:
            raise SkippedRow(self.problem, self.excerpt)
        return self.content


@dataclass
class Columns:
    """Which columns a reader keeps, and which ones it met."""

    wanted: Collection[str] | None = None
    """None: all."""
    fields: dict[str, set[str]] = field(default_factory=dict)
    """Every column that was met, with the field names of the messages in it."""

    def keep(self, content: dict[str, Any]) -> dict[str, Any]:
        """The wanted part of a row; all of its columns are noted."""
        for name, value in content.items():
            names = self.fields.setdefault(str(name), set())
            for message in value if isinstance(value, list) else ():
                if isinstance(message, dict):
                    names.update(message)
        return content if self.wanted is None else {n: value for n, value in content.items() if n in self.wanted}

    def select(self, names: Iterable[str]) -> list[str]:
        """The wanted ones of a table's columns; all are noted."""
        columns = list(names)
        for name in columns:
            self.fields.setdefault(name, set())
        return [name for name in columns if self.wanted is None or name in self.wanted]


def suffix_of(name: str) -> str:
    """The suffix of a file name that selects its reader, without that of the compression: `.jsonl` of `A.JSONL.gz`."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in _OPENERS else path.suffix


def check_suffix(name: str, allowed: Collection[str]) -> None:
    """Raise InputError for a file whose suffix is not one of those that are allowed."""
    if suffix_of(name) not in allowed:
        raise InputError(
            f"{name} ends in `{PurePath(name).suffix}`; rows are read from {join_items(allowed)} files, which may be compressed "
            f"({join_items(_OPENERS)}). Write it as one of these, or rename it."
        )


def read_file(local: Path, name: str, columns: Columns) -> Iterator[SourceRow]:
    """Rows of a file.

    Args:
        local: The file on this machine.
        name: What messages call it; its suffix selects the reader.
        columns: Which columns are kept; what is met is added to it.

    Raises:
        InputError: The suffix is unknown, or the file as a whole is not what its suffix promises.
    """
    check_suffix(name, SUFFIXES)
    suffix = suffix_of(name)
    try:
        yield from _READERS[suffix](_open(local, name, suffix), name, columns)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} cannot be read as {_TITLES.get(suffix, suffix[1:].upper())}: {reason}. Copy it again or write it again."
        ) from error


def _open(local: Path, name: str, suffix: str) -> Callable[[], BinaryIO]:
    """Opens a file's content. Raises InputError for a git-LFS pointer, another encoding, or another kind of file."""
    with local.open("rb") as file:
        raw = file.read(len(_LFS))
    if raw == _LFS:
        raise InputError(
            f"{name} is a git-LFS pointer, not the data. Fetch the data with `git lfs install && git lfs pull` in its repository."
        )
    named = PurePath(name.lower()).suffix
    packed = next((ending for magic, ending in _MAGIC.items() if raw.startswith(magic)), None)
    if named in _OPENERS and packed != named and raw:
        raise InputError(
            f"{name} ends in `{named}` but its content is not compressed that way. Rename it, or write it again."
        )
    if packed and suffix in (".parquet", ".arrow"):
        raise InputError(f"{name} is a compressed {_TITLES[suffix]} file. Decompress it first.")

    def open_content() -> BinaryIO:
        return _OPENERS[packed](local) if packed else local.open("rb")

    with open_content() as content:
        _check_head(content.read(8), name, suffix)
    return open_content


def _check_head(head: bytes, name: str, suffix: str) -> None:
    binary = next((kind for magic, kind in _BINARY.items() if head.startswith(magic)), None)
    if suffix in (".parquet", ".arrow"):
        return
    if binary:
        raise InputError(f"{name} is a {binary} file by its content. Give it a name that ends in `.{binary.lower()}`.")
    if head.startswith(_WIDE) or (len(head) > 3 and not head[0]) != (len(head) > 3 and not head[1]):
        raise InputError(
            f"{name} is UTF-16 or UTF-32; expected UTF-8. Write it again, for example with "
            f"`iconv -f UTF-16 -t UTF-8 {PurePath(name).name} > new{suffix}`."
        )


# ---- JSON ----


def _json(opened: Callable[[], BinaryIO], name: str, columns: Columns) -> Iterator[SourceRow]:
    with opened() as file:
        start = _first_character(file)
        line = file.readline() if start == b"{" and suffix_of(name) == ".json" else b""
    if start == b"[" or (line and not _is_json(start + line)):
        yield from _json_values(opened, name, columns)
    else:
        yield from (_object(row, columns) for row in _lines(opened, name))


def _first_character(file: BinaryIO) -> bytes:
    character = file.read(1)
    while character and character in b" \t\r\n" + _BOM:
        character = file.read(1)
    return character


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _json_values(opened: Callable[[], BinaryIO], name: str, columns: Columns) -> Iterator[SourceRow]:
    with opened() as file:
        number = 0
        try:
            for number, content in enumerate(JsonValues(file)):
                yield _row(f"{name} row {number}", content, columns)
        except ValueError as error:
            raise InputError(
                f"{name} is not a JSON list or object: {error}, at or after row {number}. Write it again, or one object a "
                "line as .jsonl."
            ) from error


def _lines(opened: Callable[[], BinaryIO], name: str) -> Iterator[tuple[str, bytes]]:
    """(location, bytes) of each line that is not blank."""
    with opened() as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(_BOM) if number == 1 else line
            if line.strip():
                yield f"{name} line {number}", line.rstrip(b"\r\n")


def _object(row: tuple[str, bytes], columns: Columns) -> SourceRow:
    location, line = row
    try:
        content = parse_json(line)
    except ValueError as error:
        return SourceRow(location, {}, "the line is not JSON", f"{error}: {line[:_EXCERPT].decode(errors='replace')}")
    return _row(location, content, columns)


def _row(location: str, content: Any, columns: Columns) -> SourceRow:
    if isinstance(content, dict):
        return SourceRow(location, columns.keep(content))
    return SourceRow(location, {}, "it is not an object", repr(content)[:_EXCERPT])


# ---- text, CSV ----


def _text(opened: Callable[[], BinaryIO], name: str, columns: Columns) -> Iterator[SourceRow]:
    for location, line in _lines(opened, name):
        yield SourceRow(location, columns.keep({"text": line.decode(errors="surrogateescape")}))


def _csv(opened: Callable[[], BinaryIO], name: str, columns: Columns) -> Iterator[SourceRow]:
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if suffix_of(name) == ".tsv" else ","
    with io.TextIOWrapper(opened(), encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        names = reader.fieldnames or []
        if len(set(names)) < len(names):
            twice = sorted({column for column in names if names.count(column) > 1})
            raise InputError(f"{name} names the column {join_items(twice)} twice. Rename one.")
        for number, content in enumerate(reader):
            yield _cells(f"{name} row {number}", dict(content), columns)


def _cells(location: str, content: dict[Any, Any], columns: Columns) -> SourceRow:
    if content.pop(None, None) is not None:
        return SourceRow(location, {}, "it has more cells than the header", repr(content)[:_EXCERPT])
    try:
        "".join(cell for cell in content.values() if cell).encode()
    except UnicodeEncodeError:
        return SourceRow(location, {}, "it holds text that is not UTF-8", repr(content)[:_EXCERPT])
    return SourceRow(location, columns.keep(content))


# ---- Arrow ----


def _parquet(opened: Callable[[], BinaryIO], name: str, columns: Columns) -> Iterator[SourceRow]:
    with opened() as content, pq.ParquetFile(content) as file:
        names = columns.select(file.schema_arrow.names)
        dotted = any("." in column for column in names)  # a dot selects a field of a column here
        batches = file.iter_batches(_BATCH, columns=None if dotted else names)
        yield from _records((batch.select(names) for batch in batches), name, columns)


def _arrow(opened: Callable[[], BinaryIO], name: str, columns: Columns) -> Iterator[SourceRow]:
    with opened() as content:
        batches = _ipc_batches(content)
        yield from _records((batch.select(columns.select(batch.schema.names)) for batch in batches), name, columns)


def _ipc_batches(content: BinaryIO) -> Iterator[pa.RecordBatch]:
    """Batches of an Arrow file, or of the stream that `datasets` writes under the same suffix."""
    stored = content.read(6) == b"ARROW1"
    content.seek(0)
    reader = pa.ipc.open_file(content) if stored else pa.ipc.open_stream(content)
    batches = (reader.get_batch(index) for index in range(reader.num_record_batches)) if stored else reader
    for batch in batches:
        batch.validate(full=True)
        yield batch


def dataset_rows(rows: Dataset, name: str, columns: Columns) -> Iterator[SourceRow]:
    """Rows of an opened data set; `name` is what messages call it."""
    names = columns.select(rows.column_names)
    batches = (batch for table in rows.with_format("arrow").iter(_BATCH) for batch in table.select(names).to_batches())
    yield from _records(batches, name, columns)


def _records(batches: Iterable[pa.RecordBatch], name: str, columns: Columns) -> Iterator[SourceRow]:
    start = 0
    for batch in batches:
        for number in range(0, len(batch), _BATCH):
            part = batch.slice(number, _BATCH)
            yield from _python_rows(part, name, start, columns)
            start += len(part)


def _python_rows(batch: pa.RecordBatch, name: str, start: int, columns: Columns) -> Iterator[SourceRow]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if len(batch) == 1:
            where = _undecodable(batch)
            yield SourceRow(
                f"{name} row {start}", {}, f"{where} holds text that is not UTF-8", repr(error.object)[:_EXCERPT]
            )
            return
        for number in range(len(batch)):
            yield from _python_rows(batch.slice(number, 1), name, start + number, columns)
        return
    for number, row in enumerate(rows):
        content = {column: _without_nulls(value) for column, value in row.items()}
        yield SourceRow(f"{name} row {start + number}", columns.keep(content))


def _undecodable(batch: pa.RecordBatch) -> str:
    for column in batch.schema.names:
        try:
            batch.column(column).to_pylist()
        except UnicodeDecodeError:
            return f"its column `{column}`"
    return "it"


def _without_nulls(value: Any) -> Any:
    """A value without the fields that are null: in Arrow every struct of a column has the fields of all of them."""
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return value


def _open_zstd(local: Path) -> BinaryIO:
    return io.BufferedReader(pa.CompressedInputStream(pa.OSFile(str(local)), "zstd"))


_OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".zst": _open_zstd, ".bz2": bz2.open, ".xz": lzma.open}
_READERS: dict[str, Callable[[Callable[[], BinaryIO], str, Columns], Iterator[SourceRow]]] = {
    ".jsonl": _json,
    ".json": _json,
    ".parquet": _parquet,
    ".ndjson": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".arrow": _arrow,
    ".txt": _text,
}
_TITLES = {".parquet": "Parquet", ".arrow": "Arrow", ".jsonl": "JSON lines", ".ndjson": "JSON lines"}
SUFFIXES: Collection[str] = tuple(_READERS)
"""Suffixes of files with rows; `.txt` holds one text a line, for test sets."""
