"""Radar charts: one closed line for each series over named spokes."""

import math
from collections.abc import Mapping, Sequence

from zephyr_jax.charts.chart import Chart, LegendEntry, shape

_WIDTH, _HEIGHT, _RADIUS, _RINGS = 480, 360, 130, 5


def radar_chart(title: str, unit: str, series: Mapping[str, Mapping[str, float | None]], maximum: float) -> Chart:
    """Values from 0 at the center to `maximum` at the rim. Missing values count as 0."""
    spokes = list(dict.fromkeys(name for values in series.values() for name in values))
    shapes = [shape("path", "grid hollow", d=_outline([ring / _RINGS] * len(spokes))) for ring in range(1, _RINGS + 1)]
    for index, name in enumerate(spokes):
        (rim_x, rim_y), (x, y) = _point(index, len(spokes), 1), _point(index, len(spokes), 1.1)
        anchor = "middle" if abs(x - _WIDTH / 2) < 1 else ("start" if x > _WIDTH / 2 else "end")
        shapes.append(shape("line", "grid", x1=_WIDTH / 2, y1=_HEIGHT / 2, x2=rim_x, y2=rim_y))
        shapes.append(shape("text", "", name, x=x, y=y + 4, text_anchor=anchor))
    for color, values in enumerate(series.values()):
        outline = _outline([min(values.get(name) or 0, maximum) / maximum for name in spokes])
        shapes += [shape("path", f"area c{color % 6}", d=outline), shape("path", f"line c{color % 6}", d=outline)]
    lines = [", ".join(f"{name} {value:.3g}" for name, value in values.items() if value) for values in series.values()]
    return Chart(
        title=title,
        unit=unit,
        shapes=shapes,
        summary=f"{title}: " + "; ".join(f"{name}: {line}" for name, line in zip(series, lines, strict=True)),
        legend=[LegendEntry(name, color % 6) for color, name in enumerate(series)],
        width=_WIDTH,
        height=_HEIGHT,
    )


def _outline(shares: Sequence[float]) -> str:
    points = [_point(index, len(shares), share) for index, share in enumerate(shares)]
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) + "Z" if points else ""


def _point(index: int, spokes: int, share: float) -> tuple[float, float]:
    """Position at `share` of the radius on a spoke; the first spoke points upwards, the others follow clockwise."""
    angle = 2 * math.pi * index / spokes
    return _WIDTH / 2 + _RADIUS * share * math.sin(angle), _HEIGHT / 2 - _RADIUS * share * math.cos(angle)
