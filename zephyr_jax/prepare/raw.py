"""Raw rows, one at a time: a row that cannot be parsed is skipped alone, and every file of a folder is read."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from zephyr_jax.data.row_reader import SUFFIXES, Columns, SourceRow, read_file, suffix_of
from zephyr_jax.data.sources import read_rows
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.storage.cloud import is_remote, slow_io_warning
from zephyr_jax.storage.files import Path, cached_copy, check_readable, list_names, open_path

REJECTED_FILE = "rejected.jsonl"
"""Where `prepare` and `feedback` list what cannot be used, with reasons; never read as rows of a folder."""
_SAVED = {"dataset_dict.json", "state.json"}


def raw_rows(path: str, split: str | None = None, revision: str | None = None) -> Iterator[SourceRow]:
    """Rows of a file, of every file in a folder (but `ignored_names`), of a `save_to_disk` folder or of a hub id.

    Raises:
        InputError: The path does not exist, a file has an unknown suffix, or `split` is given for plain files.
    """
    check_readable(path)
    with slow_io_warning(path, "reading"):
        root = open_path(path)
        names = list_names(root)
        is_file, is_folder = root.is_file(), root.is_dir() and not _SAVED.intersection(names)
        files = [f"{path.rstrip('/')}/{name}" for name in names if _is_read(root, name)] if is_folder else [path]
    if not is_file and not (is_folder and names):
        if is_remote(path) and not names:
            raise InputError(f"No such file or folder: {path}. Check the spelling.")
        yield from read_rows(path, split or "train", revision)
        return
    if not files:
        raise InputError(f"The folder {path} holds no file that ends in {join_items(SUFFIXES)}. Name another.")
    for name, value in (("split", split), ("revision", revision)):
        if value is not None:
            raise InputError(f"`{name}` is {value!r}, and {path} is plain files, all of which are read. Leave it out.")
    for file in files:
        local = cached_copy(file)
        if not local.stat().st_size:
            raise InputError(f"{file} is empty: it has no rows. Give a file with at least one, or remove it.")
        yield from read_file(local, PurePosixPath(file).name, Columns())


def ignored_names(path: str) -> list[str]:
    """Names in a folder of plain files that `raw_rows` does not read: folders, hidden files, files of other kinds."""
    check_readable(path)
    with slow_io_warning(path, "reading"):
        root = open_path(path)
        names = list_names(root)
        return [] if _SAVED.intersection(names) else [name for name in names if not _is_read(root, name)]


def _is_read(folder: Path, name: str) -> bool:
    if name[0] == "." or name == REJECTED_FILE or suffix_of(name) not in SUFFIXES:
        return False
    return is_remote(folder) or (folder / name).is_file()  # a bucket is not asked about each of its files
