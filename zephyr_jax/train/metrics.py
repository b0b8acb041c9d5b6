"""Metrics out: one JSON line per report always; TensorBoard and Weights & Biases on request; a line for people.

Nothing can be appended to an object on Cloud Storage: there metrics.jsonl is written whole at each evaluation, checkpoint and
minute, and TensorBoard's files are copied from this machine's disk then.
"""

import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tensorboardX import SummaryWriter

from zephyr_jax.config.training_sections import ReportOptions
from zephyr_jax.errors import InputError
from zephyr_jax.mean import WeightedMean
from zephyr_jax.storage.files import Path, is_remote, open_path, write_atomic

FILE = "metrics.jsonl"
EXAMPLES = "examples.jsonl"
WANDB_ID = "wandb-id.txt"
"""In a run's folder: the id of its run at Weights & Biases."""
_MINUTE = 60
_SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "tokens_per_second", "targets_per_second", "padding")


class Sink(Protocol):
    """Something that takes numbers by name."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""

    def flush(self) -> None:
        """Bring everything to where it stays."""

    def close(self) -> None:
        """Flush."""


class JsonLines:
    """`metrics.jsonl`; on resume, lines beyond the restored step are removed, so each step stands there once."""

    def __init__(self, path: Path, resumed_at: int):
        write_atomic(path, _kept(path, resumed_at))
        self._path = pathlib.Path(path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Nothing to do: each line is on disk already."""

    def close(self) -> None:
        """Nothing to do."""


class CloudJsonLines:
    """The same on Cloud Storage, kept in memory and written whole."""

    def __init__(self, path: Path, resumed_at: int):
        self._path, self._text = path, _kept(path, resumed_at)
        self._written = None if path.exists() else ""
        self.flush()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Keep one line."""
        self._text += json.dumps({"step": step, **values}) + "\n"
        if time.monotonic() - self._clock > _MINUTE:
            self.flush()

    def flush(self) -> None:
        """Write the object anew if there is anything new."""
        if self._text != self._written:
            write_atomic(self._path, self._text)
        self._written, self._clock = self._text, time.monotonic()

    def close(self) -> None:
        """Write what is new."""
        self.flush()


def _kept(path: Path, resumed_at: int) -> str:
    lines = path.read_text().splitlines() if path.exists() else []
    return "".join(f"{line}\n" for line in lines if _step_of(line) <= resumed_at)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut by a kill


def last_evaluation(run: Path | None) -> dict[str, float]:
    """The numbers of a run's last evaluation, without the prefix `eval/`; empty where there are none."""
    path = run / FILE if run else None
    for line in reversed(path.read_text().splitlines() if path and path.exists() else []):
        values = json.loads(line) if _step_of(line) < float("inf") else {}
        found = {name.removeprefix("eval/"): value for name, value in values.items() if name.startswith("eval/")}
        if found:
            return found
    return {}


class TensorBoard:
    """Event files, written on this machine's disk and copied when the run is on Cloud Storage."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._scratch = tempfile.TemporaryDirectory(prefix="zephyr-jax-") if is_remote(folder) else None
        self._writer = SummaryWriter(self._scratch.name if self._scratch else str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flush the file, and copy it."""
        self._writer.flush()
        self._copy()

    def _copy(self) -> None:
        for file in pathlib.Path(self._scratch.name).iterdir() if self._scratch else ():
            write_atomic(self._folder / file.name, file.read_bytes())

    def close(self) -> None:
        """Flush the file, and copy it for the last time."""
        self._writer.close()
        self._copy()
        if self._scratch:
            self._scratch.cleanup()


