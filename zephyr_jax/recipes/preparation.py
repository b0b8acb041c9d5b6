"""What both preparations do: read raw rows, set aside or keep, order, drop duplicates, write splits and the account."""

import json
import os
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path as LocalPath
from typing import Any, Protocol

import numpy as np

from zephyr_jax.card import differences, to_dict
from zephyr_jax.errors import InputError, listing, shown
from zephyr_jax.prepare.card import Page, samples_page
from zephyr_jax.prepare.histogram import picture
from zephyr_jax.prepare.ledger import Ledger
from zephyr_jax.prepare.order import Ordered
from zephyr_jax.prepare.raw import RawRow, SetAside, raw_rows
from zephyr_jax.prepare.splits import SplitFiles
from zephyr_jax.storage.cloud import is_remote
from zephyr_jax.storage.files import Path, check_can_be_made, open_path, write_whole

RECORD = "prepared.json"
_SAY_EVERY = 100_000  # rows

type Split = tuple[str, dict[str, Any]]
"""A split's name, and a row for it."""


class Config(Protocol):
    """What every preparation is told."""

    @property
    def path(self) -> str: ...
    @property
    def split(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def output(self) -> str: ...
    @property
    def samples(self) -> int: ...


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


def check_output(verb: str, config: Config) -> Path:
    """The folder to write. Raises InputError when it cannot be made, holds other prepared rows, or is read from too."""
    check_can_be_made(config.output)
    out = open_path(config.output)
    if not is_remote(config.output) and os.path.realpath(config.output) == os.path.realpath(config.path):
        raise InputError(
            f"`output` and `path` are both {config.output}. Raw rows stay as they are: choose another output."
        )
    record = out / RECORD
    if record.exists():
        try:
            found = json.loads(record.read_text())
            before = {"verb": found["verb"], **found["settings"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{record} is damaged. Delete the folder or choose another output.") from error
        changed = differences(before, {"verb": verb, **plain(config)})
        if changed:
            words = [f"{name} was {shown(old)}, is {shown(new)}" for name, (old, new) in changed.items()]
            raise InputError(f"{out} holds rows made by other settings: {listing(words, 4)}. Choose another output.")
    elif out.is_dir() and any(path.suffix == ".parquet" for path in out.iterdir()):
        raise InputError(
            f"{out} holds Parquet files that no preparation has finished. Delete it or choose another output."
        )
    return out


def keep_in_order(
    config: Config, scratch: LocalPath, ledger: Ledger, take: Callable[[RawRow, Ledger], tuple[str, dict[str, Any]]]
) -> Ordered:
    """Read every raw row; those that `take` keeps (with a key) are put away in the order of their keys."""
    ordered = Ordered(scratch)
    with ordered:
        for row in raw_rows(config.path, config.split, config.revision):
            ledger.read += 1
            try:
                ordered.add(*take(row, ledger), row.place)
            except SetAside as why:
                ledger.leave_out(row.place, why)
            if not ledger.read % _SAY_EVERY:
                print(f"{ledger.read:,} rows read, {ledger.rows.total():,} set aside", file=sys.stderr, flush=True)
    ledger.need_rows(ordered.rows, config.path)
    return ordered


def write_splits(
    files: SplitFiles,
    ordered: Ordered,
    ledger: Ledger,
    make: Callable[[dict[str, Any], str], Iterable[Split]],
    unique: bool,
    most: int | None = None,
) -> int:
    """Make rows of what was kept; returns how many were used. `unique`: only the first that can be used of each key."""
    used, last = 0, ""
    for key, content, place in ordered:
        try:
            if unique and key == last:
                raise SetAside("it is a duplicate", str(content.get("prompt")))
            if used == most:
                raise SetAside("it is outside the subset")
            made = list(make(content, place))
        except SetAside as why:
            ledger.leave_out(place, why)
            continue
        used, last = used + 1, key
        for name, row in made:
            files.add(name, row)
    return used


def write_account(out: Path, verb: str, config: Config, page: Page, scratch: LocalPath) -> str:
    """README.md with its picture, samples, the list of what was set aside, and the record; says it in short."""
    page.ledger.close()
    (out / "set_aside").mkdir(exist_ok=True)
    write_whole(out / "set_aside" / "rows.jsonl", (scratch / "rows.jsonl").read_bytes())
    write_whole(out / "samples.md", samples_page(page.ledger.samples()))
    write_whole(out / "card.png", picture(page.histograms, page.outcomes()))
    write_whole(out / "README.md", page.markdown())
    record = {
        "verb": verb, "settings": plain(config), "splits": dict(page.splits), "kept": page.kept, **page.ledger.counts(),
        "numbers": dict(page.facts),
    }  # fmt: skip
    write_whole(out / RECORD, json.dumps(record, indent=2) + "\n")
    lines = [f"{page.ledger.read:,} rows read, {page.kept:,} kept"]
    lines += [f"  {count:,} set aside: {reason}" for reason, count in list(page.outcomes().items())[1:]]
    lines += [f"  {count:,} answers set aside: {reason}" for reason, count in sorted(page.ledger.answers.items())]
    lines += [f"  {count:,} put right: {kind}" for kind, count in sorted(page.ledger.repairs.items())]
    lines.append(", ".join(f"{name} {count:,}" for name, count in page.splits.items()))
    return "\n".join([*lines, f"the card: {out / 'README.md'}"])


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Room on this machine's disk for about as much text as is kept; TMPDIR says where."""
    return tempfile.TemporaryDirectory(prefix="zephyr-jax-")


def share(part: float, whole: float) -> str:
    """A share for people."""
    return f"{part / whole:.1%}" if whole else "-"


def plain(config: Config) -> dict[str, Any]:
    """All settings as JSON has them."""
    return json.loads(json.dumps(to_dict(config)))
