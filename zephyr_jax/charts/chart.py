"""A chart as data: shapes in a box, a legend, a text summary. Only templates turn it into SVG, so all text is escaped there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zephyr_jax.charts.scale import Scale, format_ticks

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 352, 10, 174
"""Plot area of a chart with axes, in SVG units."""


@dataclass(frozen=True)
class Shape:
    """One SVG element."""

    tag: str
    """`line`, `path`, `circle`, `rect` or `text`."""
    css: str
    """Its classes in chart.css; `c0` to `c5` are the colors."""
    attributes: dict[str, str]
    text: str = ""
    tooltip: str = ""
    """Shown when the pointer is over the shape."""


@dataclass(frozen=True)
class LegendEntry:
    """A series in the legend."""

    name: str
    color: int
    value: str = ""
    marker: str = "line"
    """`line`, `dots` or `bar`: how the series is drawn."""


@dataclass(frozen=True)
class Chart:
    """What a template draws."""

    title: str
    unit: str
    shapes: list[Shape]
    summary: str
    """What the chart shows, for screen readers."""
    legend: list[LegendEntry] = field(default_factory=list)
    note: str = ""
    width: float = WIDTH
    height: float = HEIGHT


def shape(tag: str, css: str, text: str = "", tooltip: str = "", **attributes: float | str) -> Shape:
    """A `Shape` whose numbers are rounded to 0.01 units; `text_anchor` names the attribute `text-anchor`."""
    formatted = {
        name.replace("_", "-"): value if isinstance(value, str) else format_length(value)
        for name, value in attributes.items()
    }
    return Shape(tag, css, formatted, text, tooltip)


def format_length(value: float) -> str:
    """At most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def axes(x: Scale, y: Scale, percent: bool = False) -> list[Shape]:
    """Grid lines at the ticks of `y`, marks at those of `x`, and their labels."""
    shapes = []
    for position, label in zip(y.position(np.array(y.ticks)), format_ticks(y.ticks, percent), strict=True):
        shapes.append(shape("line", "grid", x1=LEFT, x2=RIGHT, y1=position, y2=position))
        shapes.append(shape("text", "y", label, x=LEFT - 6, y=position + 4))
    for position, label in zip(x.position(np.array(x.ticks)), format_ticks(x.ticks), strict=True):
        shapes.append(shape("line", "mark", x1=position, x2=position, y1=BOTTOM, y2=BOTTOM + 4))
        shapes.append(shape("text", "x", label, x=position, y=BOTTOM + 18))
    return [*shapes, shape("line", "mark", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM)]


def hover_strips(bounds: Sequence[float], tooltips: Sequence[str]) -> list[Shape]:
    """Invisible strips side by side over the plot area; strip `i` lies between `bounds[i]` and `bounds[i + 1]`."""
    return [
        shape("rect", "strip", tooltip=tooltip, x=start, width=max(end - start, 0.5), y=TOP, height=BOTTOM - TOP)
        for start, end, tooltip in zip(bounds, bounds[1:], tooltips, strict=False)
    ]
