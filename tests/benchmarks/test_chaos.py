"""The short form of `benchmarks.chaos`: real processes, harmed at random moments."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_eight_kills_lose_nothing() -> None:
    """Law: 0 examples lost or repeated, 0 losses that diverge, 0 times that a person had to look."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--kills", "8", "--size", "30", "--short"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    total = next(line for line in done.stdout.splitlines() if line.startswith("| all "))
    kills, runs, *counts = map(int, re.findall(r"\d+", total))
    assert kills == 8
    assert runs >= 3
    assert counts[:4] == [0, 0, 0, 0]
