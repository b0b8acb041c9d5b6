"""Looking after a folder of reference tables: what is there, what was left behind, small parts into one. Never imports jax.

Nothing here runs beside a pass that reads or writes the same table.
"""

import time
from dataclasses import dataclass
from typing import Any

from zephyr_jax.errors import InputError
from zephyr_jax.reference.index import Entries, merged
from zephyr_jax.reference.shards import PREFIX, SUFFIX, has_digest, packed, read_part
from zephyr_jax.reference.table import DAY, MANIFEST, Identity, part_names, read_manifest
from zephyr_jax.storage.files import Path, list_names, open_path, slow_io_warning, write_atomic

_FULL = 2**18
"""Entries of the largest merged part: what reading holds at once, and what one damaged file costs."""
_LIVE = 3600  # seconds: a scratch file that was touched so lately may belong to a writer that lives
_DAY = 86400


@dataclass(frozen=True)
class Table:
    """One table of a folder, as it lies there."""

    folder: Path
    fields: dict[str, Any]
    """Its identity, by the manifest; empty where that cannot be read."""
    entries: int
    """Distinct keys with a finite sum, in the parts that can be read."""
    bytes: int
    """Of all its files."""
    parts: list[str]
    small: list[str]
    """Parts that `merge_parts` would make one of: those that are not full."""
    plain: list[str]
    """Parts without a digest, from before there were any."""
    scratch: list[str]
    """Unfinished files that no writer has touched for an hour."""
    damage: list[str]
    """What cannot be read, each in a message of its own."""
    written: float
    """Seconds since 1970 of the newest file."""


def tables_in(root: Path) -> list[Table]:
    """The tables below a folder, each read and verified. Raises InputError when the folder is not there."""
    root = open_path(root)
    if not root.is_dir():
        raise InputError(
            f"There is no folder {root}. `--reference` takes the folder that `zephyr-jax reference` wrote to."
        )
    with slow_io_warning(root, "reading"):
        folders = [root / name for name in list_names(root) if len(name) == 16 and (root / name).is_dir()]
        return [_table(folder) for folder in folders if (folder / MANIFEST).exists() or part_names(folder)]


def _table(folder: Path) -> Table:
    found = {name: (folder / name).stat() for name in list_names(folder)}
    damage: list[str] = []
    fields = _fields(folder, damage)
    pieces, small, plain = [], [], []
    for name in part_names(folder):
        try:
            entries = read_part(folder / name)
        except InputError as error:
            damage.append(str(error))
            continue
        pieces.append(entries)
        small += [name] if len(entries) < _FULL else []
        plain += [] if has_digest((folder / name).read_bytes()) else [name]
    scratch = [name for name, stat in found.items() if _is_scratch(name) and time.time() - stat.mtime > _LIVE]
    return Table(
        folder, fields, len(merged(pieces)), sum(stat.length for stat in found.values()), part_names(folder), small, plain,
        scratch, damage, max((stat.mtime for stat in found.values()), default=0.0),
    )  # fmt: skip


def _fields(folder: Path, damage: list[str]) -> dict[str, Any]:
    """The identity in a manifest; what is wrong with it goes to `damage`."""
    manifest = folder / MANIFEST
    try:
        fields = read_manifest(manifest)
        day = fields.pop(DAY, None)
        identity = Identity(**fields)
        if identity.name != folder.name or manifest.read_bytes() != identity.manifest(day):
            raise TypeError("it is not as it was written")
    except InputError as error:
        damage.append(str(error))
    except TypeError as error:
        damage.append(f"{manifest} is damaged: {error}. Delete that file and run `zephyr-jax reference` again.")
    else:
        return fields
    return {}


def _is_scratch(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def delete_scratch(table: Table) -> None:
    """Remove what writers left unfinished."""
    for name in table.scratch:
        (table.folder / name).unlink(missing_ok=True)


def merge_parts(table: Table) -> None:
    """Make the table's small parts one (or several full ones). Raises InputError when one is damaged.

    The new ones are written before the old ones are deleted. A kill in between leaves entries twice, which agree, and the
    merged ones win; the next merge ends it.
    """
    entries = merged([read_part(table.folder / name) for name in table.small])
    for start in range(0, len(entries), _FULL):
        _write(table.folder, entries.slice(start, start + _FULL), start)
    for name in table.small:
        (table.folder / name).unlink(missing_ok=True)


def _write(folder: Path, entries: Entries, start: int) -> None:
    """A merged part; its name comes after those of passes (hexadecimal) and of earlier merges."""
    write_atomic(folder / f"{PREFIX}merged-{time.time_ns():020d}-{start:09d}{SUFFIX}", packed(entries))


def can_merge(table: Table) -> bool:
    """Whether merging would leave fewer parts, or give a part the digest it lacks, and nothing is damaged."""
    return not table.damage and (len(table.small) > 1 or bool(set(table.small) & set(table.plain)))


def delete_table(table: Table) -> None:
    """Remove the whole table."""
    table.folder.rmtree()


def to_delete(tables: list[Table], keep: tuple[str, ...], older_than_days: float | None) -> list[Table]:
    """The tables that neither `keep` (names of their folders) nor their age saves; none where neither is given.

    Where both are given, a table must be missing from `keep` and be that old. Raises InputError for a name that is none.
    """
    unknown = set(keep) - {table.folder.name for table in tables}
    if unknown:
        raise InputError(
            f"`keep` names {', '.join(sorted(unknown))}, which is no table there. `zephyr-jax reference ls` shows their names."
        )
    if not keep and older_than_days is None:
        return []
    newest = time.time() - (older_than_days or 0) * _DAY
    return [table for table in tables if table.folder.name not in keep and table.written <= newest]
