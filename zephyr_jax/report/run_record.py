"""What the files of a run hold: provenance, metrics, histograms of its data, bad batches, and the runs that it started from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from zephyr_jax.charts.histogram import Histogram, count_values, histogram_from_json
from zephyr_jax.checkpoint.provenance import Record, chain, read_record
from zephyr_jax.checkpoint.steps import list_steps
from zephyr_jax.data.batch_file import BAD_BATCHES
from zephyr_jax.data.examples import Examples
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.methods.base import Method
from zephyr_jax.methods.registry import METHODS, method_names
from zephyr_jax.storage.cloud import is_remote, split_bucket
from zephyr_jax.storage.files import Path, list_names, open_path, write_atomic
from zephyr_jax.storage.strict_json import parse_json
from zephyr_jax.train.goodput import RunStart, read_starts
from zephyr_jax.train.metrics_file import FILE as METRICS
from zephyr_jax.train.metrics_file import MetricLine, parse_metrics
from zephyr_jax.train.profiler import PROFILE, SUMMARY
from zephyr_jax.train.trace import Shares

HISTOGRAMS = "histograms.json"
_COUNTS = ("rows", "row_share", "token_share")


class RowLoss(NamedTuple):
    """Rows that a run skipped or truncated for one reason."""

    data: str
    """`training` or `evaluation`."""
    outcome: str
    """`skipped` or `truncated`."""
    reason: str
    rows: int
    row_share: float
    token_share: float


@dataclass(frozen=True)
class RunRecord:
    """A training run as its folder describes it."""

    provenance: Record
    metrics: list[MetricLine] = field(default_factory=list)
    """In step order."""
    histograms: dict[str, Histogram] = field(default_factory=dict)
    """`lengths` and, where rows have them, `scores`."""
    last_saved: int = 0
    """Step of the newest checkpoint."""
    bad_batches: tuple[str, ...] = ()
    """File names of the batches saved at anomalous steps."""
    starts: list[RunStart] = field(default_factory=list)
    """The starts of the run, with where their time went."""
    profile: Shares | None = None
    """Where the time of the profiled steps went; None without any."""
    available: bool = False
    """Whether the folder was found; otherwise only `provenance` is known."""

    @property
    def method(self) -> Method:
        """The training method."""
        return METHODS[str(self.provenance.get("made_by"))]

    @property
    def loss_options(self) -> dict[str, Any]:
        """The settings of the loss; empty for a method without any."""
        return self.section(self.method.options) if self.method.options else {}

    @property
    def config(self) -> dict[str, Any]:
        """Every setting."""
        return self.provenance.get("config") or {}

    def section(self, name: str) -> dict[str, Any]:
        """The settings of one section; empty if the record has none."""
        section = self.config.get(name)
        return section if isinstance(section, dict) else {}

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return int(self.provenance.get("steps") or 0)

    def evaluations(self) -> list[MetricLine]:
        """Held-out metrics in step order, without the prefix `eval/`."""
        held_out = [{name[5:]: line[name] for name in line if name.startswith("eval/")} for line in self.metrics]
        return [{"step": line["step"], **values} for line, values in zip(self.metrics, held_out, strict=True) if values]


def row_losses(provenance: Record) -> list[RowLoss]:
    """Skipped and truncated rows of the training and the evaluation data, by reason."""
    losses = []
    for prefix, data in (("data", "training"), ("eval", "evaluation")):
        for outcome in ("skipped", "truncated"):
            reasons = provenance.get(f"{prefix}_{outcome}")
            for reason, counts in reasons.items() if isinstance(reasons, dict) else ():
                values = [counts.get(name) if isinstance(counts, dict) else None for name in _COUNTS]
                rows, *shares = (value if isinstance(value, int | float) and isfinite(value) else 0 for value in values)
                losses.append(RowLoss(data, outcome, str(reason), int(rows), *map(float, shares)))
    return losses


def run_name(provenance: Record) -> str:
    """The method's display name and the last part of the run's path, such as `dSFT (my-run)`."""
    path = PurePath(str(provenance.get("output") or provenance.get("path") or ""))
    method = METHODS.get(str(provenance.get("made_by")))
    return f"{method.title if method else 'base'} ({path.name})"


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder. Raises InputError if it is not one, or if its files are damaged."""
    provenance = read_record(folder) if folder.is_dir() else None
    if provenance is None or provenance.get("made_by") not in METHODS:
        raise InputError(
            f"{folder} is not a training run: expected a provenance.json of {method_names()} in it. Name the output "
            "folder of one of them."
        )
    metrics = folder / METRICS
    return RunRecord(
        provenance=provenance,
        metrics=parse_metrics(metrics.read_bytes().decode(errors="replace")) if metrics.exists() else [],
        histograms=_read_histograms(folder),
        last_saved=(list_steps(folder)[-1:] or [0])[0],
        bad_batches=tuple(list_names(folder / BAD_BATCHES)),
        starts=read_starts(folder),
        profile=_read_profile(folder),
        available=True,
    )


def earlier_runs(run: RunRecord, folder: Path) -> list[RunRecord]:
    """The runs that a run started from, oldest first; complete where their folders are still in place."""
    ancestors = chain(run.provenance)[:-1]
    return [_read_ancestor(record, folder) for record in ancestors if record.get("made_by") in METHODS]


def write_histograms(folder: Path, examples: Examples) -> None:
    """Save histograms of the examples' lengths and, where rows have them, scores."""
    columns = {"lengths": examples.segment_lengths(), "scores": examples.columns.get("scores")}
    histograms = {
        name: asdict(histogram)
        for name, values in columns.items()
        if values is not None
        and (histogram := count_values(dict(zip(examples.segments, np.asarray(values).T, strict=True)))) is not None
    }
    write_atomic(folder / HISTOGRAMS, json.dumps(histograms) + "\n")


def _read_ancestor(provenance: Record, child: Path) -> RunRecord:
    path = str(provenance.get("output") or "")
    other_bucket = is_remote(path) and not (is_remote(child) and split_bucket(path)[0] == split_bucket(child)[0])
    if not path or other_bucket:  # a report must not wait for another network
        return RunRecord(provenance)
    try:
        run = read_run(open_path(path))
    except (InputError, OSError):
        return RunRecord(provenance)
    same_run = all(run.provenance.get(name) == provenance.get(name) for name in ("made_by", "at"))
    return run if same_run else RunRecord(provenance)


def _read_histograms(folder: Path) -> dict[str, Histogram]:
    path = folder / HISTOGRAMS
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, Mapping):
            raise ValueError(f"expected an object, got {truncate_repr(content)}")
        return {str(name): histogram_from_json(histogram) for name, histogram in content.items()}
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}. Delete it; resuming the run writes it again.") from error


def _read_profile(folder: Path) -> Shares | None:
    path = folder / PROFILE / SUMMARY
    if not path.exists():
        return None
    try:
        return Shares.from_json(parse_json(path.read_bytes()))
    except ValueError as error:
        raise InputError(f"cannot read {path}: {error}. Delete it, or profile later steps.") from error
