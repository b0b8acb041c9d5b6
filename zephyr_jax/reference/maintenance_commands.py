"""`zephyr-jax reference ls` and `zephyr-jax reference gc`: list and clean up reference tables. Never imports jax."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from zephyr_jax.config.tables import ReferenceGcConfig, ReferenceLsConfig
from zephyr_jax.reference.maintenance import (
    TableInfo,
    delete_scratch,
    delete_table,
    inspect_tables,
    merge_shards,
    tables_to_delete,
)
from zephyr_jax.storage.files import check_readable, open_path


def main_ls(config: ReferenceLsConfig, command: str) -> str:
    """`zephyr-jax reference ls`: list every table with identity, entries, bytes, shards, time and damage. Raises InputError."""
    check_readable(config.reference)
    tables = inspect_tables(open_path(config.reference))
    return "\n\n".join(map(_format_table, tables)) or f"No tables in {config.reference}."


def _format_table(table: TableInfo) -> str:
    modified = datetime.fromtimestamp(table.modified, UTC)
    lines = [
        f"{table.folder.name}: {table.num_entries:,} entries, {table.num_bytes:,} bytes, {_count(table.shards, 'shard')}, "
        f"modified {modified:%Y-%m-%d %H:%M} UTC"
    ]
    lines += [f"  {name:<16} {value}" for name, value in table.fields.items()]
    if table.scratch:
        lines.append(f"  unfinished       {_count(table.scratch, 'file')}; `reference gc` deletes them")
    return "\n".join([*lines, *(f"  DAMAGED: {message}" for message in table.damage)])


def _count(names: list[str], noun: str) -> str:
    return f"{len(names):,} {noun}{'' if len(names) == 1 else 's'}"


def main_gc(config: ReferenceGcConfig, command: str) -> str:
    """`zephyr-jax reference gc`: clean up with `apply`, else report what it would do; one line per action. Raises InputError."""
    check_readable(config.reference)
    tables = inspect_tables(open_path(config.reference))
    deleted = tables_to_delete(tables, config.keep, config.older_than_days)
    actions = [action for table in tables for action in _actions(table, table in deleted)]
    if config.apply:
        for _, run in actions:
            run()
    lines = [description for description, _ in actions] or ["nothing to do"]
    lines += [f"not changed: {message}" for table in tables if table not in deleted for message in table.damage]
    if actions and not config.apply:
        lines.append("This was a dry run. Pass --apply to do it.")
    return "\n".join(lines)


def _actions(table: TableInfo, delete: bool) -> list[tuple[str, Callable[[], None]]]:
    """Descriptions and calls of the actions on one table."""
    if delete:
        return [(f"delete the table\n{_format_table(table)}", partial(delete_table, table))]
    actions: list[tuple[str, Callable[[], None]]] = []
    if table.scratch:
        description = f"{table.folder}: delete {_count(table.scratch, 'unfinished file')}"
        actions.append((description, partial(delete_scratch, table)))
    if table.mergeable:
        actions.append((f"{table.folder}: merge {_count(table.small, 'small shard')}", partial(merge_shards, table)))
    return actions
