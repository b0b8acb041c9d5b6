"""What both preparations do: read raw rows, set aside or keep, order, drop duplicates, write splits and the account."""

import errno
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import gettempdir
from typing import Any, Protocol

import numpy as np

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.yaml_file import differences, to_dict
from zephyr_jax.data.row_reader import SourceRow
from zephyr_jax.errors import InputError, join_items, truncate_repr
from zephyr_jax.prepare.card import Page, samples_page, spelt
from zephyr_jax.prepare.filter_stats import Ledger
from zephyr_jax.prepare.order import Ordered
from zephyr_jax.prepare.raw import ignored_names, raw_rows
from zephyr_jax.prepare.splits import SplitFiles
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import (
    Path,
    check_folder_creatable,
    list_names,
    open_path,
    remove_stale_scratch,
    write_atomic,
)

RECORD = "prepared.json"
_WRITTEN = ("README.md", "card.svg", "samples.md", "set_aside")
_SAY_EVERY = 100_000  # rows

type Split = tuple[str, dict[str, Any]]
"""A split's name, and a row for it."""
type Make = Callable[[dict[str, Any], str], Iterable[Split]]
"""(content, place) -> rows for splits; raises SkippedRow."""


class Config(Protocol):
    """What every preparation is told."""

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


class Columns:
    """Numbers by name, of every row that was kept: eight bytes each."""

    def __init__(self, *names: str):
        self._columns = {name: array("d") for name in names}

    def add(self, **values: float) -> None:
        """A number for some of the names."""
        for name, value in values.items():
            self._columns[name].append(value)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self._columns[name])


@dataclass(frozen=True)
class Preparation:
    """One run of a verb: its settings, the folder it writes, the rows that it goes on with, and its account."""

    verb: str
    config: Config
    out: Path
    rows: Ordered
    ledger: Ledger

    def read(self, take: Callable[[SourceRow], tuple[str, dict[str, Any]]]) -> None:
        """Read every raw row; those that `take` keeps, with a key, are gone on with."""
        ledger, config = self.ledger, self.config
        ledger.passed_over = ignored_names(config.data)
        for row in raw_rows(config.data, config.split, config.revision):
            ledger.read += 1
            try:
                self.rows.add(*take(row), row.place)
            except SkippedRow as why:
                ledger.leave_out(row.place, why, row.content)
            if not ledger.read % _SAY_EVERY:
                print(f"{ledger.read:,} rows read, {ledger.rows.total():,} set aside", file=sys.stderr, flush=True)
        ledger.need_rows(self.rows.rows, config.data)

    def write_splits(self, files: SplitFiles, make: Make, unique: bool, most: int | None = None) -> None:
        """Write what `make` makes of each row, by the order of their keys. `unique`: only of the first that can be used of
        each key."""
        self.out.mkdir(parents=True, exist_ok=True)
        remove_stale_scratch(self.out)
        with files:
            used, last = 0, ""
            for key, content, place in self.rows:
                try:
                    if unique and key == last:
                        raise SkippedRow("it is a duplicate", content["prompt"])
                    if used == most:
                        raise SkippedRow("it is outside the subset", content["prompt"])
                    made = list(make(content, place))
                except SkippedRow as why:
                    self.ledger.leave_out(place, why, content)
                    continue
                used, last = used + 1, key
                for name, row in made:
                    files.add(name, row)
            self.ledger.need_rows(used, self.config.data)
            self._record({"finished": False})

    def write_account(self, page: Page) -> str:
        """README.md with its picture, samples, the list of what was set aside, and the record; says it in short."""
        (self.out / "set_aside").mkdir(exist_ok=True)
        self.ledger.copy_to(self.out / "set_aside" / "rows.jsonl")
        write_atomic(self.out / "samples.md", samples_page(self.ledger.samples()))
        write_atomic(self.out / "card.svg", page.picture())
        write_atomic(self.out / "README.md", page.markdown())
        self._record(
            {"finished": True, "splits": dict(page.splits), **self.ledger.counts(), "numbers": dict(page.facts)}
        )
        rows, *outcomes = page.outcomes().items()
        lines = [f"{self.ledger.read:,} rows read, {rows[1]:,} kept"]
        lines += [f"  {count:,} set aside: {reason}" for reason, count in outcomes]
        lines += [f"  {count:,} answers set aside: {reason}" for reason, count in sorted(self.ledger.answers.items())]
        lines += [f"  {count:,} put right: {kind}" for kind, count in sorted(self.ledger.repairs.items())]
        if self.ledger.passed_over:
            lines.append(f"  passed over in {self.config.data}: {spelt(join_items(self.ledger.passed_over, 6))}")
        lines.append(", ".join(f"{name} {count:,}" for name, count in page.splits.items()))
        return "\n".join([*lines, f"the card: {self.out / 'README.md'}"])

    def _record(self, facts: dict[str, Any]) -> None:
        record = {"verb": self.verb, "settings": plain(self.config), **facts}
        write_atomic(self.out / RECORD, json.dumps(record, indent=2) + "\n")


@contextmanager
def preparation(verb: str, config: Config) -> Iterator[Preparation]:
    """A run that may begin, with scratch room on this machine's disk (TMPDIR says where) for the text that is kept.

    Raises InputError when the output cannot be made, holds something else, or is read from too, and when a disk is full.
    """
    out = _output(verb, config)
    try:
        with Ledger(config.num_samples) as ledger, Ordered() as rows:
            yield Preparation(verb, config, out, rows, ledger)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(
            f"No room is left on the disk of {out}, or on that of {gettempdir()}, where the rows lie until they are in order. "
            "Make room, or set TMPDIR to a folder on a larger disk; splits that were complete before stay as they were."
        ) from error


def share(part: float, whole: float) -> str:
    """A share for people."""
    return f"{part / whole:.1%}" if whole else "-"


def plain(config: Config) -> dict[str, Any]:
    """All settings as JSON has them."""
    return json.loads(json.dumps(to_dict(config)))


def _output(verb: str, config: Config) -> Path:
    check_folder_creatable(config.output)
    out = open_path(config.output)
    if not is_remote(config.output) and os.path.realpath(config.output) == os.path.realpath(config.data):
        raise InputError(
            f"`output` and `path` are both {config.output}. Raw rows stay as they are: choose another output."
        )
    record = out / RECORD
    if record.exists():
        try:
            found = json.loads(record.read_text())
            maker, settings = found["verb"], dict(found["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{record} is damaged. Delete the folder or choose another output.") from error
        if maker != verb:
            raise InputError(f"{out} holds rows made by `{maker}`, not `{verb}`. Choose another output.")
        changed = differences(settings, plain(config))
        if changed:
            words = [
                f"{name} was {truncate_repr(old)}, is {truncate_repr(new)}" for name, (old, new) in changed.items()
            ]
            raise InputError(f"{out} holds rows made by other settings: {join_items(words, 4)}. Choose another output.")
    elif others := [name for name in list_names(out) if name in _WRITTEN or name.endswith(".parquet")]:
        raise InputError(f"{out} holds {join_items(others, 4)}, which this verb has not made. Choose another output.")
    return out
