"""The line about the time before the first step, and compiled programs that the next process finds."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.conftest import write_rows
from zephyr_jax.demo.corpus import conversations

CARD = Path(__file__).parents[2] / "configs" / "tiny" / "sft.yaml"


def first_step(model: Path, rows: Path, output: Path, **environment: str) -> str:
    """Train one step in a process of its own; the line."""
    words = (
        f"sft --config {CARD} --model.path {model} --data.path {rows} --output {output} --data.max_length 256 "
        "--data.row_length 256 --schedule.max_steps 1 --schedule.evaluate_every 0 --report.no_progress_bar "
        "--report.num_samples 0"
    ).split()
    ours = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    said = subprocess.run(
        [sys.executable, "-m", "zephyr_jax", *words], capture_output=True, text=True, check=True, env=kept | environment
    )
    (line,) = re.findall(r"first step done after .*", said.stderr)
    return line


def test_the_second_process_finds_the_first_ones_programs(tiny_model: Path, tmp_path: Path) -> None:
    """Kept where XDG_CACHE_HOME says; the parts of the time are named and add up."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 16, "train")))
    home = str(tmp_path / "cache")
    lines = [first_step(tiny_model, rows, tmp_path / f"run-{k}", XDG_CACHE_HOME=home) for k in (1, 2)]
    found = [
        tuple(map(int, re.findall(r"\((\d+) of (\d+) executables from the compile cache\)", line)[0])) for line in lines
    ]
    assert found[0][0] == 0 < found[1][0] <= found[1][1] == found[0][1]
    assert list((tmp_path / "cache" / "zephyr-jax" / "programs").iterdir())
    total, *parts = (float(seconds) for seconds in re.findall(r"([\d.]+) s\b", lines[0]))
    assert set(re.findall(r"(?:: |, )([a-z ]+?) [\d.]+ s", lines[0])) == {
        "import",
        "compile",
        "data",
        "weights",
        "step",
    }
    assert abs(total - sum(parts)) < 0.5


def test_jax_s_own_switch_turns_it_off(tiny_model: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 16, "train")))
    off = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_ENABLE_COMPILATION_CACHE": "false"}
    assert "compile cache not used" in first_step(tiny_model, rows, tmp_path / "run", **off)
    assert not (tmp_path / "cache" / "zephyr-jax").exists()
