"""What a finished run is compared by with one that nobody disturbed."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from zephyr_jax.checkpoint.steps import saved_fingerprint, steps_in
from zephyr_jax.reference.table import Identity, ReferenceTable, read_manifest
from zephyr_jax.storage.files import open_path


@dataclass(frozen=True)
class Losses:
    """What harm came of the kills; all should be 0."""

    lost: int
    repeated: int
    diverging: int

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(self.lost + other.lost, self.repeated + other.repeated, self.diverging + other.diverging)


def _lines(file: epath.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _curve(run: epath.Path) -> dict[int, tuple[float, ...]]:
    """Step -> its numbers, without those of the clock; evaluations have the negative step."""
    found = {}
    for line in _lines(run / "metrics.jsonl"):
        sign = 1 if "loss" in line else -1
        found[sign * line["step"]] = tuple(
            value for name, value in sorted(line.items()) if name != "step" and "per_second" not in name
        )
    return found


def compare_runs(run: str, whole: str, exact: bool) -> Losses:
    """Examples that were lost or seen twice, and steps whose numbers differ; `exact`: by a single bit, or by 1e-5.

    Where `exact`, the last step's weights must be the very same bits, too.
    """
    here, there = open_path(run), open_path(whole)
    seen = [(line["step"], each) for line in _lines(here / "examples.jsonl") for each in line["ids"]]
    due = [(line["step"], each) for line in _lines(there / "examples.jsonl") for each in line["ids"]]
    missing, extra = Counter(due) - Counter(seen), Counter(seen) - Counter(due)
    ours, theirs = _curve(here), _curve(there)
    steps = ours.keys() | theirs.keys()
    diverging = sum(not _alike(ours.get(step), theirs.get(step), exact) for step in steps)
    if exact:
        diverging += saved_fingerprint(here, None) != saved_fingerprint(there, None)
    diverging += steps_in(here)[-1] != steps_in(there)[-1]
    return Losses(missing.total() + (not due), extra.total(), diverging)


def _alike(one: tuple[float, ...] | None, other: tuple[float, ...] | None, exact: bool) -> bool:
    if one is None or other is None or exact:
        return one == other
    return bool(np.allclose(one, other, rtol=1e-5, atol=2e-5))


def compare_tables(root: str, whole: str) -> Losses:
    """Entries that are missing, that nobody asked for, and that have another value.

    Pairs that a killed pass left are packed into other rows by the next one, so sums may differ in float32's last digits.
    """
    here, there = _table(root), _table(whole)
    ours, theirs = set(here.index.keys.tolist()), set(there.index.keys.tolist())
    if ours != theirs:
        return Losses(len(theirs - ours), len(ours - theirs), 0)
    close = np.isclose(here.index.sums, there.index.sums, rtol=1e-5, atol=1e-4)
    return Losses(0, 0, int((~close).sum() + (here.index.counts != there.index.counts).sum()))


def _table(root: str) -> ReferenceTable:
    [manifest] = open_path(root).glob("*/manifest.json")
    return ReferenceTable(open_path(root), Identity(**read_manifest(manifest)))
