"""Where the time of a run went, over all its starts: training, and everything that is not. Written by process 0 at every save."""

import json
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax

from zephyr_jax.parallel.compile_cache import CompileStats
from zephyr_jax.storage.files import Path, write_atomic
from zephyr_jax.storage.strict_json import parse_json
from zephyr_jax.train.metrics_file import FILE as METRICS
from zephyr_jax.train.metrics_file import parse_metrics

FILE = "goodput.json"

type Activity = Literal["train", "repeat", "import", "data", "weights", "compile", "evaluate", "save"]
"""`repeat`: training steps that a restart does again. `data`, `weights`: before the first step. `save`: while training waits."""
ACTIVITIES: tuple[str, ...] = get_args(Activity.__value__)


class RunStart(NamedTuple):
    """One start of a run."""

    first_step: int
    """Steps that were completed before it."""
    last_step: int
    """Steps completed when it was written for the last time."""
    repeated_steps: int
    """Steps that an earlier start had computed, and that were lost with it."""
    seconds: dict[str, float]
    """By `Activity`."""


class Goodput:
    """The clock of this start of a run.

    Args:
        folder: Folder of the run.
        start: Steps completed before.
        compile_stats: Of this start.
        before: Seconds before the first step by phase, without compilation, as `startup.phases` returns them.
    """

    def __init__(self, folder: Path, start: int, compile_stats: CompileStats, before: dict[str, float]):
        self._file, self._start, self._stats = folder / FILE, start, compile_stats
        self._seconds = {name: before.get(name, 0.0) for name in ("import", "data", "weights")}
        self._clock, self._compiled = time.perf_counter(), compile_stats.total_seconds
        self._earlier = read_starts(folder)
        self._lost_steps, self._lost_seconds = _lost(folder, start)

    def timed(self, activity: Activity, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose duration counts as this activity, without compilation inside it."""

        def call(*arguments: Any) -> Any:
            begun, compiled = time.perf_counter(), self._stats.total_seconds
            try:
                return function(*arguments)
            finally:
                spent = time.perf_counter() - begun - (self._stats.total_seconds - compiled)
                self._seconds[activity] = self._seconds.get(activity, 0.0) + max(0.0, spent)

        return call

    def write(self, step: int) -> None:
        """Write all starts up to `step` completed steps."""
        if jax.process_index():
            return
        seconds = {**self._seconds, "compile": self._stats.total_seconds}
        inside = sum(self._seconds.get(name, 0.0) for name in ("evaluate", "save"))
        trained = time.perf_counter() - self._clock - inside - (self._stats.total_seconds - self._compiled)
        repeat = min(self._lost_seconds, max(0.0, trained))
        seconds |= {"train": max(0.0, trained - repeat), "repeat": repeat}
        starts = [*self._earlier, RunStart(self._start, step, self._lost_steps, seconds)]
        write_atomic(self._file, json.dumps([start._asdict() for start in starts]) + "\n")


def read_starts(folder: Path) -> list[RunStart]:
    """The starts of a run, oldest first; empty without a file, or with a damaged one: training must not stop for it."""
    file = folder / FILE
    try:
        return [_run_start(content) for content in parse_json(file.read_bytes())] if file.exists() else []
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return []


def _run_start(content: Any) -> RunStart:
    seconds = {name: float(content["seconds"].get(name, 0.0)) for name in ACTIVITIES}
    first, last, repeated = (int(content[name]) for name in ("first_step", "last_step", "repeated_steps"))
    return RunStart(first, last, repeated, seconds)


def _lost(folder: Path, start: int) -> tuple[int, float]:
    """Steps after `start` that an earlier process has logged, and their seconds."""
    file = folder / METRICS
    lines = parse_metrics(file.read_bytes().decode(errors="replace")) if file.exists() else []
    steps, seconds, previous = 0, 0.0, start
    for line in lines:
        if line["step"] > previous and "step_time" in line:
            seconds += (line["step"] - previous) * line["step_time"]
            steps += int(line["step"] - previous)
            previous = int(line["step"])
    return steps, seconds
