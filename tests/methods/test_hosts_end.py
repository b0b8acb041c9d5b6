"""Several real processes over loopback end together, whatever ends one of them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import write_rows
from tests.methods.hosts import PATIENCE, curve, processes, run_all, sft_words
from zephyr_jax.demo.corpus import conversations


@pytest.mark.parametrize("guilty", [0, 1])
def test_an_error_on_one_host_ends_all_with_its_message(tiny_model: Path, tmp_path: Path, guilty: int) -> None:
    """Whether the one that keeps the coordinator or another: no traceback, no hang, the guilty one's words everywhere."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    words = [sft_words(tiny_model, rows, tmp_path / "run") for _ in range(2)]
    words[guilty] += ["--data.path", str(tmp_path / "nowhere.jsonl")]
    with processes(2, words, tmp_path) as started:
        said = [process.communicate(timeout=PATIENCE)[1] for process in started]
        codes = [process.returncode for process in started]
    assert codes[guilty] == 2
    assert codes[1 - guilty] == 4
    assert re.search(rf"process {guilty} stopped: error: .*nowhere.jsonl", said[1 - guilty])
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "run").exists()


def test_a_killed_host_ends_the_others_and_a_restart_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of training: the other process is gone within a minute; the same command finishes the run."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    words = [*sft_words(tiny_model, rows, tmp_path / "run", steps=8), "--schedule.save_every", "2"]
    with processes(2, [words] * 2, tmp_path) as (first, second):
        assert first.stderr is not None
        for line in first.stderr:
            if " step 4/" in line:
                break
        second.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
        assert first.returncode not in (0, None)
    seen = len(curve(tmp_path / "run"))
    assert 4 <= seen < 8
    run_all(2, words, tmp_path)
    assert [step for step, _, _ in curve(tmp_path / "run")] == list(range(1, 9))


def test_an_export_that_fails_on_the_writer_ends_all(tiny_model: Path, tmp_path: Path) -> None:
    """Process 0 may not write: the other says so and does not wait for ever."""
    (tmp_path / "hf").mkdir()
    words = f"export --model.path {tiny_model} --output {tmp_path}/hf".split()
    with processes(2, [words] * 2, tmp_path) as started:
        said = [process.communicate(timeout=PATIENCE)[1] for process in started]
        codes = [process.returncode for process in started]
    assert codes == [2, 4]
    assert "process 0 stopped: error: " in said[1]
    assert "hf already exists" in said[1]


def test_a_coordinator_that_is_not_there_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """Numbers that are none: refused in one paragraph."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    environment = {**os.environ, "JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two"}
    command = [sys.executable, "-m", "zephyr_jax", *sft_words(tiny_model, rows, tmp_path / "run")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert said.returncode == 2
    assert "JAX_NUM_PROCESSES: expected an integer, got 'two'" in said.stderr


def test_processes_that_are_asked_to_stop_save_one_step_together_and_go_on(tiny_model: Path, tmp_path: Path) -> None:
    """SIGTERM to one of two: both leave with code 75 after the same step; the same command then ends the run."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 37, "train")))
    words = sft_words(tiny_model, rows, tmp_path / "run", steps=8)
    with processes(2, [words] * 2, tmp_path) as (first, second):
        assert first.stderr is not None
        for line in first.stderr:
            if " step 3/" in line:
                break
        second.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=60)[1] for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [75, 75]
    stopped = [re.findall(r"saved step (\d+) of 8", each) for each in said]
    assert stopped[0] == stopped[1]
    assert 3 <= int(stopped[0][0]) < 8
    run_all(2, words, tmp_path)
    assert [step for step, _, _ in curve(tmp_path / "run")] == list(range(1, 9))
