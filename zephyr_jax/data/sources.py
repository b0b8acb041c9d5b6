"""Where rows come from: local or gs:// files and folders, `save_to_disk` folders, hub ids. The one reader of all commands."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import batched, islice
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from zephyr_jax.data.row_reader import Columns, SourceRow, dataset_rows, read_file, suffix_of
from zephyr_jax.data.rows import COLUMNS
from zephyr_jax.data.source_files import files_in_folder, single_file
from zephyr_jax.errors import InputError, at_revision, join_items, truncate_repr
from zephyr_jax.storage.cloud import is_remote, slow_io_warning
from zephyr_jax.storage.content import content_key
from zephyr_jax.storage.files import (
    atomic_file,
    cached_copy,
    check_readable,
    check_regular,
    write_atomic,
)
from zephyr_jax.storage.suggest import check_hub_id, suggest_path

_VERSION = 1
"""Part of the key of the rows that are kept on disk; a reader that gives other cells has another."""
_BATCH = 512  # rows of one batch of the Arrow file
_ROWS, _FACTS = "rows.arrow", "columns.json"


@dataclass(frozen=True)
class Rows:
    """Rows of one split, mapped into memory."""

    table: Dataset
    """One string column per wanted column that the source has: the JSON text of each value, or null."""
    fields: Mapping[str, Collection[str]]
    """Every column of the source, read or not, with the field names of the messages in it."""
    notes: tuple[str, ...] = ()
    """What the user should know about the choice of files."""

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return decode(self.table[index])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(decode, self.table)

    def values(self, column: str) -> list[Any]:
        """All values of one column."""
        return [None if cell is None else json.loads(cell) for cell in self.table.data.column(column).to_pylist()]


def decode(cells: Mapping[str, str | None]) -> dict[str, Any]:
    """A row from the JSON texts of its values; null and absent columns are left out."""
    return {name: json.loads(cell) for name, cell in cells.items() if cell is not None}


def open_rows(
    path: str, split: str, revision: str | None = None, limit: int | None = None, columns: Collection[str] = COLUMNS
) -> Rows:
    """Rows of one split, kept in an Arrow file whose key is the content of the source.

    Args:
        path: A file, a folder, a `save_to_disk` folder or a hub id; gs:// works too.
        split: The split to read.
        revision: Hub revision.
        limit: Read only the first rows.
        columns: The columns that are read; default: those that a format of rows uses. The types of others do not matter.

    Raises:
        InputError: Nothing is there, the split is unknown, a file is not what its name promises, a row is not an object,
            or the hub (or Cloud Storage) cannot be reached.
    """
    source = _find(path, split, revision)
    wanted = frozenset(columns)
    key = blake2b(repr((_VERSION, source.key(), sorted(wanted), limit)).encode(), digest_size=16).hexdigest()
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "zephyr-jax" / key
    if not (folder / _FACTS).exists():
        met = Columns(wanted)
        folder.mkdir(parents=True, exist_ok=True)
        with slow_io_warning(path, "reading"):
            _write(folder / _ROWS, _strict(islice(source.rows(met), limit)), sorted(wanted))
        fields = {name: sorted(names) for name, names in met.fields.items()}
        write_atomic(folder / _FACTS, json.dumps(fields))
    fields = json.loads((folder / _FACTS).read_text())
    table = Dataset.from_file(str(folder / _ROWS)).select_columns([name for name in fields if name in wanted])
    table._fingerprint = key  # by default it is taken from the date of the file
    return Rows(table, fields, source.notes)


def read_rows(
    path: str, split: str, revision: str | None = None, limit: int | None = None, columns: Columns | None = None
) -> Iterator[SourceRow]:
    """The same rows, one at a time, with Python values as the source has them. Raises InputError as `open_rows` does."""
    source = _find(path, split, revision)
    return _strict(islice(source.rows(columns or Columns()), limit))


def _strict(rows: Iterator[SourceRow]) -> Iterator[SourceRow]:
    for row in rows:
        if row.problem:
            raise InputError(
                f"{row.location} cannot be read: {row.problem} ({truncate_repr(row.excerpt, 200)}). Every row must be one "
                "object; fix or remove the row."
            )
        yield row


# ---- the Arrow file ----


def _write(file: Path, rows: Iterator[SourceRow], names: list[str]) -> None:
    schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
    with atomic_file(file) as out, pyarrow.ipc.new_stream(out, schema) as writer:
        for batch in batched(rows, _BATCH):
            cells = [pyarrow.array([_cell(row, name) for row in batch], pyarrow.string()) for name in names]
            writer.write_batch(pyarrow.record_batch(cells, schema=schema))


def _cell(row: SourceRow, name: str) -> bytes | None:
    """The JSON text of one value as UTF-8; half a surrogate pair stays an escape."""
    value = row.content.get(name)
    if value is None:
        return None
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain).encode()
    except UnicodeEncodeError:
        return json.dumps(value, default=_plain).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{row.location} cannot be read: its column `{name}` holds {truncate_repr(value)} ({error}). Fix it."
        ) from error


def _plain(value: Any) -> Any:
    """Stands for a value that JSON does not have. Bytes are never text; dates and decimals are written as text."""
    return {"bytes": len(value)} if isinstance(value, bytes) else str(value)


# ---- what a path names ----


@dataclass(frozen=True)
class _Source:
    key: Callable[[], str]
    """A key of the content."""
    rows: Callable[[Columns], Iterator[SourceRow]]
    notes: tuple[str, ...] = ()


def _find(path: str, split: str, revision: str | None) -> _Source:
    check_readable(path)
    with slow_io_warning(path, "looking at"):
        return _found(path, split, revision)


def _found(path: str, split: str, revision: str | None) -> _Source:
    try:
        files, folder = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise InputError(f"Cannot read {path}: {error}. Check the path, or install what its protocol needs.") from error
    try:
        if files.isfile(folder):
            chosen = single_file(path, split)
            return _of_files(files, chosen.paths, chosen.notes)
        if files.exists(f"{folder}/dataset_dict.json") or files.exists(f"{folder}/state.json"):
            return _of_dataset(_saved(path, split), f"{path} {split}")
        if files.isdir(folder):
            chosen = files_in_folder(path, files, folder, split)
            return _of_files(files, chosen.paths, chosen.notes)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error}. Check the path and its permissions.") from error
    if is_remote(path):
        raise InputError(f"No such file or folder: {path}. Check the spelling.")
    return _of_dataset(_hub(path, split, revision), f"{path} {split}")


def _of_files(files: fsspec.AbstractFileSystem, paths: tuple[str, ...], notes: tuple[str, ...]) -> _Source:
    """Rows of files. Raises InputError for an empty file where it is the only one."""
    for path in paths:
        check_regular(path.removeprefix("file://"))
    if len(paths) == 1 and not files.size(paths[0]):
        raise InputError(f"{paths[0]} is empty: it has no rows. Give a file with at least one.")
    copies = [_local(path) for path in paths]

    def rows(columns: Columns) -> Iterator[SourceRow]:
        for copy, path in zip(copies, paths, strict=True):
            yield from read_file(copy, path.removeprefix("file://"), columns)

    return _Source(lambda: f"{content_key(copies)} {[suffix_of(path) for path in paths]}", rows, notes)


def _of_dataset(rows: Dataset, name: str) -> _Source:
    def key() -> str:
        cached = [os.fspath(file["filename"]) for file in rows.cache_files]
        return content_key(cached) if cached else str(rows._fingerprint)

    return _Source(key, lambda columns: dataset_rows(rows, name, columns))


def _local(path: str) -> Path:
    return Path(cached_copy(path)) if is_remote(path) else Path(fsspec.core.url_to_fs(path)[1])


def _saved(path: str, split: str) -> Dataset:
    try:
        saved = load_from_disk(path)
        chosen = saved[split] if isinstance(saved, DatasetDict) and split in saved else saved
        if isinstance(chosen, Dataset):
            chosen.data.validate(full=True)
    except IndexError as error:  # what datasets raises for a folder saved without rows
        raise InputError(f"{path} has no rows. Give a file or split with at least one.") from error
    except Exception as error:  # and these are for files of such a folder that are missing or damaged
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} cannot be read as a `save_to_disk` folder: {reason}. Save it again.") from error
    if isinstance(chosen, DatasetDict):
        raise InputError(f"{path} has no split `{split}`; it has {join_items(sorted(chosen))}.")
    return chosen


def _hub(path: str, split: str, revision: str | None) -> Dataset:
    check_hub_id(path, "file or folder")
    try:
        return load_dataset(path, split=split, revision=revision)
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path!r} is not a local file or folder, and split `{split}` cannot be loaded from the hub under that name"
            f"{at_revision(revision)}: {reason}{suggest_path(path)} Check the spelling, the split and the network."
        ) from error
