"""What the files of a run tell: its record, its metrics, how its data are distributed, and the runs that it came from."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from zephyr_jax.checkpoint.provenance import Record, chain, read_record
from zephyr_jax.checkpoint.steps import steps_in
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.data.examples import Examples
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.report.curves import Line, metric_lines
from zephyr_jax.report.histogram import Counts, counted, counts_from
from zephyr_jax.storage.cloud import is_remote, split_bucket
from zephyr_jax.storage.files import Path, list_names, open_path, write_atomic
from zephyr_jax.storage.strict_json import parse_json
from zephyr_jax.train.metrics import FILE as METRICS

HISTOGRAMS = "histograms.json"
_COUNTS = ("rows", "row_share", "token_share")
SICK = "sick"
"""Where a run keeps the batches of sick steps."""
PAPER_NAMES = {"sft": "dSFT", "dpo": "dDPO"}
"""What trains -> what the paper calls it."""
CONFIGS = {"sft": SftConfig, "dpo": DpoConfig}
"""What trains -> the type of its settings."""
_KINDS: dict[str, type] = {"config": dict, "versions": dict, "resumed": list, "steps": int, "processes": int}


class LostRows(NamedTuple):
    """Rows that a run did not use, or not whole, for one reason."""

    source: str
    """`training` or `evaluation`."""
    what: str
    """`skipped` or `truncated`."""
    reason: str
    rows: int
    row_share: float
    token_share: float


@dataclass(frozen=True)
class Stage:
    """A run, as its folder tells."""

    record: Record
    lines: list[Line] = field(default_factory=list)
    """Of its metrics, by step."""
    histograms: dict[str, Counts] = field(default_factory=dict)
    """`lengths` and, where rows carry them, `scores`."""
    saved: int = 0
    """The newest saved step."""
    sick: tuple[str, ...] = ()
    """Names of the batches that were kept of sick steps."""
    here: bool = False
    """Whether its folder was found; otherwise there is nothing but its record."""

    @property
    def verb(self) -> str:
        """`sft` or `dpo`."""
        return str(self.record.get("made_by"))

    @property
    def config(self) -> dict[str, Any]:
        """Every setting."""
        return self.record.get("config") or {}

    def section(self, name: str) -> dict[str, Any]:
        """The settings of one section."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def total(self) -> int:
        """Steps from its beginning to its end."""
        return int(self.record.get("steps") or 0)

    def lost_rows(self) -> list[LostRows]:
        """What was skipped and truncated of the training and the evaluation rows."""
        return lost_rows(self.record)

    def evaluations(self) -> list[Line]:
        """The held-out numbers by step; `eval/` is taken off their names."""
        held_out = [{name[5:]: line[name] for name in line if name.startswith("eval/")} for line in self.lines]
        return [{"step": line["step"], **each} for line, each in zip(self.lines, held_out, strict=True) if each]


def lost_rows(record: Record) -> list[LostRows]:
    """What a record holds of skipped and truncated rows; nothing where it was written by an earlier version."""
    found = []
    for prefix, source in (("data", "training"), ("eval", "evaluation")):
        for what in ("skipped", "truncated"):
            reasons = record.get(f"{prefix}_{what}")
            for reason, counts in reasons.items() if isinstance(reasons, dict) else ():
                values = [counts.get(name) if isinstance(counts, dict) else None for name in _COUNTS]
                rows, *shares = (value if isinstance(value, int | float) else 0 for value in values)
                found.append(LostRows(source, what, str(reason), int(rows), *map(float, shares)))
    return found


def called(record: Record) -> str:
    """A stage's name for people: what the paper calls it, and the last part of its path."""
    path = PurePath(str(record.get("output") or record.get("path") or ""))
    return f"{PAPER_NAMES.get(str(record.get('made_by')), 'base')} ({path.name})"


def read_stage(folder: Path) -> Stage:
    """All that a run's folder tells. Raises InputError where it is no run of ours."""
    record = read_record(folder) if folder.is_dir() else None
    if record is None or record.get("made_by") not in PAPER_NAMES:
        raise InputError(
            f"{folder} is no run of ours: it has no provenance.json of `sft` or `dpo`. Name the folder that one of them wrote."
        )
    _check_record(record, folder)
    metrics = folder / METRICS
    lines = metric_lines(metrics.read_bytes().decode(errors="replace")) if metrics.exists() else []
    newest = steps_in(folder)[-1:] or [0]
    return Stage(record, lines, _read_histograms(folder), newest[0], tuple(list_names(folder / SICK)), here=True)


def _check_record(record: Record, folder: Path) -> None:
    """Raise InputError for one whose parts are of other kinds than a run writes, its parents' too."""
    link: Any = record
    while link:
        parts = (
            {"its parent": (link, dict)}
            if not isinstance(link, dict)
            else {name: (link.get(name) or kind(), kind) for name, kind in _KINDS.items()}
        )
        wrong = [
            f"{name} is {truncate_repr(value)}" for name, (value, kind) in parts.items() if not isinstance(value, kind)
        ]
        if wrong:
            raise InputError(
                f"{folder}/provenance.json is damaged: {join_items(wrong)}. Put back the file that the run wrote."
            )
        link = link.get("parent")


def earlier_stages(stage: Stage, folder: Path) -> list[Stage]:
    """The runs that a run came from, oldest first: with all that they tell where they still lie where they were made."""
    behind = [record for record in chain(stage.record)[:-1] if record.get("made_by") in PAPER_NAMES]
    return [_found_again(record, folder) for record in behind]


def _found_again(record: Record, child: Path) -> Stage:
    where = str(record.get("output") or "")
    asks = is_remote(where) and not (is_remote(child) and split_bucket(where)[0] == split_bucket(child)[0])
    if not where or asks:  # nobody else is asked over a network
        return Stage(record)
    there = open_path(where)
    try:
        found = read_stage(there)
    except (InputError, OSError):
        return Stage(record)
    same = all(found.record.get(name) == record.get(name) for name in ("made_by", "at"))
    return found if same else Stage(record)


def write_histograms(folder: Path, examples: Examples) -> None:
    """Count the examples' lengths, and their scores where rows carry some, and keep the counts in the run's folder."""
    sides = ("chosen", "rejected") if examples.segments_per_example == 2 else ("conversations",)
    values = {"lengths": examples.segment_lengths(), "scores": examples.scores}
    found = {
        name: counts
        for name, each in values.items()
        if each is not None and (counts := counted(dict(zip(sides, np.asarray(each).T, strict=True))))
    }
    content = {name: asdict(counts) for name, counts in found.items()}
    write_atomic(folder / HISTOGRAMS, json.dumps(content) + "\n")


def _read_histograms(folder: Path) -> dict[str, Counts]:
    path = folder / HISTOGRAMS
    if not path.exists():
        return {}
    try:
        content = parse_json(path.read_bytes())
        if not isinstance(content, Mapping):
            raise ValueError("it holds no object")
        return {str(name): counts_from(each) for name, each in content.items()}
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}. Delete it; the run's next start makes it again.") from error
