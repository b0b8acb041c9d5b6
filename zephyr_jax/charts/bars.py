"""Horizontal bars by name, with optional error bars."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zephyr_jax.charts.chart import Chart, Shape, shape
from zephyr_jax.charts.scale import Scale, fixed_scale, format_ticks, value_scale

_ROW, _TOP, _BOTTOM = 22, 4, 26
_CHAR_WIDTH = 6.4  # of the labels' font, on average
_MAX_LABEL = 60


@dataclass(frozen=True)
class Bar:
    """One row of a bar chart."""

    name: str
    value: float
    label: str = ""
    """Written behind the bar."""
    error: float | None = None
    """Half the length of the error bar."""
    color: int = 0


def bar_chart(title: str, unit: str, bars: Sequence[Bar], maximum: float | None = None, width: float = 360) -> Chart:
    """Bars from zero, one below the other.

    Args:
        maximum: right end of the axis; the largest value if None.
        width: of the chart, in SVG units, labels included.
    """
    names = [bar.name if len(bar.name) <= _MAX_LABEL else f"{bar.name[: _MAX_LABEL - 1]}…" for bar in bars]
    left = 12 + _CHAR_WIDTH * max(map(len, names), default=0)
    right = max(width - 12 - _CHAR_WIDTH * max((len(bar.label) for bar in bars), default=0), left + 80)
    largest = max((bar.value for bar in bars), default=0) or 1
    x = fixed_scale(0, maximum, left, right) if maximum else value_scale(np.array([0.0, largest]), left, right)
    bottom = _TOP + _ROW * len(bars)
    shapes = _axis(x, bottom)
    for row, (bar, name) in enumerate(zip(bars, names, strict=True)):
        shapes += _bar_shapes(bar, name, x, left, _TOP + _ROW * row)
    summary = f"{title}: " + "; ".join(f"{bar.name} {bar.label or f'{bar.value:g}'}" for bar in bars)
    chart_width = max(width, right + 12 + _CHAR_WIDTH * max((len(bar.label) for bar in bars), default=0))
    return Chart(title, unit, shapes, summary, width=chart_width, height=bottom + _BOTTOM)


def _axis(x: Scale, bottom: float) -> list[Shape]:
    shapes = []
    for position, label in zip(x.position(np.array(x.ticks)), format_ticks(x.ticks), strict=True):
        shapes.append(shape("line", "grid", x1=position, x2=position, y1=_TOP, y2=bottom))
        shapes.append(shape("text", "x", label, x=position, y=bottom + 16))
    return shapes


def _bar_shapes(bar: Bar, name: str, x: Scale, left: float, top: float) -> list[Shape]:
    end, middle = float(x.position(np.array(bar.value))), top + _ROW / 2
    shapes = [
        shape("text", "y", name, x=left - 6, y=middle + 4),
        shape("rect", f"bar c{bar.color}", x=left, y=top + 3, width=end - left, height=_ROW - 6),
    ]
    label_start = end
    if bar.error is not None:
        low, high = x.position(np.array([bar.value - bar.error, bar.value + bar.error]))
        label_start = float(high)
        shapes.append(
            shape(
                "path", "mark", d=f"M{low:.1f},{middle}H{high:.1f}M{low:.1f},{middle - 3}v6M{high:.1f},{middle - 3}v6"
            )
        )
    return [*shapes, shape("text", "", bar.label, x=label_start + 6, y=middle + 4)] if bar.label else shapes
