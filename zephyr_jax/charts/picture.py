"""Charts as separate files: SVG pictures that Markdown can show, on light and dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass

from zephyr_jax.charts.chart import Chart
from zephyr_jax.charts.template import render, stylesheet

_MARGIN, _LINE, _TITLE = 24, 18, 28


@dataclass(frozen=True)
class Panel:
    """A chart at its position."""

    chart: Chart
    x: float
    y: float

    @property
    def plot_y(self) -> float:
        """Top of the shapes, below title and legend."""
        return _TITLE + _LINE * len(self.chart.legend)


def picture(rows: Sequence[Sequence[Chart]]) -> str:
    """An SVG file with rows of charts, one below the other."""
    panels: list[Panel] = []
    y, width = float(_MARGIN), 0.0
    for row in rows:
        x = float(_MARGIN)
        for chart in row:
            panels.append(Panel(chart, x, y))
            x += chart.width + _MARGIN
        width = max(width, x)
        y += max((panel.plot_y + panel.chart.height for panel in panels[len(panels) - len(row) :]), default=0) + _MARGIN
    summary = ". ".join(panel.chart.summary for panel in panels)
    return render(
        "charts/picture.svg.jinja",
        panels=panels,
        width=width,
        height=y,
        summary=summary,
        style=stylesheet("charts/chart.css"),
    )
