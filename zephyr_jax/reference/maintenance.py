"""Maintenance of a folder of reference tables: inspect, delete leftovers, merge small shards. Never imports jax.

Nothing here may run while a pass reads or writes the same table.
"""

import time
from dataclasses import dataclass
from typing import Any

from zephyr_jax.errors import InputError
from zephyr_jax.reference.index import LogprobIndex, merge
from zephyr_jax.reference.shards import read_shard, shard_names, write_shard
from zephyr_jax.reference.table import MANIFEST, TEMPLATE_DATE, Identity, read_manifest
from zephyr_jax.storage.cloud import slow_io_warning
from zephyr_jax.storage.files import Path, list_names, open_path

_MAX_SHARD_ENTRIES = 2**18  # bounds the memory of a read and what one damaged file costs
_ACTIVE_SECONDS = 3600  # a scratch file modified more recently may belong to a running writer
_DAY_SECONDS = 86400


@dataclass(frozen=True)
class TableInfo:
    """State of one table on disk."""

    folder: Path
    fields: dict[str, Any]
    """Its identity by the manifest; empty for a damaged one."""
    num_entries: int
    """Distinct keys with a finite sum in the readable shards."""
    num_bytes: int
    """Of all files."""
    shards: list[str]
    small: list[str]
    """Shards that `merge_shards` would merge: those below the maximum size."""
    scratch: list[str]
    """Unfinished files that were not modified for an hour."""
    damage: list[str]
    """Error messages of unreadable files."""
    modified: float
    """Seconds since 1970 of the newest file."""

    @property
    def mergeable(self) -> bool:
        """Whether a merge would leave fewer shards, and nothing is damaged."""
        return not self.damage and len(self.small) > 1


def inspect_tables(root: Path) -> list[TableInfo]:
    """Read and verify all tables below a folder. Raises InputError for a missing folder."""
    root = open_path(root)
    if not root.is_dir():
        raise InputError(
            f"Expected a folder of reference tables (`--reference` of the passes), got {root}: not a folder."
        )
    with slow_io_warning(root, "reading"):
        folders = [root / name for name in list_names(root) if len(name) == 16 and (root / name).is_dir()]
        return [_inspect(folder) for folder in folders if (folder / MANIFEST).exists() or shard_names(folder)]


def _inspect(folder: Path) -> TableInfo:
    files = {name: (folder / name).stat() for name in list_names(folder)}
    damage: list[str] = []
    fields = _manifest_fields(folder, damage)
    pieces: dict[str, LogprobIndex] = {}
    for name in shard_names(folder):
        try:
            pieces[name] = read_shard(folder / name)
        except InputError as error:
            damage.append(str(error))
    now = time.time()
    return TableInfo(
        folder=folder,
        fields=fields,
        num_entries=len(merge(list(pieces.values()))),
        num_bytes=sum(stat.length for stat in files.values()),
        shards=shard_names(folder),
        small=[name for name, piece in pieces.items() if len(piece) < _MAX_SHARD_ENTRIES],
        scratch=[name for name, stat in files.items() if _is_scratch(name) and now - stat.mtime > _ACTIVE_SECONDS],
        damage=damage,
        modified=max((stat.mtime for stat in files.values()), default=0.0),
    )


def _manifest_fields(folder: Path, damage: list[str]) -> dict[str, Any]:
    """The identity in a manifest; an error message is appended to `damage`."""
    manifest = folder / MANIFEST
    try:
        fields = read_manifest(manifest)
        template_date = fields.pop(TEMPLATE_DATE, None)
        identity = Identity(**fields)
        if identity.name == folder.name and manifest.read_bytes() == identity.manifest(template_date):
            return fields
        damage.append(f"{manifest} is damaged. Delete this file and run `zephyr-jax reference` again.")
    except InputError as error:
        damage.append(str(error))
    except TypeError as error:
        damage.append(f"{manifest} is damaged ({error}). Delete this file and run `zephyr-jax reference` again.")
    return {}


def _is_scratch(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def delete_scratch(table: TableInfo) -> None:
    """Delete files that killed writers left unfinished."""
    for name in table.scratch:
        (table.folder / name).unlink(missing_ok=True)


def merge_shards(table: TableInfo) -> None:
    """Merge the small shards into one or several full ones. Raises InputError for a damaged one.

    Merged shards are written before the old ones are deleted. A kill in between leaves entries twice with equal values, and the
    merged shards win, as their names come after those of passes (hexadecimal) and of earlier merges.
    """
    index = merge([read_shard(table.folder / name) for name in table.small])
    for start in range(0, len(index), _MAX_SHARD_ENTRIES):
        piece = index.slice(start, start + _MAX_SHARD_ENTRIES)
        write_shard(table.folder, f"merged-{time.time_ns():020d}-{start:09d}", piece)
    for name in table.small:
        (table.folder / name).unlink(missing_ok=True)


def delete_table(table: TableInfo) -> None:
    """Delete the whole table."""
    table.folder.rmtree()


def tables_to_delete(tables: list[TableInfo], keep: tuple[str, ...], older_than_days: float | None) -> list[TableInfo]:
    """Select tables for deletion; none without any criterion.

    Args:
        tables: All tables.
        keep: Folder names of tables to keep.
        older_than_days: Keep tables modified more recently.

    Raises:
        InputError: for an unknown name in `keep`.
    """
    unknown = set(keep) - {table.folder.name for table in tables}
    if unknown:
        raise InputError(
            f"Unknown tables in `keep`: {', '.join(sorted(unknown))}. `zephyr-jax reference ls` lists the names."
        )
    if not keep and older_than_days is None:
        return []
    newest = time.time() - (older_than_days or 0) * _DAY_SECONDS
    return [table for table in tables if table.folder.name not in keep and table.modified <= newest]
