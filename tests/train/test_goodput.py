"""Where the time of a run went, over all its starts."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import write_rows
from tests.methods.small import sft_config
from tests.train.test_resume import Killed, kill_after
from zephyr_jax.demo.corpus import conversations
from zephyr_jax.parallel.compile_cache import CompileStats
from zephyr_jax.report.report import REPORT
from zephyr_jax.report.run_record import read_run
from zephyr_jax.train.goodput import ACTIVITIES, FILE, Goodput, read_starts
from zephyr_jax.train_command import train


def test_activities_add_up_to_the_time_that_passed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Law: no second counts twice; what nothing else claims is training. Compilation inside an evaluation is compilation."""
    now, stats = [100.0], CompileStats()
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    goodput = Goodput(tmp_path, 4, stats, {"import": 3.0, "data": 2.0, "weights": 1.0, "step": 9.0})

    def evaluate(compiled: float) -> str:
        now[0] += 5 + compiled
        stats.total_seconds += compiled
        return "result"

    def failing_save() -> None:
        now[0] += 7
        raise OSError

    assert goodput.timed("evaluate", evaluate)(2.0) == "result"
    with pytest.raises(OSError):
        goodput.timed("save", failing_save)()
    now[0] += 20
    goodput.write(7)
    (start,) = read_starts(tmp_path)
    assert start[:3] == (4, 7, 0)
    expected = {"train": 20, "repeat": 0, "import": 3, "data": 2, "weights": 1, "compile": 2, "evaluate": 5, "save": 7}
    assert start.seconds == expected


def test_steps_that_a_restart_does_again_are_counted(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path
) -> None:
    """Killed at step 6 with step 3 saved and step 4 logged: a restart does one step again, and the report says so."""
    rows = write_rows(tmp_path / "chats.jsonl", list(conversations(0, 40, "train")))
    config = sft_config(tiny_model, rows, tmp_path / "run")
    config = replace(config, schedule=replace(config.schedule, save_every=3, log_every=1))
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(Killed):
            train(config)
    train(config)
    run = read_run(tmp_path / "run")
    first, second = run.starts
    assert (first[:3], second[:3]) == ((0, 3, 0), (3, run.total_steps, 1))
    assert run.total_steps > 5
    assert first.seconds["train"] > 0 < second.seconds["repeat"] and first.seconds["repeat"] == 0
    assert all(start.seconds[name] > 0 for start in run.starts for name in ("data", "weights", "compile", "save"))
    page = (tmp_path / "run" / REPORT).read_text()
    assert "2 starts of the run, 1 step done again after a restart" in page


@pytest.mark.parametrize("content", ["", "{", "3", "[3]", "[{}]", '[{"seconds": 1}]', '[{"seconds": {"train": "x"}}]'])
def test_a_damaged_file_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_starts(tmp_path) == []
    Goodput(tmp_path, 0, CompileStats(), {}).write(1)
    (start,) = read_starts(tmp_path)
    assert list(start.seconds) == list(ACTIVITIES)
