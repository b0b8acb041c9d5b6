"""Shards and manifests are read as they were written, or refused; an index behaves like a dict of float32."""

import io
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from zephyr_jax.errors import InputError
from zephyr_jax.reference.index import LogprobIndex, parse_keys
from zephyr_jax.reference.shards import encode_shard, read_shard, shard_names, write_shard
from zephyr_jax.reference.table import Identity, ReferenceTable, explain_rebuild
from zephyr_jax.storage.files import open_path

IDENTITY = Identity("weights", "tokenizer", "rule", "float32", 1)
COMMAND = "zephyr-jax reference --config card.yaml"


def some_keys(count: int, seed: int = 0) -> list[str]:
    digits = np.random.default_rng(seed).bytes(16 * count).hex()
    return [digits[32 * index : 32 * index + 32] for index in range(count)]


def test_any_flipped_byte_of_a_shard_is_found(tmp_path: Path) -> None:
    """Law: each byte of a shard, and its name; the message names file and command."""
    table = ReferenceTable(tmp_path, IDENTITY)
    table.add("0", some_keys(10), -np.arange(10.0), np.ones(10))
    (name,) = shard_names(table.folder)
    shard, sound = table.folder / name, (table.folder / name).read_bytes()
    message = f"{re.escape(str(shard))} cannot be read.*Delete this file and run `{COMMAND}` again"
    for position in range(len(sound)):
        spoilt = bytearray(sound)
        spoilt[position] ^= 1 << position % 8
        shard.write_bytes(bytes(spoilt))
        with pytest.raises(InputError, match=message):
            read_shard(shard, COMMAND)
    shard.write_bytes(sound[:-1])
    with pytest.raises(InputError, match=message):
        ReferenceTable(tmp_path, IDENTITY, COMMAND)
    renamed = table.folder / "shard-1.parquet"
    renamed.write_bytes(sound)
    with pytest.raises(InputError, match="expected the digest 1, got"):
        read_shard(renamed)


@pytest.mark.parametrize("column", ["key", "sum", "count"])
def test_other_columns_and_nulls_are_refused(column: str, tmp_path: Path) -> None:
    """A valid digest is not enough."""
    columns = {"key": [b"k" * 16], "sum": np.zeros(1, np.float32), "count": np.zeros(1, np.int32)}
    schema = {"key": pyarrow.binary(16), "sum": pyarrow.float32(), "count": pyarrow.int32()}
    for values, kind in (([None], schema[column]), (["text"], pyarrow.string())):
        table = pyarrow.table({**columns, column: values}, schema=pyarrow.schema((schema | {column: kind}).items()))
        pyarrow.parquet.write_table(table, file := io.BytesIO())
        path = open_path(tmp_path) / f"shard-0-{blake2b(file.getvalue(), digest_size=16).hexdigest()}.parquet"
        path.write_bytes(file.getvalue())
        with pytest.raises(InputError, match="expected the columns"):
            read_shard(path)


def test_any_flipped_byte_of_a_manifest_is_found(tmp_path: Path) -> None:
    """Law: the manifest is what was written, to the byte; without it, the folder's name says as much."""
    table = ReferenceTable(tmp_path, IDENTITY)
    table.add("0", some_keys(10), -np.arange(10.0), np.ones(10))
    manifest = table.folder / "manifest.json"
    sound = manifest.read_bytes()
    for place in range(len(sound)):
        spoilt = bytearray(sound)
        spoilt[place] ^= 1 << place % 8
        manifest.write_bytes(bytes(spoilt))
        with pytest.raises(InputError, match=f"{re.escape(str(manifest))} is .*zephyr-jax reference"):
            ReferenceTable(tmp_path, IDENTITY)
    manifest.unlink()
    again = ReferenceTable(tmp_path, IDENTITY)
    again.write_manifest()
    assert len(again) == 10
    assert manifest.read_bytes() == sound


