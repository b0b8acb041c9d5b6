"""Writers that are killed at any moment leave the table that one undisturbed writer makes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.reference import writers
from zephyr_jax.reference.table import ReferenceTable

ENTRIES = 100_000


def content(root: Path) -> tuple[bytes, bytes, bytes]:
    """The bytes of keys, sums and counts, in the order of the keys."""
    index = ReferenceTable(root, writers.IDENTITY).index
    return index.keys.tobytes(), index.sums.tobytes(), index.counts.tobytes()


def test_four_writers_killed_ten_times_make_the_table_of_one(tmp_path: Path) -> None:
    """Law: 100,000 entries, 4 processes, 10 SIGKILLs of all at random moments: the same bytes as without."""
    command = [sys.executable, writers.__file__, tmp_path / "killed", str(ENTRIES), "10", "7"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    output = json.loads(done.stdout)
    assert output["codes"] == [0, 0, 0, 0]
    assert not output["jax"]
    assert all(killed > 0 for _, killed in output["kills"]), output
    assert len({parts for parts, _ in output["kills"]}) > 5, output
    alone = ReferenceTable(tmp_path / "alone", writers.IDENTITY)
    numbers = np.arange(ENTRIES)
    alone.add("one", [writers.key(index) for index in range(ENTRIES)], -np.sqrt(numbers + 1.0), numbers % 97 + 1)
    assert len(alone) == ENTRIES
    assert content(tmp_path / "killed") == content(tmp_path / "alone")
