"""`zephyr-jax reference ls` and `zephyr-jax reference gc`: the tables of a folder, seen and tidied. Never imports jax."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from zephyr_jax.config.tables import ReferenceGcConfig, ReferenceLsConfig
from zephyr_jax.reference.maintenance import (
    Table,
    can_merge,
    delete_scratch,
    delete_table,
    merge_parts,
    tables_in,
    to_delete,
)
from zephyr_jax.storage.files import check_readable, open_path


def reference_ls(config: ReferenceLsConfig) -> str:
    """Every table with its identity, entries, bytes, parts and time, and what is damaged. Raises InputError."""
    check_readable(config.reference)
    tables = tables_in(open_path(config.reference))
    return "\n\n".join(map(_described, tables)) or f"No tables in {config.reference}."


def _described(table: Table) -> str:
    written = datetime.fromtimestamp(table.written, UTC)
    lines = [
        f"{table.folder.name}: {table.entries:,} entries, {table.bytes:,} bytes, {_count(table.parts, 'part')}, "
        f"last written {written:%Y-%m-%d %H:%M} UTC"
    ]
    lines += [f"  {name:<16} {value}" for name, value in table.fields.items()]
    if table.plain:
        lines.append(f"  without a digest {_count(table.plain, 'part')}, from an earlier version; gc gives them one")
    if table.scratch:
        lines.append(f"  unfinished       {_count(table.scratch, 'file')}; gc removes them")
    return "\n".join([*lines, *(f"  DAMAGED: {message}" for message in table.damage)])


def _count(names: list[str], word: str) -> str:
    return f"{len(names):,} {word}{'' if len(names) == 1 else 's'}"


def reference_gc(config: ReferenceGcConfig) -> str:
    """Tidy, or say what would be done; returns one line a deed. Raises InputError."""
    check_readable(config.reference)
    tables = tables_in(open_path(config.reference))
    gone = to_delete(tables, config.keep, config.older_than_days)
    deeds = [deed for table in tables for deed in _deeds(table, table in gone)]
    if config.apply:
        for _, act in deeds:
            act()
    lines = [words for words, _ in deeds] or ["nothing to do"]
    lines += [f"left alone: {message}" for table in tables if table not in gone for message in table.damage]
    if deeds and not config.apply:
        lines.append("Nothing was done. To do all this, pass --apply.")
    return "\n".join(lines)


def _deeds(table: Table, gone: bool) -> list[tuple[str, Callable[[], None]]]:
    """What to do with a table, in words and as a call."""
    if gone:
        return [(f"delete the table\n{_described(table)}", partial(delete_table, table))]
    deeds: list[tuple[str, Callable[[], None]]] = []
    if table.scratch:
        deeds.append(
            (f"{table.folder}: remove {_count(table.scratch, 'unfinished file')}", partial(delete_scratch, table))
        )
    if can_merge(table):
        deeds.append((f"{table.folder}: merge {_count(table.small, 'small part')}", partial(merge_parts, table)))
    return deeds


def main_ls(config: ReferenceLsConfig, command: str) -> str:
    """`zephyr-jax reference ls`."""
    return reference_ls(config)


def main_gc(config: ReferenceGcConfig, command: str) -> str:
    """`zephyr-jax reference gc`."""
    return reference_gc(config)