def test_a_sum_that_is_not_finite_is_missing(tmp_path: Path) -> None:
    """Law: another shard may have it, whatever their order."""
    table, keys = ReferenceTable(tmp_path, IDENTITY), some_keys(3)
    index = LogprobIndex(parse_keys(keys), np.array([-1, np.nan, -3], np.float32), np.array([1, 2, 3], np.int32))
    table.folder.mkdir()
    write_shard(table.folder, "9", index)
    again = ReferenceTable(tmp_path, IDENTITY)
    assert again.missing(np.array(keys)[:, None]).tolist() == [False, True, False]
    assert len(again) == 2
    with pytest.raises(KeyError, match=keys[1]):
        again.look_up(np.array([keys]))
    again.add("0", [keys[1]], np.array([-2.0]), np.array([2]))
    for table in (again, ReferenceTable(tmp_path, IDENTITY)):
        assert table.look_up(np.array([keys])).tolist() == [[-1, -2, -3]]


def test_entries_are_a_dict_of_float32(tmp_path: Path) -> None:
    """Law: whatever is added in whatever pieces, the last value of a key is found, here and after reading again."""
    random = np.random.default_rng(3)
    known, table, expected = some_keys(500), ReferenceTable(tmp_path, IDENTITY), {}
    for part in range(20):
        keys = [known[index] for index in random.integers(0, 500, random.integers(0, 60))]
        sums = -random.random(len(keys)) * 1000
        table.add(f"{part:02d}", keys, sums, np.full(len(keys), part))
        expected |= dict(zip(keys, sums.astype(np.float32).tolist(), strict=True))
    asked = np.array([*known, *some_keys(500, 1)]).reshape(-1, 2)
    there = np.array(sorted(expected))[:, None]
    for each in (table, ReferenceTable(tmp_path, IDENTITY)):
        assert len(each) == len(expected)
        assert each.missing(asked).tolist() == [not {*row} <= expected.keys() for row in asked.tolist()]
        assert each.look_up(there)[:, 0].tolist() == [expected[key] for key in there[:, 0].tolist()]
    assert encode_shard(ReferenceTable(tmp_path, IDENTITY).index) == encode_shard(table.index)


def test_keys_with_zeros_at_either_end_are_distinguished(tmp_path: Path) -> None:
    keys = ["0" * 32, "0" * 31 + "1", "1" + "0" * 31, "00" * 15 + "ff", "ff" + "00" * 15]
    table = ReferenceTable(tmp_path, IDENTITY)
    table.add("0", keys[1:], np.arange(4.0), np.ones(4))
    assert table.missing(np.array(keys)[:, None]).tolist() == [True, False, False, False, False]
    assert table.look_up(np.array(keys[1:])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("key", ["", "a", "g" * 32, "a" * 31, "a" * 33, "ä" * 32])
def test_other_keys_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"digit|ordinal|[Hh]ex|32"):
        ReferenceTable(tmp_path, IDENTITY).add("0", [key], np.zeros(1), np.ones(1))


def test_a_rebuild_is_explained(tmp_path: Path) -> None:
    """Law: only an empty table among others is explained; an unreadable manifest of another table is ignored."""
    other = replace(IDENTITY, tokenizer="old")
    assert explain_rebuild(tmp_path, ReferenceTable(tmp_path, IDENTITY), 3) == ""
    table = ReferenceTable(tmp_path, other)
    table.add("0", some_keys(1), np.zeros(1), np.ones(1))
    reason = explain_rebuild(tmp_path, ReferenceTable(tmp_path, IDENTITY), 3)
    assert reason == "tokenizer: table has 'old', this run has 'tokenizer': computing all 3 pairs"
    assert explain_rebuild(tmp_path, table, 3) == ""
    (table.folder / "manifest.json").write_text("{")
    assert explain_rebuild(tmp_path, ReferenceTable(tmp_path, IDENTITY), 3) == ""


def test_reading_a_table_imports_no_jax() -> None:
    """Law: tables are read, listed and tidied without an accelerator's runtime, and without pandas."""
    script = (
        "import sys, tempfile, numpy as np; from zephyr_jax.reference.table import *; import zephyr_jax.reference.maintenance; "
        "i = Identity('w', 't', 'r', 'd', 1); d = tempfile.mkdtemp(); "
        "ReferenceTable(d, i).add('0', ['ab' * 16], np.zeros(1), np.ones(1)); assert len(ReferenceTable(d, i)) == 1; "
        "print([name for name in ('jax', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
