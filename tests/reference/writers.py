"""Four processes write one reference table and are killed again and again. Run as a program of its own, without jax.

    python writers.py ROOT ENTRIES KILLS SEED

Prints, as JSON, for each kill how many entries the table had in whole parts and how many writers it met alive.
"""

import json
import os
import random
import signal
import sys
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np

from zephyr_jax.reference.shards import shard_names
from zephyr_jax.reference.table import Identity, ReferenceTable

IDENTITY = Identity("a" * 32, "b" * 32, "rule", "float32", 1)
WRITERS, PART = 4, 400


def key(index: int) -> str:
    """The key of a made-up entry."""
    return blake2b(str(index).encode(), digest_size=16).hexdigest()


def write(root: Path, keys: np.ndarray, numbers: np.ndarray) -> None:
    """Whatever the table lacks of these entries, in many small parts."""
    table = ReferenceTable(root, IDENTITY)
    wanted = np.flatnonzero(table.missing(keys[:, None]))
    for begin in range(0, len(wanted), PART):
        chosen = wanted[begin : begin + PART]
        table.add(
            os.urandom(16).hex(), keys[chosen].tolist(), -np.sqrt(numbers[chosen] + 1.0), numbers[chosen] % 97 + 1
        )


def start(root: Path, keys: np.ndarray) -> list[int]:
    """Process ids of the writers, each with its share."""
    running = []
    for number in range(WRITERS):
        process = os.fork()
        if not process:
            write(root, keys[number::WRITERS], np.arange(number, len(keys), WRITERS))
            os._exit(0)
        running.append(process)
    return running


def wait_for_parts(root: Path, more: int) -> None:
    """Until there are so many more, or writers have had all the time they may need."""
    enough, latest = len(shard_names(root / IDENTITY.name)) + more, time.monotonic() + 20
    while len(shard_names(root / IDENTITY.name)) < enough and time.monotonic() < latest:
        time.sleep(0.001)


def main(root: Path, entries: int, kills: int, seed: int) -> None:
    """Start all, kill all after a random number of new parts and a random while, and again; then let them finish."""
    moments, notes = random.Random(seed), []
    keys = np.array([key(index) for index in range(entries)])
    for _ in range(kills):
        running = start(root, keys)
        wait_for_parts(root, moments.randint(0, 12))
        time.sleep(moments.uniform(0, 0.01))
        for process in running:
            os.kill(process, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in running]
        notes.append((len(shard_names(root / IDENTITY.name)), codes.count(-signal.SIGKILL)))
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in start(root, keys)]
    print(json.dumps({"kills": notes, "codes": codes, "jax": "jax" in sys.modules}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
