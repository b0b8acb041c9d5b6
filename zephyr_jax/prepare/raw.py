"""Raw rows, one at a time: files and folders are read as they lie, so that a bad row costs that row and no more."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path as LocalPath
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import InputError, listing
from zephyr_jax.storage.cloud import is_remote, patience
from zephyr_jax.storage.files import Path, cached_copy, check_can_be_read, names_in, open_path
from zephyr_jax.storage.text import parsed

READABLE = (".jsonl", ".json", ".parquet", ".csv", ".txt")
ASIDE = "aside.jsonl"
"""Where the feedback verbs put what cannot be used; in a folder it is no part of the rows."""
_SAVED = {"dataset_dict.json", "state.json"}
_SHOWN = 200  # letters of what is no row


class SetAside(ValueError):
    """One row (or one of its answers) cannot be used: why, in words that many rows share, and what shows it."""

    def __init__(self, reason: str, about: str = ""):
        super().__init__(reason)
        self.reason, self.about = reason, about


@dataclass(frozen=True)
class RawRow:
    """A row as it came, or why there is none at its place."""

    place: str
    """Where it lies, for people: `chats.jsonl line 12`."""
    content: dict[str, Any]
    problem: str = ""
    shown: str = ""
    """What is there instead of content, or its beginning."""

    def need(self) -> dict[str, Any]:
        """The content. Raises SetAside where there is none."""
        if self.problem:
            raise SetAside(self.problem, self.shown)
        return self.content


def raw_rows(path: str, split: str | None = None, revision: str | None = None) -> Iterator[RawRow]:
    """Rows of a file, of every file in a folder (see `passed_over`), of a `save_to_disk` folder or of a hub id.

    Raises InputError when nothing is there, when a file is of no known kind, or when `split` is asked of plain files.
    """
    check_can_be_read(path)
    with patience(path, "reading"):
        place = open_path(path)
        if place.is_dir():
            names = names_in(place)
            files = [] if _SAVED.intersection(names) else [f"{path.rstrip('/')}/{name}" for name in names]
            found = [f"{path.rstrip('/')}/{name}" for name in names if files and _is_read(place, name)]
            if files and not found:
                raise InputError(f"The folder {path} holds no file that ends in {listing(READABLE)}. Name another.")
        else:
            files = found = [path] if place.is_file() else []
    if not files and is_remote(path) and not place.is_dir():
        raise InputError(f"There is nothing at {path}. Check the spelling.")
    if not files:
        yield from _opened(path, split or "train", revision)
        return
    for name, value in (("split", split), ("revision", revision)):
        if value is not None:
            raise InputError(f"`{name}` is {value!r}, and {path} is plain files, all of which are read. Leave it out.")
    for file in found:
        yield from _rows_of(file)


def passed_over(path: str) -> list[str]:
    """What a folder of plain files holds besides those that are read: folders, hidden files, files of other kinds."""
    check_can_be_read(path)
    with patience(path, "reading"):
        place = open_path(path)
        names = names_in(place)
        return [] if _SAVED.intersection(names) else [name for name in names if not _is_read(place, name)]


def _is_read(folder: Path, name: str) -> bool:
    if name[0] == "." or name == ASIDE or PurePosixPath(name).suffix not in READABLE:
        return False
    return is_remote(folder) or (folder / name).is_file()  # a bucket is not asked about each of its files


def _opened(path: str, split: str, revision: str | None) -> Iterator[RawRow]:
    for number, row in enumerate(open_rows(path, split, revision)):
        yield RawRow(f"{path} {split} row {number}", row)


def _rows_of(file: str) -> Iterator[RawRow]:
    name, suffix = PurePosixPath(file).name, PurePosixPath(file).suffix
    if suffix not in READABLE:
        raise InputError(
            f"{file} ends in `{suffix}`; rows are read from {listing(READABLE)} files. Unpack it, write it as one of "
            "these, or rename it."
        )
    local = cached_copy(file)
    if not local.stat().st_size:
        raise InputError(f"{file} is empty: it has no rows. Give a file with at least one, or take it away.")
    if suffix == ".parquet":
        yield from _parquet(local, name)
    elif suffix == ".csv":
        yield from _csv(local, name)
    elif suffix == ".txt":
        yield from (RawRow(row.place, {"text": row.content["line"]}) for row in _lines(local, name))
    elif suffix == ".json" and _is_list(local):
        yield from _list(local, name)
    else:
        yield from (_object(row.place, row.content["line"]) for row in _lines(local, name))


def _lines(local: LocalPath, name: str) -> Iterator[RawRow]:
    with local.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield RawRow(f"{name} line {number}", {"line": line.decode(errors="surrogateescape").rstrip("\r\n")})


def _object(place: str, line: str) -> RawRow:
    try:
        content = parsed(line.encode(errors="surrogateescape"))
    except ValueError as error:
        return RawRow(place, {}, "the line is no JSON", f"{error}: {line[:_SHOWN]}")
    return _row(place, content)


def _row(place: str, content: Any) -> RawRow:
    if isinstance(content, dict):
        return RawRow(place, content)
    return RawRow(place, {}, "it is no object", repr(content)[:_SHOWN])


def _is_list(local: LocalPath) -> bool:
    with local.open("rb") as file:
        return file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _list(local: LocalPath, name: str) -> Iterator[RawRow]:
    try:
        rows = parsed(local.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except ValueError as error:
        raise InputError(
            f"{name} is no JSON list ({error}). Write it again, or one object a line as .jsonl."
        ) from error
    for number, content in enumerate(rows):
        yield _row(f"{name} row {number}", content)


def _csv(local: LocalPath, name: str) -> Iterator[RawRow]:
    with local.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        try:
            for number, content in enumerate(csv.DictReader(file)):
                yield RawRow(f"{name} row {number}", dict(content))
        except csv.Error as error:
            raise InputError(f"{name} cannot be read as CSV: {error}. Write it again.") from error


def _parquet(local: LocalPath, name: str) -> Iterator[RawRow]:
    try:
        number = 0
        with pq.ParquetFile(local) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in range(len(batch)):
                    yield _record(f"{name} row {number}", batch.slice(row, 1))
                    number += 1
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name} cannot be read as Parquet: {reason}. Write it again.") from error


def _record(place: str, batch: pa.RecordBatch) -> RawRow:
    try:
        return RawRow(place, batch.to_pylist()[0])
    except UnicodeDecodeError as error:
        return RawRow(place, {}, "it holds text that is no UTF-8", repr(error.object[:_SHOWN]))
