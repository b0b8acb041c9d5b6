"""Writers of metrics: metrics.jsonl, TensorBoard and Weights & Biases.

Objects on Cloud Storage cannot be appended to: there metrics.jsonl is rewritten at each evaluation, checkpoint and minute, and
TensorBoard's files are copied from the local disk at the same times.
"""

import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import uuid4

from zephyr_jax.errors import InputError
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, write_atomic
from zephyr_jax.train.metrics_file import FILE

WANDB_ID = "wandb-id.txt"
"""File of a run with the id of its Weights & Biases run."""
_FLUSH_SECONDS = 60


class MetricWriter(Protocol):
    """Writes named numbers of steps."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one step."""

    def flush(self) -> None:
        """Make everything recorded durable."""

    def close(self) -> None:
        """Flush and release resources."""


class JsonLines:
    """A JSON Lines file with one line per step. On resume, lines after the restored step are removed."""

    def __init__(self, path: Path, resumed_at: int):
        write_atomic(path, _lines_until(path, resumed_at))
        self._path = pathlib.Path(path)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def flush(self) -> None:
        """Each line is on disk already."""

    def close(self) -> None:
        """Each line is on disk already."""


class CloudJsonLines:
    """The same on Cloud Storage: kept in memory and rewritten as a whole."""

    def __init__(self, path: Path, resumed_at: int):
        self._path, self._text = path, _lines_until(path, resumed_at)
        self._written = None if path.exists() else ""
        self.flush()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Add one line; flush when the last flush is a minute old."""
        self._text += json.dumps({"step": step, **values}) + "\n"
        if time.monotonic() - self._flushed_at > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Rewrite the object if there are new lines."""
        if self._text != self._written:
            write_atomic(self._path, self._text)
        self._written, self._flushed_at = self._text, time.monotonic()

    def close(self) -> None:
        """Write new lines."""
        self.flush()


def _lines_until(path: Path, step: int) -> str:
    lines = path.read_text().splitlines() if path.exists() else []
    return "".join(f"{line}\n" for line in lines if _step_of(line) <= step)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line that a kill cut off


class TensorBoard:
    """Event files, written to the local disk and copied when the run is on Cloud Storage."""

    def __init__(self, folder: Path):
        # Its import takes a seventh of the start of a command, for Google's client of Cloud Storage.
        from tensorboardX import SummaryWriter

        self._folder = folder
        self._scratch = tempfile.TemporaryDirectory(prefix="zephyr-jax-") if is_remote(folder) else None
        self._writer = SummaryWriter(self._scratch.name if self._scratch else str(folder))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Flush the file and copy it."""
        self._writer.flush()
        self._copy()

    def _copy(self) -> None:
        for file in pathlib.Path(self._scratch.name).iterdir() if self._scratch else ():
            write_atomic(self._folder / file.name, file.read_bytes())

    def close(self) -> None:
        """Close the file and copy it."""
        self._writer.close()
        self._copy()
        if self._scratch:
            self._scratch.cleanup()


class WeightsAndBiases:
    """A run in a W&B project. Its id is kept in the run's folder, so that a resumed run continues it."""

    def __init__(self, project: str, run: Path, config: dict[str, Any], resumes: bool):
        try:
            import wandb
        except ImportError as error:
            raise InputError(
                "report.wandb_project is set, but the package `wandb` is not installed. Install the extra (in a clone "
                "`uv sync --extra wandb`, else pip install 'zephyr-jax[wandb]'), or unset it."
            ) from error
        self._run = wandb.init(
            project=project, name=run.name, id=_wandb_id(run, resumes), resume="allow", config=config
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values."""
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """wandb uploads in the background."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


def _wandb_id(run: Path, resumes: bool) -> str:
    """The id in the run's folder, created if missing. Runs of earlier versions, when resumed, have their name as id."""
    file = run / WANDB_ID
    if not file.exists():
        write_atomic(file, (run.name if resumes else uuid4().hex[:16]) + "\n")
    return str(file.read_text()).strip()


def last_evaluation(run: Path | None, step: int | None = None) -> dict[str, float]:
    """Metrics of a run's last evaluation, without the prefix `eval/`; empty when there was none.

    Args:
        run: Folder of the run.
        step: Ignore evaluations after this step.
    """
    path, last = run / FILE if run else None, sys.maxsize if step is None else step
    for line in reversed(path.read_text().splitlines() if path and path.exists() else []):
        values = json.loads(line) if _step_of(line) <= last else {}
        metrics = {name.removeprefix("eval/"): value for name, value in values.items() if name.startswith("eval/")}
        if metrics:
            return metrics
    return {}
