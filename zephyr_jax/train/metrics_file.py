"""The metrics file of a run, read line by line. Never imports jax."""

import json
import math
from typing import Any

FILE = "metrics.jsonl"

type MetricLine = dict[str, float]
"""`step` and the metrics logged at it."""


def parse_metrics(text: str) -> list[MetricLine]:
    """The numbers in the lines of a metrics file, by step; damaged lines and other values are skipped."""
    return sorted((line for row in text.splitlines() if (line := _parse_line(row))), key=lambda line: line["step"])


def _parse_line(text: str) -> MetricLine:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # cut off when the process was killed
    if not isinstance(content, dict):
        return {}
    line = {name: _to_float(value) for name, value in content.items() if type(value) in (int, float)}
    return line if math.isfinite(line.get("step", math.nan)) else {}


def _to_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
