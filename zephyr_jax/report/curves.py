"""Training curves: metrics.jsonl read line by line, and one chart for each group of metrics that belong together."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zephyr_jax.charts.chart import Chart
from zephyr_jax.charts.line_chart import Level, Series, line_chart

type MetricLine = dict[str, float]
"""`step` and the metrics logged at it."""

LN2 = Level("ln 2", math.log(2))


@dataclass(frozen=True)
class Curve:
    """A chart of one or several metrics, on training and on held-out data."""

    title: str
    unit: str
    metrics: tuple[tuple[str, str], ...]
    """Metric -> name in the legend, empty for a single one."""
    percent: bool = False
    unit_range: bool = False
    """Whether the axis goes from 0 to 1."""
    level: Level | None = None
    color: int = 0


def curves_of(method: str, loss: str | None = None) -> list[Curve]:
    """The curves of `sft`, or of `dpo` with a loss."""
    unit = "nats per target token" if method == "sft" else ("nats per pair" if loss == "sigmoid" else "per pair")
    level = LN2 if method == "dpo" and loss == "sigmoid" else None  # the loss of a policy equal to the reference
    return [
        Curve("Loss", unit, (("loss", ""),), level=level),
        Curve(
            "Accuracy",
            "chosen above rejected, share of pairs",
            (("rewards/accuracies", ""),),
            percent=True,
            unit_range=True,
        ),
        Curve("Margin", "chosen minus rejected reward", (("rewards/margins", ""),)),
        Curve("Rewards", "beta times log-ratio to the reference", _both_sides("rewards"), color=2),
        Curve("Log-probs", "nats per answer", _both_sides("logps"), color=2),
        Curve("Learning rate", "", (("learning_rate", ""),)),
        Curve("Gradient norm", "before clipping", (("grad_norm", ""),)),
        Curve("Padding", "share of a step's token slots", (("padding", ""),), percent=True),
        Curve(
            "Throughput", "per second", (("tokens_per_second", "tokens"), ("targets_per_second", "targets")), color=4
        ),
    ]


def curve_charts(lines: Sequence[MetricLine], curves: Iterable[Curve]) -> list[Chart]:
    """Charts of the curves that have at least one point."""
    return [chart for curve in curves if (chart := _curve_chart(curve, lines)) is not None]


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


def _curve_chart(curve: Curve, lines: Sequence[MetricLine]) -> Chart | None:
    single = len(curve.metrics) == 1
    held_out = single or any(f"eval/{metric}" in line for metric, _ in curve.metrics for line in lines)
    series = []
    for index, (metric, name) in enumerate(curve.metrics):
        color = curve.color + index
        training_name = f"{name} training".strip() if held_out else name
        series.append(_series(lines, metric, training_name, color, dots=False))
        eval_color = curve.color + 1 if single else color
        series.append(_series(lines, f"eval/{metric}", f"{name} held out".strip(), eval_color, dots=True))
    drawn = [one for one in series if len(one.steps)]
    if not drawn:
        return None
    return line_chart(curve.title, curve.unit, drawn, curve.percent, curve.unit_range, curve.level)


def _series(lines: Sequence[MetricLine], metric: str, name: str, color: int, dots: bool) -> Series:
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return Series(name, steps, values, color, dots)


def _both_sides(group: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{group}/{side}", side) for side in ("chosen", "rejected"))
