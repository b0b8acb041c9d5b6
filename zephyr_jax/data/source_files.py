"""Which files a path and a split name: one file, a folder of splits and shards, a cloned hub repository, a Spark output."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath
from typing import Any

import fsspec
import yaml

from zephyr_jax.data.row_reader import SUFFIXES, check_suffix, suffix_of
from zephyr_jax.errors import InputError, join_items

ROW_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix != ".txt")
_SHARD = r"-(?P<number>\d+)(-of-(?P<total>\d+))?(-[0-9a-f]{16})?"
"""What follows a split's name in the name of a shard; older versions of `datasets` add a hash."""
_SPARK = re.compile(r"part-\d+.*")


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split, in order, and what the user should know about the choice."""

    paths: tuple[str, ...]
    notes: tuple[str, ...] = ()


def single_file(path: str, split: str) -> SplitFiles:
    """The file at `path`, whose only split is `train` or its own name. Raises InputError for another split."""
    check_suffix(path, ROW_SUFFIXES)
    if split not in ("train", _stem(path)):
        raise InputError(
            f"{path} is a single file, so its only split is `train`; got `{split}` (data.split or data.eval_split). To "
            "evaluate on another file set data.eval_path."
        )
    return SplitFiles((path,))


def files_in_folder(path: str, files: fsspec.AbstractFileSystem, folder: str, split: str) -> SplitFiles:
    """Files of a split in a folder.

    The README of a cloned hub data set comes first (its `configs`), then files named after the split in the folder, in its
    `data` folder and in a folder named after the split, then Spark's part files, which are the split `train`.

    Raises:
        InputError: The split has no files, or two readings of the folder differ.
    """
    chosen = _by_readme(path, files, folder, split)
    in_folder, in_data, in_split = (_readable(files, path) for path in (folder, f"{folder}/data", f"{folder}/{split}"))
    chosen = chosen or _by_name(path, in_folder, split) or _by_name(path, in_data, split)
    if not chosen and in_split:
        chosen = SplitFiles(tuple(_checked(path, in_split)))
    if not chosen and split == "train" and in_folder and all(_SPARK.fullmatch(_name(n)) for n in in_folder):
        chosen = SplitFiles(tuple(_checked(path, in_folder)))
    if not chosen:
        raise InputError(_no_such_split(path, split, [*in_folder, *in_data]))
    return _without_empty(path, files, chosen)


def _name(path: str) -> str:
    return PurePosixPath(path).name


def _stem(path: str) -> str:
    """A file's name without its suffixes."""
    name = _name(path)
    at = name.lower().rfind(suffix_of(name))
    return name[:at] if at > 0 else PurePosixPath(name).stem


