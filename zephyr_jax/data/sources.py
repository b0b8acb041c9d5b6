"""Where rows come from: local or gs:// files and folders, `save_to_disk` folders, hub ids. Gives a `datasets.Dataset`."""

from pathlib import PurePosixPath

import fsspec
import pyarrow
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from zephyr_jax.data.lines import check_objects, first_bad_line
from zephyr_jax.errors import InputError, at_revision, listing
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import cached_copy, check_can_be_read, patience
from zephyr_jax.storage.nearby import check_may_be_on_hub, nearest

_READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def open_rows(path: str, split: str, revision: str | None = None, limit: int | None = None) -> Dataset:
    """Rows of one split.

    Raises InputError when nothing is there, the split is unknown, a file is not what its name says, or the hub (or
    Cloud Storage) cannot be reached.
    """
    check_can_be_read(path)
    with patience(path, "reading"):
        rows = _open(path, split, revision)
    rows = rows.select(range(min(limit, len(rows)))) if limit else rows
    _check_text(rows, path)
    return rows


def _check_text(rows: Dataset, path: str) -> None:
    """Raise InputError for text that is no UTF-8, which Arrow would let pass until somebody reads it."""
    try:
        rows.data.validate(full=True)
    except pyarrow.ArrowException as error:
        place = _first_bad_line([path]) if PurePosixPath(path).suffix in (".jsonl", ".json") else ""
        raise InputError(
            f"{place or path} holds rows that cannot be read: {error}. Write it again as UTF-8."
        ) from error


def _open(path: str, split: str, revision: str | None) -> Dataset:
    try:
        files, folder = fsspec.core.url_to_fs(path)
    except (ValueError, ImportError) as error:
        raise InputError(f"Cannot read {path}: {error}. Check the path, or install what its protocol needs.") from error
    try:
        if files.isfile(folder):
            return _read_files([path], split, path)
        if files.exists(f"{folder}/dataset_dict.json") or files.exists(f"{folder}/state.json"):
            return _saved(path, split)
        if files.isdir(folder):
            return _folder(path, files, folder, split)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error}. Check the path and its permissions.") from error
    if is_remote(path):
        raise InputError(f"There is nothing at {path}. Check the spelling.")
    return _hub(path, split, revision)


def _read_files(paths: list[str], split: str, asked: str) -> Dataset:
    if len(paths) == 1 and paths[0] == asked and split not in ("train", PurePosixPath(asked).stem):
        raise InputError(
            f"{asked} is a single file, so its only split is `train`; got `{split}`. To evaluate on another file set "
            "data.eval_path."
        )
    suffix = PurePosixPath(paths[0]).suffix
    if suffix not in _READERS:
        raise InputError(f"{paths[0]} ends in `{suffix}`; rows are read from {listing(_READERS)} files.")
    if not any(fsspec.core.url_to_fs(path)[0].size(fsspec.core.url_to_fs(path)[1]) for path in paths):
        raise InputError(f"{listing(paths)} is empty: it has no rows. Give a file with at least one.")
    try:
        copies = [_local(path) for path in paths]
        for path, copy in zip(paths, copies, strict=True):
            if _READERS[suffix] == "json":
                check_objects(copy, path)
        files = [copy.replace("[", "[[]") for copy in copies]
        return load_dataset(_READERS[suffix], data_files=files, split="train")
    except InputError:
        raise
    except Exception as error:  # pyarrow and datasets raise many kinds; find the line that is to blame
        place = _first_bad_line(paths) if _READERS[suffix] == "json" else ""
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise InputError(
            f"{place or listing(paths)} cannot be read as {suffix[1:].upper()} rows: {reason}. "
            "Every row must be one object with the same columns; fix or remove the row."
        ) from error


def _local(path: str) -> str:
    return str(cached_copy(path)) if is_remote(path) else path


def _first_bad_line(paths: list[str]) -> str:
    return next((words for path in paths if (words := first_bad_line(_local(path), path))), "")


def _saved(path: str, split: str) -> Dataset:
    try:
        saved = load_from_disk(path)
    except IndexError as error:  # what datasets raises for a folder saved without rows
        raise InputError(f"{path} has no rows. Give a file or split with at least one.") from error
    except Exception as error:  # and these are for files of such a folder that are missing or damaged
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path} cannot be read as a `save_to_disk` folder: {reason}. Save it again.") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise InputError(f"{path} has no split `{split}`; it has {listing(sorted(saved))}.")
        return saved[split]
    return saved


def _folder(path: str, files: fsspec.AbstractFileSystem, folder: str, split: str) -> Dataset:
    found = sorted(str(name) for name in files.ls(folder, detail=False))
    readable = [name for name in found if PurePosixPath(name).suffix in _READERS]
    stems = {name: PurePosixPath(name).stem for name in readable}
    chosen = [name for name in readable if stems[name] == split or stems[name].startswith(f"{split}-")]
    if not chosen:
        known = sorted({stem.split("-")[0] for stem in stems.values()})
        raise InputError(
            f"The folder {path} has no rows for the split `{split}`: it holds {listing(known) or 'no .jsonl or .parquet'}."
            f" A split is a file named `{split}.jsonl` or `{split}.parquet` (or `{split}-*.parquet`)."
        )
    return _read_files([files.unstrip_protocol(name) for name in chosen], split, path)


def _hub(path: str, split: str, revision: str | None) -> Dataset:
    check_may_be_on_hub(path, "file or folder")
    try:
        return load_dataset(path, split=split, revision=revision)
    except Exception as error:  # the hub client raises many kinds; all mean: not to be had
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path!r} is no file or folder here, and split `{split}` cannot be loaded from the hub under that name"
            f"{at_revision(revision)}: {reason}{nearest(path)} Check the spelling, the split and the network."
        ) from error
