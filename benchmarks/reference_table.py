"""Time and memory of a reference table of a million entries: reading it, and looking up all entries in random order.

    uv run python -m benchmarks.reference_table [ENTRIES]

Look-ups are CPU time of one thread, reading is wall time. Memory is the growth of the peak resident size over that of a table
with one entry, without the queries.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from zephyr_jax.reference.table import Identity, ReferenceTable

IDENTITY = Identity("weights", "tokenizer", "rule", "float32", 1)


def write(root: Path, num_entries: int, num_shards: int) -> None:
    """A table of random keys in `num_shards` shards, each written by a separate table to be fast."""
    random = np.random.default_rng(0)
    for index in range(num_shards):
        size = len(range(index, num_entries, num_shards))
        digits = random.bytes(16 * size).hex()
        keys = [digits[32 * start : 32 * start + 32] for start in range(size)]
        table = ReferenceTable(root / f"{index}", IDENTITY)
        table.add(f"{index:06d}", keys, -random.random(size) * 1000, np.full(size, 100))
    folder = root / IDENTITY.name
    folder.mkdir()
    for file in root.glob("*/*/*"):
        file.replace(folder / file.name)


def peak() -> float:
    """Peak resident memory in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def measure(root: Path) -> None:
    """Print one line of figures."""
    with tempfile.TemporaryDirectory() as small:
        write(Path(small), 1, 1)
        ReferenceTable(Path(small), IDENTITY)
    start_memory, start = peak(), time.perf_counter()
    table = ReferenceTable(root, IDENTITY)
    read, memory = time.perf_counter() - start, peak() - start_memory
    codes = np.random.default_rng(1).permutation(table.index.keys)
    keys = np.array([codes[index : index + 1].tobytes().hex() for index in range(len(codes))]).reshape(-1, 2)
    start = time.process_time()
    table.look_up(keys)
    per_key = (time.process_time() - start) / len(codes)
    start = time.process_time()
    for row in range(10_000):
        table.look_up(keys[row : row + 1])
    alone = (time.process_time() - start) / 20_000
    print(
        f"{len(table):,} entries in {len(table.shards)} shards: read in {read:.2f} s, {memory:.0f} MB at the peak; a look-up "
        f"{per_key * 1e6:.2f} us all at once, {alone * 1e6:.2f} us one pair at a time"
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]))
    else:
        for num_shards in (4, 200, 2000):
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, num_shards)
                subprocess.run([sys.executable, os.path.abspath(__file__), folder, "measure"], check=True)
