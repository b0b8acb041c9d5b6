"""Time and memory of a reference table of a million entries: reading it, and looking all of them up in random order.

    uv run python -m benchmarks.reference_table [ENTRIES]

Look-ups are in CPU time of their one thread, reading is by the clock. Memory is how much the process's peak resident size
grows over that of a table of one entry; the queries are not counted.
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


def write(root: Path, entries: int, parts: int) -> None:
    """A table of random keys in so many parts; each part by a table of its own, which is quick."""
    random = np.random.default_rng(0)
    for index in range(parts):
        size = len(range(index, entries, parts))
        digits = random.bytes(16 * size).hex()
        keys = [digits[32 * place : 32 * place + 32] for place in range(size)]
        table = ReferenceTable(root / f"{index}", IDENTITY)
        table.add(f"{index:06d}", keys, -random.random(size) * 1000, np.full(size, 100))
    folder = root / IDENTITY.name
    folder.mkdir()
    for file in root.glob("*/*/*"):
        file.replace(folder / file.name)


def peak() -> float:
    """MB of resident memory at most so far (Linux)."""
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
    each = (time.process_time() - start) / len(codes)
    start = time.process_time()
    for row in range(10_000):
        table.look_up(keys[row : row + 1])
    alone = (time.process_time() - start) / 20_000
    print(
        f"{len(table):,} entries in {len(table.shards)} shards: read in {read:.2f} s, {memory:.0f} MB at the peak; a look-up "
        f"{each * 1e6:.2f} us all at once, {alone * 1e6:.2f} us one pair at a time"
    )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(Path(sys.argv[1]))
    else:
        for parts in (4, 200, 2000):
            with tempfile.TemporaryDirectory() as folder:
                write(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, parts)
                subprocess.run([sys.executable, os.path.abspath(__file__), folder, "measure"], check=True)