class WeightsAndBiases:
    """A run in a W&B project. Its id is kept in the run's folder, and a resumed run goes on under it."""

    def __init__(self, project: str, run: Path, config: dict[str, Any], resumes: bool):
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                "report.wandb_project is set, but the package `wandb` is not installed. Install the extra: "
                "pip install 'zephyr-jax[wandb]', or unset it."
            ) from error
        self._run = wandb.init(
            project=project, name=run.name, id=_wandb_id(run, resumes), resume="allow", config=config
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Nothing to do: wandb sends by itself."""

    def close(self) -> None:
        """End the run."""
        self._run.finish()


def _wandb_id(run: Path, resumes: bool) -> str:
    """The id in the run's folder; made where there is none. Runs resumed from earlier versions have their name as id."""
    file = run / WANDB_ID
    if not file.exists():
        write_atomic(file, (run.name if resumes else uuid4().hex[:16]) + "\n")
    return file.read_text().strip()


class Reporter:
    """Turns the weighted means of steps into numbers, adds speed, and hands them to every sink and to the screen.

    Args:
        run: Folder of the run.
        options: Which sinks there are.
        config: All settings, for W&B.
        total: Steps of the run.
        start: Step that it resumes from.
        writes: Whether this process reports.
        interval: `interval` of the reporter that stood at `start`.
    """

    def __init__(
        self,
        run: Path,
        options: ReportOptions,
        config: dict[str, Any],
        total: int,
        start: int,
        writes: bool,
        interval: dict[str, Any] | None = None,
    ):
        run = open_path(run)
        lines = CloudJsonLines if is_remote(run) else JsonLines
        # A run that starts afresh evaluates step 0 again, so nothing of an earlier try may stay.
        self._sinks: list[Sink] = [lines(run / FILE, start or -1)] if writes else []
        if writes and options.tensorboard:
            self._sinks.append(TensorBoard(run / "tensorboard"))
        if writes and options.wandb_project:
            self._sinks.append(WeightsAndBiases(options.wandb_project, run, config, start > 0))
        self._examples = lines(run / EXAMPLES, start) if writes and options.log_example_ids else None
        self._console = Console(stderr=True, quiet=not writes)
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"),
            console=self._console, disable=not (options.progress_bar and sys.stderr.isatty() and writes),
        )  # fmt: skip
        self._task = self._progress.add_task(run.name, total=total, completed=start, shown="")
        self._progress.start()
        begun = interval or {"steps": 0, "seconds": 0.0, "sums": {}}
        self._sums = {name: WeightedMean(*pair) for name, pair in begun["sums"].items()}
        self._total, self._steps, self._seconds = total, int(begun["steps"]), float(begun["seconds"])
        self._clock: float | None = time.perf_counter()

    def add(self, metrics: Mapping[str, WeightedMean]) -> None:
        """Take the metrics of one finished step into those of the next line; a mean over steps is divided once."""
        if not self._steps:
            self._sums = dict(metrics)
        else:  # float64: the tokens of many steps are more than float32 counts
            pairs = {name: (self._sums[name], mean) for name, mean in metrics.items()}
            self._sums = {
                name: WeightedMean(
                    np.float64(old.sum) + np.float64(new.sum), np.float64(old.weight) + np.float64(new.weight)
                )
                for name, (old, new) in pairs.items()
            }
        self._steps += 1

    @property
    def interval(self) -> dict[str, Any]:
        """What was added since the last line, as JSON, so that a resumed run writes the same next line; may be empty."""
        if not self._steps:
            return {}
        sums = {name: [float(mean.sum), float(mean.weight)] for name, mean in self._sums.items()}
        return {"steps": self._steps, "seconds": self._seconds + self._running(), "sums": sums}

    def train(self, step: int) -> dict[str, float]:
        """Report the means over all that was added since the last line, at `step`. Returns name -> value."""
        values = {name: float(mean.value) for name, mean in self._sums.items() if name != "targets"}
        seconds = self._seconds + self._running()
        targets = self._sums["targets"]
        values["tokens_per_second"] = float(targets.weight) / seconds
        values["targets_per_second"] = float(targets.sum) / seconds
        self._write(step, values)
        self._show(step, values, seconds / self._steps)
        self._steps, self._seconds, self._clock = 0, 0.0, time.perf_counter()
        return values

    def pause(self) -> None:
        """Stop the clock of the speed; the next evaluation that is reported starts it."""
        self._seconds, self._clock = self._seconds + self._running(), None

    def _running(self) -> float:
        return 0.0 if self._clock is None else time.perf_counter() - self._clock

    def drawn(self, step: int, ids: Callable[[], list[str]]) -> None:
        """Tell which examples a step is about to see, where that is asked for."""
        if self._examples:
            self._examples.write(step, {"ids": ids()})

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Report an evaluation; names get the prefix `eval/`."""
        self._write(step, {f"eval/{name}": value for name, value in values.items()})
        text = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if not name.startswith("logps"))
        self._console.print(f"step {step}/{self._total} evaluation: {text}", highlight=False, soft_wrap=True)
        self.flush()
        self._clock = time.perf_counter()

    def flush(self) -> None:
        """Bring what was reported to where it stays, before a checkpoint says that it happened."""
        for sink in self._all():
            sink.flush()

    def note(self, text: str) -> None:
        """A line for people."""
        if text:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def close(self) -> None:
        """Flush every sink and end the progress bar."""
        self._progress.stop()
        for sink in self._all():
            sink.close()

    def _all(self) -> list[Sink]:
        return [*self._sinks, *([self._examples] if self._examples else [])]

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.write(step, values)

    def _show(self, step: int, values: Mapping[str, float], seconds_per_step: float) -> None:
        shown = "  ".join(f"{name} {_number(name, values[name])}" for name in _SHOWN if name in values)
        self._progress.update(self._task, completed=step, shown=shown)
        if self._progress.disable:
            left = (self._total - step) * seconds_per_step
            self.note(f"step {step}/{self._total}  {shown}  ETA {left:,.0f} s")


def _number(name: str, value: float) -> str:
    if name.endswith("per_second"):
        return f"{value:,.0f}"
    return f"{value:.1%}" if name == "padding" else f"{value:.4g}"
