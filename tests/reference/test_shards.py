"""Parts and manifests are read as they were written, or refused; entries behave as a dict of float32 would."""

import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from zephyr_jax.errors import InputError
from zephyr_jax.reference.shards import has_digest, packed, unpacked
from zephyr_jax.reference.table import Identity, ReferenceTable, why_anew

IDENTITY = Identity("weights", "tokenizer", "rule", "float32", 1)
COMMAND = "zephyr-jax reference --config card.yaml"


def some_keys(count: int, seed: int = 0) -> list[str]:
    digits = np.random.default_rng(seed).bytes(16 * count).hex()
    return [digits[32 * index : 32 * index + 32] for index in range(count)]


def test_any_flipped_byte_of_a_part_is_found(tmp_path: Path) -> None:
    """Law: each byte of a part, one after the other, footer and digest too; the message names file and command."""
    table = ReferenceTable(tmp_path, IDENTITY)
    table.add("0", some_keys(10), -np.arange(10.0), np.ones(10))
    part = table.folder / "part-0.parquet"
    sound = part.read_bytes()
    assert has_digest(sound)
    unseen = []
    for place in range(len(sound)):
        spoilt = bytearray(sound)
        spoilt[place] ^= 1 << place % 8
        try:
            unpacked(bytes(spoilt))
            unseen.append(place)
        except (OSError, ValueError, pyarrow.ArrowException):
            pass
    assert unseen == []
    part.write_bytes(bytes(spoilt))
    with pytest.raises(
        InputError, match=f"{re.escape(str(part))} cannot be read.*Delete that file and run `{COMMAND}` again"
    ):
        ReferenceTable(tmp_path, IDENTITY, COMMAND)


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


def test_a_part_from_before_there_were_digests_is_read(tmp_path: Path) -> None:
    """Law: nothing that was computed is lost to the change; a sum that is NaN is missing, and another part may have it."""
    table = ReferenceTable(tmp_path, IDENTITY)
    keys = some_keys(3)
    file = io.BytesIO()
    columns = {
        "key": keys,
        "sum": np.array([-1, np.nan, -3], np.float32),
        "count": np.array([1, 2, 3], np.int32),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    assert not has_digest(file.getvalue())
    table.folder.mkdir()
    (table.folder / "part-9.parquet").write_bytes(file.getvalue())
    found = ReferenceTable(tmp_path, IDENTITY)
    assert found.missing(np.array(keys)[:, None]).tolist() == [False, True, False]
    assert len(found) == 2
    with pytest.raises(KeyError, match=keys[1]):
        found.look_up(np.array([keys]))
    found.add("0", [keys[1]], np.array([-2.0]), np.array([2]))
    for each in (found, ReferenceTable(tmp_path, IDENTITY)):
        assert each.look_up(np.array([keys])).tolist() == [[-1, -2, -3]]


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
    assert unpacked(packed(table.entries)).codes.tobytes() == table.entries.codes.tobytes()


def test_keys_with_zeros_at_either_end_are_told_apart(tmp_path: Path) -> None:
    keys = ["0" * 32, "0" * 31 + "1", "1" + "0" * 31, "00" * 15 + "ff", "ff" + "00" * 15]
    table = ReferenceTable(tmp_path, IDENTITY)
    table.add("0", keys[1:], np.arange(4.0), np.ones(4))
    assert table.missing(np.array(keys)[:, None]).tolist() == [True, False, False, False, False]
    assert table.look_up(np.array(keys[1:])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("key", ["", "a", "g" * 32, "a" * 31, "a" * 33, "ä" * 32])
def test_other_keys_are_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"digit|ordinal|[Hh]ex|32"):
        ReferenceTable(tmp_path, IDENTITY).add("0", [key], np.zeros(1), np.ones(1))


def test_why_all_is_computed_anew(tmp_path: Path) -> None:
    """Law: only an empty table among others is explained; a manifest of another that cannot be read is passed over."""
    other = Identity("weights", "old words", "rule", "float32", 1)
    assert why_anew(tmp_path, ReferenceTable(tmp_path, IDENTITY), 3) == ""
    table = ReferenceTable(tmp_path, other)
    table.add("0", some_keys(1), np.zeros(1), np.ones(1))
    told = why_anew(tmp_path, ReferenceTable(tmp_path, IDENTITY), 3)
    assert told == "tokenizer was 'old words' there, is 'tokenizer' here: all 3 pairs are computed anew"
    assert why_anew(tmp_path, table, 3) == ""
    (table.folder / "manifest.json").write_text("{")
    assert why_anew(tmp_path, ReferenceTable(tmp_path, IDENTITY), 3) == ""


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
