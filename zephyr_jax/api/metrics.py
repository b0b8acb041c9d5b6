"""The metrics of a run as rows and columns: `read_metrics`. Never imports jax."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zephyr_jax.errors import InputError, did_you_mean
from zephyr_jax.storage.cloud import translate_cloud_errors
from zephyr_jax.storage.files import open_path
from zephyr_jax.train.metrics_file import FILE, parse_metrics


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of a run; names as in `metrics.jsonl`, evaluations with the prefix `eval/`."""

    rows: tuple[Mapping[str, float], ...]
    """One mapping per line, in step order: `step` and the metrics logged at it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all columns in the order of their first line; `step` is one of them."""
        return tuple(dict.fromkeys(name for row in self.rows for name in row))

    def column(self, name: str) -> np.ndarray:
        """float64 [rows]: a metric by row, NaN in rows without it. Raises InputError for an unknown name."""
        self._check(name)
        return np.array([row.get(name, np.nan) for row in self.rows], np.float64)

    def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """int64 [n] steps and float64 [n] values of the rows that have a metric. Raises InputError for an unknown name."""
        self._check(name)
        points = [(row["step"], row[name]) for row in self.rows if name in row]
        steps, values = np.array(points, np.float64).T
        return steps.astype(np.int64), values

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise InputError(f"{name!r} is not a metric of this run.{did_you_mean(name, self.names)}")


@translate_cloud_errors()
def read_metrics(run: str | os.PathLike[str]) -> RunMetrics:
    """Read the metrics of a run, finished or not. Imports no JAX, so that a run on the same machine keeps its accelerator.

    Args:
        run: The output folder of `sft` or `dpo`.

    Returns:
        The metrics in step order; a line that was cut off by a kill is skipped.

    Raises:
        InputError: The folder has no metrics.jsonl.
    """
    path = open_path(os.path.expanduser(run)) / FILE
    if not path.is_file():
        raise InputError(f"{path} does not exist: expected the output folder of `sft` or `dpo`.")
    return RunMetrics(tuple(parse_metrics(path.read_bytes().decode(errors="replace"))))
