"""Training curves: one chart for each group of metrics that belong together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zephyr_jax.charts.chart import Chart
from zephyr_jax.charts.line_chart import Level, Series, line_chart
from zephyr_jax.methods.base import Curve, Method
from zephyr_jax.train.metrics_file import MetricLine

RUN_CURVES = (
    Curve(title="Learning rate", unit="", metrics=(("learning_rate", ""),)),
    Curve(title="Gradient norm", unit="before clipping", metrics=(("grad_norm", ""),)),
    Curve(title="Padding", unit="share of a step's token slots", metrics=(("padding", ""),), percent=True),
    Curve(
        title="Throughput",
        unit="per second",
        metrics=(("tokens_per_second", "tokens"), ("targets_per_second", "targets")),
        color=4,
    ),
)
"""Charts of every run, after those of its method."""


def curves_of(method: Method, options: Mapping[str, Any]) -> tuple[Curve, ...]:
    """The curves of a run of a method whose loss has these options."""
    return (*method.curves(options), *RUN_CURVES)


def curve_charts(lines: Sequence[MetricLine], curves: Iterable[Curve]) -> list[Chart]:
    """Charts of the curves that have at least one point."""
    return [chart for curve in curves if (chart := _curve_chart(curve, lines)) is not None]


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
    level = Level(*curve.level) if curve.level else None
    return line_chart(curve.title, curve.unit, drawn, curve.percent, curve.unit_range, level)


def _series(lines: Sequence[MetricLine], metric: str, name: str, color: int, dots: bool) -> Series:
    points = [(line["step"], line[metric]) for line in lines if metric in line]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return Series(name, steps, values, color, dots)