def _readable(files: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """Files of rows in a folder, sorted by name; none when it is not there."""
    if not files.isdir(folder):
        return []
    names = sorted(str(item["name"]) for item in files.ls(folder, detail=True) if item["type"] == "file")
    return [item for item in names if suffix_of(_name(item)) in ROW_SUFFIXES and not _name(item).startswith((".", "_"))]


def _by_name(path: str, names: Sequence[str], split: str) -> SplitFiles | None:
    """The file named after a split, or its numbered shards. Raises InputError where there are both, or neither but others."""
    single = [name for name in names if _stem(name) == split]
    shards = [name for name in names if re.fullmatch(re.escape(split) + _SHARD, _stem(name))]
    others = [name for name in names if re.match(re.escape(split) + r"[^A-Za-z0-9_]", _stem(name))]
    others = [_name(name) for name in others if name not in shards]
    if single and shards:
        raise InputError(
            f"{path} holds the split `{split}` both as {join_items(map(_name, single))} and as the shards "
            f"{join_items(map(_name, shards), 4)}. Keep one of the two, or name a file."
        )
    chosen = _checked(path, single or _all_there(path, shards, split))
    if not chosen and others and split == "train":
        raise InputError(
            f"{path} holds {join_items(others, 4)}, and neither `{split}{suffix_of(others[0])}` nor numbered shards of it "
            f"(`{split}-00000-of-00002{suffix_of(others[0])}`). Name one file, or rename those that belong together."
        )
    if not chosen:
        return None
    note = f"read {join_items(map(_name, chosen), 4)}; not read: {join_items(others, 6)}"
    return SplitFiles(tuple(chosen), (note,) if others else ())


def _all_there(path: str, shards: Sequence[str], split: str) -> Sequence[str]:
    """The shards. Raises InputError when their names promise more, or are of two sets."""
    named = [re.fullmatch(re.escape(split) + _SHARD, _stem(shard)) for shard in shards]
    totals = {match["total"] for match in named if match}
    if len(totals) > 1:
        raise InputError(
            f"{path} holds shards of two sets: {join_items(map(_name, shards), 6)}. Keep one set: remove the files of the other."
        )
    total = next(iter(totals), None)
    missing = sorted(set(range(int(total or 0))) - {int(match["number"]) for match in named if match})
    if total and missing:
        raise InputError(
            f"{path} lacks {len(missing)} of the {int(total)} shards of `{split}`: number {join_items(missing)}. Copy them, too."
        )
    return shards


def _checked(path: str, names: Iterable[str]) -> list[str]:
    """The files. Raises InputError when two of them differ in their suffix only: the same rows twice, most likely."""
    stems: dict[str, str] = {}
    for name in names:
        other = stems.setdefault(_stem(name), name)
        if other != name:
            raise InputError(
                f"{path} holds both {_name(other)} and {_name(name)}: expected one of them. Remove one, or name the file."
            )
    return list(stems.values())


def _without_empty(path: str, files: fsspec.AbstractFileSystem, chosen: SplitFiles) -> SplitFiles:
    """The files that hold a byte; the others are noted."""
    empty = [name for name in chosen.paths if not files.size(name)]
    kept = tuple(files.unstrip_protocol(name) for name in chosen.paths if name not in empty)
    if not kept:
        raise InputError(
            f"{join_items(map(_name, empty))} in {path} is empty: it has no rows. Give a file with at least one."
        )
    notes = (f"without rows: {join_items(map(_name, empty), 4)} (0 bytes)",) if empty else ()
    return SplitFiles(kept, chosen.notes + notes)


def _no_such_split(path: str, split: str, names: Sequence[str]) -> str:
    known = sorted({re.sub(_SHARD + "$", "", _stem(name)) for name in names})
    return (
        f"The folder {path} has no rows for the split `{split}`: it holds {join_items(known) or 'no .jsonl or .parquet'}."
        f" A split is a file named `{split}.jsonl` or `{split}.parquet` (or `{split}-00000-of-00002.parquet`, ...)."
    )


# ---- the README of a hub data set ----


def _by_readme(path: str, files: fsspec.AbstractFileSystem, folder: str, split: str) -> SplitFiles | None:
    """Files that `configs` in the README of a hub data set give to a split; None where it has no such list."""
    configs = _configs(files, folder)
    if not configs:
        return None
    preferred = [item for item in configs if item.get("default") or item.get("config_name") == "default"]
    if len(configs) > 1 and not preferred:
        names = [item.get("config_name") for item in configs]
        raise InputError(
            f"{path}/README.md describes the configs {join_items(names)}, and none is the default. Name the file or folder of "
            "one."
        )
    patterns = _patterns((preferred or configs)[0].get("data_files"))
    if split not in patterns:
        raise InputError(
            f"{path} has no split `{split}`; its README.md names {join_items(sorted(patterns))}. Choose one of these."
        )
    everything = sorted(str(name) for name in files.find(folder))
    start = len(folder.rstrip("/")) + 1
    chosen = [name for name in everything if any(fnmatch(name[start:], item) for item in patterns[split])]
    if not chosen:
        raise InputError(
            f"{path}/README.md gives `{split}` the files {join_items(patterns[split])}, which do not exist. Copy them, too."
        )
    return SplitFiles(tuple(_checked(path, chosen)))


def _configs(files: fsspec.AbstractFileSystem, folder: str) -> list[dict[str, Any]]:
    """The `configs` with `data_files` in the YAML head of a folder's README.md; none where it has none that can be read."""
    readme = f"{folder}/README.md"
    if not files.isfile(readme):
        return []
    head = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", files.cat_file(readme).decode(errors="replace"), re.DOTALL)
    try:
        content = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError:
        return []
    configs = content.get("configs") if isinstance(content, dict) else None
    return [item for item in configs or () if isinstance(item, dict) and item.get("data_files")]


def _patterns(data_files: Any) -> dict[str, list[str]]:
    """Split -> patterns of paths, from what `data_files` holds: one pattern, several, or one entry a split."""
    if isinstance(data_files, str):
        return {"train": [data_files]}
    if isinstance(data_files, dict):
        return {str(split): [paths] if isinstance(paths, str) else list(paths) for split, paths in data_files.items()}
    entries = [item if isinstance(item, dict) else {"split": "train", "path": item} for item in data_files]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        paths = entry.get("path")
        patterns.setdefault(str(entry.get("split", "train")), []).extend(
            [paths] if isinstance(paths, str) else paths or []
        )
    return patterns
