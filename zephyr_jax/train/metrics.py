"""Metrics of a run: means over steps with throughput, for all writers and for the step line of the log."""

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from zephyr_jax.config.training_sections import ReportOptions
from zephyr_jax.mean import WeightedMean
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, open_path
from zephyr_jax.train.metric_writers import (
    CloudJsonLines,
    JsonLines,
    MetricWriter,
    TensorBoard,
    WeightsAndBiases,
)
from zephyr_jax.train.metrics_file import FILE
from zephyr_jax.train.throughput import format_duration, mfu, peak_memory_gib

logger = logging.getLogger(__name__)

EXAMPLES = "examples.jsonl"
CLOCK_METRICS = ("tokens_per_second", "targets_per_second", "step_time", "mfu", "peak_memory_gib")
"""Metrics that differ between two runs of the same computation."""


class Reporter:
    """Divides the weighted means of steps, adds throughput, and passes the numbers to all writers and the log.

    Args:
        run: Folder of the run.
        options: Which writers exist.
        config: All settings, for W&B.
        total: Steps of the run.
        start: Step that it resumes from.
        enabled: Whether this process reports.
        interval: Property `interval` of the reporter at step `start`.
        flops_per_token: Of `throughput.flops_per_token`; None: no MFU.
        headline: Metrics of the training method in the step line.
    """

    def __init__(
        self,
        run: Path,
        options: ReportOptions,
        *,
        config: dict[str, Any],
        total: int,
        start: int,
        enabled: bool,
        interval: dict[str, Any] | None = None,
        flops_per_token: float | None = None,
        headline: Sequence[str] = (),
    ):
        run = open_path(run)
        lines = CloudJsonLines if is_remote(run) else JsonLines
        self._enabled, self._flops_per_token, self._headline = enabled, flops_per_token, headline
        # A new run evaluates step 0 again, so lines of an earlier attempt must go.
        self._writers: list[MetricWriter] = [lines(run / FILE, start or -1)] if enabled else []
        if enabled and options.tensorboard:
            self._writers.append(TensorBoard(run / "tensorboard"))
        if enabled and options.wandb_project:
            self._writers.append(WeightsAndBiases(options.wandb_project, run, config, start > 0))
        self._examples = lines(run / EXAMPLES, start) if enabled and options.log_example_ids else None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True, quiet=not enabled),
            disable=not (options.progress_bar and sys.stderr.isatty() and enabled),
        )
        self._task = self._progress.add_task(run.name, total=total, completed=start, metrics="")
        self._progress.start()
        resumed = interval or {"steps": 0, "seconds": 0.0, "sums": {}}
        self._sums = {name: WeightedMean(*pair) for name, pair in resumed["sums"].items()}
        self._total, self._steps, self._seconds = total, int(resumed["steps"]), float(resumed["seconds"])
        self._clock: float | None = time.perf_counter()
        self._compiles = True  # during the first interval: its step time includes that

    def add(self, metrics: Mapping[str, WeightedMean]) -> None:
        """Add the metrics of one finished step to the interval; its mean is divided once, when reported."""
        if not self._steps:
            self._sums = dict(metrics)
        else:  # float64: float32 cannot count the tokens of many steps
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
        """Sums since the last reported step, as JSON, so that a resumed run reports the same; empty right after a report."""
        if not self._steps:
            return {}
        sums = {name: [float(mean.sum), float(mean.weight)] for name, mean in self._sums.items()}
        return {"steps": self._steps, "seconds": self._seconds + self._running(), "sums": sums}

    def train(self, step: int) -> dict[str, float]:
        """Report the means of the interval that ends at `step`, and start a new one. Returns metric -> value."""
        values = {name: float(mean.value) for name, mean in self._sums.items() if name != "targets"}
        seconds = self._seconds + self._running()
        targets = self._sums["targets"]
        values["tokens_per_second"] = float(targets.weight) / seconds
        values["targets_per_second"] = float(targets.sum) / seconds
        values["step_time"] = seconds / self._steps
        values |= self._device_metrics(values["tokens_per_second"])
        self._write(step, values)
        line = step_line(step, self._total, values, jax.device_count(), self._headline, estimate=not self._compiles)
        self._progress.update(self._task, completed=step, metrics=line)
        if self._progress.disable:
            self.info(line)
        self._steps, self._seconds, self._clock, self._compiles = 0, 0.0, time.perf_counter(), False
        return values

    def _device_metrics(self, tokens_per_second: float) -> dict[str, float]:
        """MFU and memory, where known."""
        per_device = tokens_per_second / jax.device_count()
        kind = jax.local_devices()[0].device_kind
        utilization = mfu(per_device, self._flops_per_token, kind) if self._flops_per_token else None
        values = {"mfu": utilization, "peak_memory_gib": peak_memory_gib()}
        return {name: value for name, value in values.items() if value is not None}

    def pause(self) -> None:
        """Stop the throughput clock; the next reported evaluation restarts it."""
        self._seconds, self._clock = self._seconds + self._running(), None

    def _running(self) -> float:
        return 0.0 if self._clock is None else time.perf_counter() - self._clock

    def log_example_ids(self, step: int, ids: Callable[[], list[str]]) -> None:
        """Record the examples of a step before it runs, if requested by the settings."""
        if self._examples:
            self._examples.write(step, {"ids": ids()})

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Report an evaluation; names get the prefix `eval/`."""
        self._write(step, {f"eval/{name}": value for name, value in values.items()})
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items() if name in ("loss", *self._headline))
        self.info(f"step {step}/{self._total} evaluation: {text}")
        self.flush()
        self._clock = time.perf_counter()

    def flush(self) -> None:
        """Make everything reported durable, before a checkpoint refers to it."""
        for writer in self._all_writers():
            writer.flush()

    def info(self, text: str) -> None:
        """Log a line, from the reporting process only."""
        if text and self._enabled:
            logger.info("%s", text)

    def warning(self, text: str) -> None:
        """Log a warning, from the reporting process only."""
        if self._enabled:
            logger.warning("%s", text)

    def close(self) -> None:
        """Close all writers and the progress bar."""
        self._progress.stop()
        for writer in self._all_writers():
            writer.close()

    def _all_writers(self) -> list[MetricWriter]:
        return [*self._writers, *([self._examples] if self._examples else [])]

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for writer in self._writers:
            writer.write(step, values)


def step_line(
    step: int,
    total: int,
    values: Mapping[str, float],
    num_devices: int,
    headline: Sequence[str] = (),
    estimate: bool = True,
) -> str:
    """The log line of a step; metrics that are missing in `values` are left out.

    Args:
        step: Its number.
        total: Steps of the run.
        values: Metrics; rates are those of all devices.
        num_devices: To show rates per device.
        headline: Metrics of the training method that follow the loss.
        estimate: Whether to estimate the remaining time from the step time.
    """
    texts = {
        "loss": "loss {:.4g}",
        **{name: f"{name} {{:.4g}}" for name in headline},
        "learning_rate": "lr {:.1e}",
        "grad_norm": "grad_norm {:.3g}",
        "step_time": "step {:.2f}s",
        "tokens_per_second": "tok/s {:,.0f}",
        "targets_per_second": "(targets {:,.0f})",
        "mfu": "mfu {:.1%}",
        "peak_memory_gib": "mem {:.1f}GiB",
        "padding": "pad {:.1%}",
    }
    parts = [
        text.format(values[name] / num_devices if name.endswith("per_second") else values[name])
        for name, text in texts.items()
        if name in values
    ]
    eta = []
    if estimate and "step_time" in values:
        eta.append(f"eta {format_duration((total - step) * values['step_time'])}")
    return " ".join([f"step {step}/{total}", *parts, *eta])
