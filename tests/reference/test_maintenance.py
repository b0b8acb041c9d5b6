"""`zephyr-jax reference ls` and `gc`: what is there is reported, and what is tidied stays the same table."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zephyr_jax.cli import main
from zephyr_jax.reference import maintenance
from zephyr_jax.reference.shards import encode_shard, shard_names
from zephyr_jax.reference.table import Identity, ReferenceTable
from zephyr_jax.storage.files import open_path

IDENTITY = Identity("weights", "tokenizer", "rule", "float32", 1)
OTHER = replace(IDENTITY, weights="other weights")


def fill(root: Path, identity: Identity = IDENTITY, parts: int = 7, entries: int = 30) -> ReferenceTable:
    """Parts that share some keys."""
    table = ReferenceTable(root, identity)
    for part in range(parts):
        keys = [f"{index:032x}" for index in range(part * entries, part * entries + entries + 5)]
        table.add(f"{part:x}", keys, -np.arange(len(keys)) - 100.0 * part, np.full(len(keys), part))
    return table


def said(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    main(words.split())
    return capsys.readouterr().out


def content(root: Path, identity: Identity = IDENTITY) -> bytes:
    return encode_shard(ReferenceTable(root, identity).index)


def aged(path: Path, days: float) -> None:
    then = path.stat().st_mtime - days * 86400
    os.utime(path, (then, then))


def test_ls_shows_each_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: identity, entries, bytes, parts and time of each; damage by file and with the way out, and no refusal."""
    table, other = fill(tmp_path), fill(tmp_path, OTHER, parts=1)
    (tmp_path / "notes").mkdir()
    output = said(f"reference ls --reference {tmp_path}", capsys)
    size = sum(path.stat().st_size for path in Path(table.folder).iterdir())
    assert f"{table.folder.name}: {len(table)} entries, {size:,} bytes, 7 shards, modified 20" in output
    assert f"{other.folder.name}: 35 entries" in output
    assert "  weights          other weights\n" in output
    assert "1 shard, modified" in output
    assert "notes" not in output
    (table.folder / shard_names(table.folder)[3]).write_bytes(b"PAR1")
    (other.folder / "manifest.json").write_bytes(b"{}")
    output = said(f"reference ls --reference {tmp_path}", capsys)
    assert (
        f"DAMAGED: The reference table's shard {table.folder / shard_names(table.folder)[3]} cannot be read" in output
    )
    assert f"DAMAGED: {other.folder / 'manifest.json'} is damaged" in output


def test_gc_says_and_then_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: dry by default; scratch that lies for an hour goes and fresh scratch stays; small parts become one, equal."""
    table = fill(tmp_path)
    before, folder = content(tmp_path), Path(table.folder)
    for name in (".shard-old.parquet.1.tmp", ".shard-new.parquet.2.tmp"):
        (folder / name).write_bytes(b"PAR1")
    aged(folder / ".shard-old.parquet.1.tmp", 1)
    files = sorted(path.name for path in folder.iterdir())
    output = said(f"reference gc --reference {tmp_path}", capsys)
    assert "delete 1 unfinished file\n" in output
    assert "merge 7 small shards\n" in output
    assert "--apply" in output
    assert sorted(path.name for path in folder.iterdir()) == files
    said(f"reference gc --reference {tmp_path} --apply", capsys)
    assert len(shard_names(table.folder)) == 1
    assert (folder / ".shard-new.parquet.2.tmp").exists()
    assert not (folder / ".shard-old.parquet.1.tmp").exists()
    assert content(tmp_path) == before
    assert said(f"reference gc --reference {tmp_path} --apply", capsys) == "nothing to do\n"


def test_a_merge_makes_full_parts_and_leaves_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(maintenance, "_MAX_SHARD_ENTRIES", 100)
    fill(tmp_path)
    before = content(tmp_path)
    for _ in range(2):
        maintenance.merge_shards(maintenance.inspect_tables(open_path(tmp_path))[0])
        (table,) = maintenance.inspect_tables(open_path(tmp_path))
        assert [len(table.shards), len(table.small)] == [3, 1]
        assert not table.mergeable
        assert content(tmp_path) == before


@pytest.mark.parametrize("deleted", range(7))
def test_a_merge_killed_at_any_deletion_changes_nothing(
    deleted: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Law: the merged part is there before the first part goes, and wins over those that are still there."""
    table = fill(tmp_path)
    before = content(tmp_path)
    real, gone = type(table.folder).unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("shard-") and len(gone) == deleted:
            raise KeyboardInterrupt
        gone.append(path.name)
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(table.folder), "unlink", unlink)
        maintenance.merge_shards(maintenance.inspect_tables(open_path(tmp_path))[0])
    assert len(shard_names(table.folder)) == 8 - deleted
    assert content(tmp_path) == before
    maintenance.merge_shards(maintenance.inspect_tables(open_path(tmp_path))[0])
    assert len(shard_names(table.folder)) == 1
    assert content(tmp_path) == before


def test_gc_leaves_a_damaged_table_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: nothing is merged where a part cannot be read, and it is said why."""
    table = fill(tmp_path)
    (table.folder / shard_names(table.folder)[3]).write_bytes(b"PAR1")
    output = said(f"reference gc --reference {tmp_path} --apply", capsys)
    assert "not changed: The reference table's shard" in output
    assert len(shard_names(table.folder)) == 7


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ("--keep {first}", {"first"}),
        ("--keep {first} {second}", {"first", "second"}),
        ("--older_than_days 10", {"first"}),
        ("--older_than_days 10 --keep {second}", {"first", "second"}),
        ("--older_than_days 0 --keep {first}", {"first"}),
    ],
)
def test_gc_deletes_whole_tables_on_request(
    options: str, left: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: those that are neither kept nor young; they are listed first, and deleted only with --apply."""
    tables = {"first": fill(tmp_path, parts=1), "second": fill(tmp_path, OTHER, parts=1)}
    names = {name: table.folder.name for name, table in tables.items()}
    for path in Path(tables["second"].folder).iterdir():
        aged(path, 20)
    words = f"reference gc --reference {tmp_path} {options.format(**names)}"
    output = said(words, capsys)
    assert {name for name in names if f"delete the table\n{names[name]}: 35 entries" not in output} == left
    assert {path.name for path in tmp_path.iterdir()} == set(names.values())
    said(f"{words} --apply", capsys)
    assert {path.name for path in tmp_path.iterdir()} == {names[name] for name in left}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("reference ls", "`reference` is not set"),
        ("reference ls --reference nowhere", "got nowhere: not a folder"),
        ("reference gc --reference {root} --keep nothing", "Unknown tables in `keep`: nothing"),
        ("reference gc --reference {root} --older_than_days -1", "older_than_days"),
        ("reference lss", "Did you mean `reference ls`?"),
    ],
)
def test_bad_words(words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, parts=1)
    with pytest.raises(SystemExit) as stopped:
        main(words.format(root=tmp_path).split())
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
