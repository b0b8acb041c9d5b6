"""The short form of `benchmarks.chaos`: real processes, with faults at random moments."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_one_fault_of_each_kind_loses_nothing() -> None:
    """Law: 0 examples lost or repeated, 0 runs diverged, 0 manual steps."""
    command = [sys.executable, "-m", "benchmarks.chaos", "--faults", "6", "--size", "30", "--short"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr[-5000:]
    total = next(line for line in result.stdout.splitlines() if line.startswith("| all "))
    faults, runs, *counts = map(int, re.findall(r"\d+", total))
    assert faults == 6
    assert runs >= 3
    assert counts[:4] == [0, 0, 0, 0]
