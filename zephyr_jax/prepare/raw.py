"""Raw rows, one at a time: files and folders are read as they lie, so that a bad row costs that row and no more."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from zephyr_jax.data.row_reader import SUFFIXES, Columns, read_file, suffix_of
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.storage.cloud import is_remote, slow_io_warning
from zephyr_jax.storage.files import Path, cached_copy, check_readable, list_names, open_path

READABLE = tuple(SUFFIXES)
ASIDE = "aside.jsonl"
"""Where the feedback verbs put what cannot be used; in a folder it is no part of the rows."""
_SAVED = {"dataset_dict.json", "state.json"}


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
    check_readable(path)
    with slow_io_warning(path, "reading"):
        place = open_path(path)
        if place.is_dir():
            names = list_names(place)
            files = [] if _SAVED.intersection(names) else [f"{path.rstrip('/')}/{name}" for name in names]
            found = [f"{path.rstrip('/')}/{name}" for name in names if files and _is_read(place, name)]
            if files and not found:
                raise InputError(f"The folder {path} holds no file that ends in {join_items(READABLE)}. Name another.")
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
    check_readable(path)
    with slow_io_warning(path, "reading"):
        place = open_path(path)
        names = list_names(place)
        return [] if _SAVED.intersection(names) else [name for name in names if not _is_read(place, name)]


def _is_read(folder: Path, name: str) -> bool:
    if name[0] == "." or name == ASIDE or suffix_of(name) not in READABLE:
        return False
    return is_remote(folder) or (folder / name).is_file()  # a bucket is not asked about each of its files


def _opened(path: str, split: str, revision: str | None) -> Iterator[RawRow]:
    for row in read_rows(path, split, revision):
        yield RawRow(*row)


def _rows_of(file: str) -> Iterator[RawRow]:
    local = cached_copy(file)
    if not local.stat().st_size:
        raise InputError(f"{file} is empty: it has no rows. Give a file with at least one, or take it away.")
    for row in read_file(local, PurePosixPath(file).name, Columns()):
        yield RawRow(*row)
