"""Comparison of a finished run with an undisturbed one."""

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from zephyr_jax.checkpoint.steps import list_steps, saved_fingerprint
from zephyr_jax.reference.table import Identity, ReferenceTable, read_manifest
from zephyr_jax.storage.files import open_path
from zephyr_jax.train.metrics import CLOCK_METRICS


@dataclass(frozen=True)
class Differences:
    """Differences from the undisturbed run; all should be 0."""

    examples_lost: int
    examples_repeated: int
    diverged: int
    """Steps or table entries with other numbers."""

    def __add__(self, other: "Differences") -> "Differences":
        return Differences(
            self.examples_lost + other.examples_lost,
            self.examples_repeated + other.examples_repeated,
            self.diverged + other.diverged,
        )


def _lines(file: epath.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _curve(run: epath.Path) -> dict[int, tuple[float, ...]]:
    """Step -> its metrics without timings; evaluations have the negative step."""
    curve = {}
    for line in _lines(run / "metrics.jsonl"):
        sign = 1 if "loss" in line else -1
        curve[sign * line["step"]] = tuple(
            value for name, value in sorted(line.items()) if name != "step" and name not in CLOCK_METRICS
        )
    return curve


def compare_runs(run: str, reference: str, exact: bool) -> Differences:
    """Compare the examples and metrics of every step with those of an undisturbed run.

    Args:
        exact: require bit-identical metrics and final weights; otherwise metrics may differ by 1e-5 relative.
    """
    actual, expected = open_path(run), open_path(reference)
    seen, due = _examples(actual), _examples(expected)
    metrics, expected_metrics = _curve(actual), _curve(expected)
    steps = metrics.keys() | expected_metrics.keys()
    diverged = sum(not _equal(metrics.get(step), expected_metrics.get(step), exact) for step in steps)
    if exact:
        diverged += saved_fingerprint(actual, None) != saved_fingerprint(expected, None)
    diverged += list_steps(actual)[-1] != list_steps(expected)[-1]
    return Differences((due - seen).total() + (not due), (seen - due).total(), diverged)


def _examples(run: epath.Path) -> Counter[tuple[int, str]]:
    """Step and id of every example that a run trained on."""
    return Counter((line["step"], name) for line in _lines(run / "examples.jsonl") for name in line["ids"])


def _equal(one: tuple[float, ...] | None, other: tuple[float, ...] | None, exact: bool) -> bool:
    if one is None or other is None or exact:
        return one == other
    return bool(np.allclose(one, other, rtol=1e-5, atol=2e-5))


def compare_tables(root: str, reference: str) -> Differences:
    """Compare two reference tables: missing entries, extra entries, other values.

    A resumed pass packs the remaining pairs into other rows, so sums may differ in the last digits of float32.
    """
    actual, expected = _table(root).index, _table(reference).index
    keys, expected_keys = set(actual.keys.tolist()), set(expected.keys.tolist())
    if keys != expected_keys:
        return Differences(len(expected_keys - keys), len(keys - expected_keys), 0)
    close = np.isclose(actual.sums, expected.sums, rtol=1e-5, atol=1e-4)
    return Differences(0, 0, int((~close).sum() + (actual.counts != expected.counts).sum()))


def _table(root: str) -> ReferenceTable:
    [manifest] = open_path(root).glob("*/manifest.json")
    return ReferenceTable(open_path(root), Identity(**read_manifest(manifest)))
