"""The pipeline of every preparation: read raw rows, filter, sort, drop duplicates, write splits and the data card."""

import errno
import json
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from tempfile import gettempdir
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.yaml_file import differences, to_dict
from zephyr_jax.data.row_reader import SourceRow
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.prepare.card import DataCard, Summary, escape_text, samples_markdown
from zephyr_jax.prepare.raw import REJECTED_FILE, ignored_names, raw_rows
from zephyr_jax.prepare.rejections import RejectionLog
from zephyr_jax.prepare.sorted_rows import SortedRows
from zephyr_jax.prepare.splits import SplitWriter
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import (
    Path,
    check_folder_creatable,
    list_names,
    open_path,
    remove_stale_scratch,
    write_atomic,
)

logger = logging.getLogger(__name__)

RECORD = "prepared.json"
_OUTPUTS = ("README.md", "card.svg", "samples.md", REJECTED_FILE)
_LOG_EVERY = 100_000  # rows


class PrepareConfig(Protocol):
    """Settings that every preparation has."""

    @property
    def data(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def output(self) -> str: ...
    @property
    def num_samples(self) -> int: ...


class Steps(Protocol):
    """The steps of one kind of preparation."""

    @property
    def splits(self) -> Sequence[str]: ...
    @property
    def schema(self) -> pa.Schema: ...

    def parse(self, row: SourceRow) -> tuple[str, dict[str, Any]]:
        """Convert a raw row to a sort key, which duplicates share, and content with a `prompt`. Raises SkippedRow."""

    def make_rows(self, content: dict[str, Any], location: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """Yield (split, row) of a parsed row; called in sorted order after all rows are parsed. Raises SkippedRow."""

    def summary(self) -> Summary:
        """What to report about the rows that were made."""


class Measurements:
    """Numbers by name, one of each kept row, in eight bytes each."""

    def __init__(self, *names: str):
        self._values = {name: array("d") for name in names}

    def add(self, **values: float) -> None:
        """Add a number to some of the names."""
        for name, value in values.items():
            self._values[name].append(value)

    def __getitem__(self, name: str) -> np.ndarray:
        """float64 [N]."""
        return np.array(self._values[name])


def run_preparation(
    name: str,
    config: PrepareConfig,
    command: str,
    make_steps: Callable[[RejectionLog], Steps],
    unique: bool,
    max_rows: int | None = None,
) -> str:
    """Write splits, data card, rejected.jsonl and samples; the same command writes the same files.

    Args:
        name: The command, for the record.
        config: Its settings.
        command: The command line, for the card.
        make_steps: Builds the steps with the log that they report to.
        unique: Whether to keep only the first usable row of each key.
        max_rows: Keep at most this many rows; None for all.

    Returns:
        A summary in a few lines.

    Raises:
        InputError: The output cannot be created, holds something else, or is the input too; or a disk is full.
    """
    out = _open_output(name, config)
    try:
        with RejectionLog(config.num_samples) as log, SortedRows() as rows:
            steps = make_steps(log)
            _read(config, steps, rows, log)
            out.mkdir(parents=True, exist_ok=True)
            remove_stale_scratch(out)
            with SplitWriter(out, steps.splits, steps.schema) as writer:
                log.require_rows(_write(steps, rows, log, writer, unique, max_rows), config.data)
                _write_record(out, name, config, {"finished": False})
            settings = settings_json(config)
            card = DataCard(steps.summary(), command, writer.counts, steps.schema, log, settings)
            return _write_card(out, name, config, card)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"No space left on the disk of {out} or of {gettempdir()}, where rows lie until they are sorted. Free some space, "
            "or set TMPDIR to a folder on a larger disk; splits that were complete before are unchanged."
        ) from error


def _read(config: PrepareConfig, steps: Steps, rows: SortedRows, log: RejectionLog) -> None:
    log.ignored_names = ignored_names(config.data)
    for row in raw_rows(config.data, config.split, config.revision):
        log.rows_read += 1
        try:
            rows.add(*steps.parse(row), row.location)
        except SkippedRow as error:
            log.skip(row.location, error, row.content)
        if not log.rows_read % _LOG_EVERY:
            logger.info("%s rows read, %s skipped", f"{log.rows_read:,}", f"{log.skipped_rows.total():,}")
    log.require_rows(rows.count, config.data)


def _write(
    steps: Steps, rows: SortedRows, log: RejectionLog, writer: SplitWriter, unique: bool, max_rows: int | None
) -> int:
    """Write rows to their splits; the number of parsed rows that were used."""
    used, last_key = 0, ""
    for key, content, location in rows:
        try:
            if unique and key == last_key:
                raise SkippedRow("it is a duplicate", content["prompt"])
            if used == max_rows:
                raise SkippedRow("it is outside the subset", content["prompt"])
            made = list(steps.make_rows(content, location))
        except SkippedRow as error:
            log.skip(location, error, content)
            continue
        used, last_key = used + 1, key
        for split, row in made:
            writer.add(split, row)
    return used


def _write_card(out: Path, name: str, config: PrepareConfig, card: DataCard) -> str:
    log = card.rejections
    log.copy_to(out / REJECTED_FILE)
    write_atomic(out / "samples.md", samples_markdown(log.samples()))
    write_atomic(out / "card.svg", card.picture())
    write_atomic(out / "README.md", card.markdown())
    statistics = dict(card.summary.statistics)
    _write_record(
        out, name, config, {"finished": True, "splits": card.splits, **log.record(), "statistics": statistics}
    )
    _, *skipped = card.outcomes().items()
    lines = [f"{log.rows_read:,} rows read, {card.summary.kept:,} kept"]
    lines += [f"  {count:,} skipped: {reason}" for reason, count in skipped]
    lines += [f"  {count:,} answers skipped: {reason}" for reason, count in sorted(log.skipped_answers.items())]
    lines += [f"  {count:,} repaired: {kind}" for kind, count in sorted(log.repairs.items())]
    if log.ignored_names:
        lines.append(f"  ignored in {config.data}: {escape_text(join_items(log.ignored_names, 6))}")
    lines.append(", ".join(f"{split} {count:,}" for split, count in card.splits.items()))
    return "\n".join([*lines, f"data card: {out / 'README.md'}"])


def _write_record(out: Path, name: str, config: PrepareConfig, facts: dict[str, Any]) -> None:
    record = {"command": name, "settings": settings_json(config), **facts}
    write_atomic(out / RECORD, json.dumps(record, indent=2) + "\n")


def format_share(part: float, total: float) -> str:
    """A share in percent; `-` of nothing."""
    return f"{part / total:.1%}" if total else "-"


def settings_json(config: PrepareConfig) -> dict[str, Any]:
    """All settings as plain JSON values."""
    settings: dict[str, Any] = json.loads(json.dumps(to_dict(config)))
    return settings


def _open_output(name: str, config: PrepareConfig) -> Path:
    """The output folder. Raises InputError unless it is empty or holds rows of the same command and settings."""
    check_folder_creatable(config.output)
    out = open_path(config.output)
    if not is_remote(config.output) and os.path.realpath(config.output) == os.path.realpath(config.data):
        raise InputError(
            f"`output` and `data` are both {config.output}. Choose another output: raw rows are not changed."
        )
    record = out / RECORD
    if not record.exists():
        others = [other for other in list_names(out) if other in _OUTPUTS or other.endswith(".parquet")]
        if others:
            raise InputError(f"{out} holds {join_items(others, 4)} of another program. Choose another output.")
        return out
    try:
        content = json.loads(record.read_text())
        made_by, settings = content["command"], dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{record} is damaged. Delete the folder or choose another output.") from error
    if made_by != name:
        raise InputError(f"{out} holds rows made by `{made_by}`, not `{name}`. Choose another output.")
    if changed := differences(settings, settings_json(config)):
        changes = [f"{key} was {truncate_repr(old)}, is {truncate_repr(new)}" for key, (old, new) in changed.items()]
        raise InputError(f"{out} holds rows made by other settings: {join_items(changes, 4)}. Choose another output.")
    return out
