"""Lines over training steps. However many points there are, the file stays small and no extreme value is lost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zephyr_jax.charts.chart import BOTTOM, LEFT, RIGHT, TOP, Chart, LegendEntry, Shape, axes, hover_strips, shape
from zephyr_jax.charts.scale import Floats, Scale, fixed_scale, format_number, step_scale, value_scale

_COLUMNS = RIGHT - LEFT
_STRIPS = 80
_MIN_SMOOTHED = 60  # longer series get a moving median
_LARGEST = 1e300


@dataclass(frozen=True)
class Series:
    """Numbers by step, in step order. Non-finite numbers are gaps."""

    name: str
    steps: Floats
    values: Floats
    color: int
    dots: bool = False
    """Drawn as dots joined by dashes, for few points, instead of as a line."""

    @property
    def finite(self) -> NDArray[np.bool_]:
        """bool [N]: which numbers can be drawn."""
        return np.asarray(np.isfinite(self.values) & (np.abs(self.values) < _LARGEST))

    @property
    def smoothed(self) -> bool:
        """Whether a moving median is drawn over the line."""
        return not self.dots and len(self.steps) > _MIN_SMOOTHED


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    name: str
    value: float


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    percent: bool = False,
    unit_range: bool = False,
    level: Level | None = None,
) -> Chart:
    """A chart of all series over one axis of steps.

    Args:
        percent: show numbers as percentages.
        unit_range: let the vertical axis go from 0 to 1.
        level: a horizontal line, which the vertical axis always includes.
    """
    drawn = [one for one in series if len(one.steps)]
    values = _concatenate([one.values[one.finite] for one in drawn])
    x = step_scale(_concatenate([one.steps for one in drawn]), LEFT, RIGHT)
    y = value_scale(np.append(values, level.value) if level else values, BOTTOM, TOP)
    y = fixed_scale(0, 1, BOTTOM, TOP) if unit_range else y
    shapes = axes(x, y, percent) + (_level_shapes(level, y) if level else [])
    shapes += [shape for one in drawn for shape in _series_shapes(one, x, y)]
    notes = ["Logarithmic scale."] if y.logarithmic else []
    notes += ["Bold: moving median over 5% of the steps."] if drawn and drawn[0].smoothed else []
    notes += [_gap_note(one) for one in drawn if not one.finite.all()]
    return Chart(
        title=title,
        unit=unit,
        shapes=[*shapes, *_tooltips(drawn, x, percent)],
        summary=_summary(title, drawn, percent),
        legend=[_legend_entry(one, percent) for one in drawn],
        note=" ".join(notes),
    )


def downsample(steps: Floats, values: Floats, columns: int = _COLUMNS) -> tuple[Floats, Floats]:
    """At most four points for each column of the picture: the first, the last, the lowest and the highest."""
    if len(steps) <= 4 * columns:
        return steps, values
    column = np.minimum((steps - steps[0]) / (steps[-1] - steps[0]) * columns, columns - 1).astype(int)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    indices: list[int] = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        finite = start + np.flatnonzero(np.isfinite(values[start:end]))
        if not len(finite):
            indices.append(int(start))
            continue
        extremes = finite[np.argmin(values[finite])], finite[np.argmax(values[finite])]
        indices += sorted({int(index) for index in (finite[0], finite[-1], *extremes)})
    return steps[indices], values[indices]


def moving_median(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Medians over a twentieth of all values (fewer at the ends), at most two per column; NaN in gaps."""
    parts = min(len(values), 2 * _COLUMNS)
    centers = np.array([part.mean() for part in np.array_split(steps, parts)])
    medians = np.array([_median(part) for part in np.array_split(values, parts)])
    half_widths = [min(parts // 40, index, parts - 1 - index) for index in range(parts)]
    return centers, np.array([_median(medians[i - half : i + half + 1]) for i, half in enumerate(half_widths)])


def _median(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else np.nan


def _concatenate(arrays: list[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *arrays])


def _series_shapes(series: Series, x: Scale, y: Scale) -> list[Shape]:
    values, color = np.where(series.finite, series.values, np.nan), f"c{series.color}"
    runs = _finite_runs(x, y, *downsample(series.steps, values))
    css = f"dashes {color}" if series.dots else f"line {color}{' raw' if series.smoothed else ''}"
    dots = [point for run in runs if series.dots or len(run) == 1 for point in run]  # a line of one point is invisible
    shapes = [_path(runs, css), *[shape("circle", f"dot {color}", cx=px, cy=py, r=2.6) for px, py in dots]]
    if series.smoothed:
        shapes.append(_path(_finite_runs(x, y, *moving_median(series.steps, values)), f"line middle {color}"))
    return shapes


def _finite_runs(x: Scale, y: Scale, steps: Floats, values: Floats) -> list[Floats]:
    """float [n, 2] each: positions of consecutive finite points."""
    points = np.stack([x.position(steps), y.position(values)], axis=1)
    finite = np.isfinite(points).all(axis=1)
    bounds = np.flatnonzero(np.diff(finite, prepend=False, append=False))
    return [points[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]


def _path(runs: list[Floats], css: str) -> Shape:
    return shape("path", css, d="".join("M" + " ".join(f"{px:.1f},{py:.1f}" for px, py in run) for run in runs))


def _level_shapes(level: Level, y: Scale) -> list[Shape]:
    position = float(y.position(np.array(level.value)))
    line = shape("line", "level", x1=LEFT, x2=RIGHT, y1=position, y2=position)
    return [line, shape("text", "level", level.name, x=RIGHT, y=position - 4)]


def _legend_entry(series: Series, percent: bool) -> LegendEntry:
    last = format_number(float(series.values[-1]), percent)  # even if not finite: a run that ended in NaN must show it
    return LegendEntry(series.name, series.color, last, "dots" if series.dots else "line")


def _tooltips(drawn: Sequence[Series], x: Scale, percent: bool) -> list[Shape]:
    """For each step, or range of steps where there are many, the values of every series."""
    steps = np.unique(_concatenate([one.steps for one in drawn]))
    groups = np.array_split(steps, min(_STRIPS, len(steps))) if len(steps) else []
    firsts = x.position(np.array([group[0] for group in groups]))
    lasts = x.position(np.array([group[-1] for group in groups]))
    return hover_strips(
        [LEFT, *((lasts[:-1] + firsts[1:]) / 2), RIGHT], [_tooltip(drawn, group, percent) for group in groups]
    )


def _tooltip(drawn: Sequence[Series], steps: Floats, percent: bool) -> str:
    first, last = steps[0], steps[-1]
    lines = [f"step {first:,.0f}" if len(steps) == 1 else f"steps {first:,.0f} to {last:,.0f}"]
    for one in drawn:
        inside = slice(np.searchsorted(one.steps, first, "left"), np.searchsorted(one.steps, last, "right"))
        values, finite = one.values[inside], one.values[inside][one.finite[inside]]
        if len(values) == 1 or not len(finite):
            lines += [f"{one.name} {format_number(float(value), percent)}" for value in values[:1]]
            continue
        mean, low, high = (
            format_number(float(value), percent) for value in (finite.mean(), finite.min(), finite.max())
        )
        lines.append(f"{one.name} {mean} (from {low} to {high})")
    return "\n".join(lines)


def _summary(title: str, drawn: Sequence[Series], percent: bool) -> str:
    parts = []
    for one in drawn:
        if len(values := one.values[one.finite]):
            numbers = (values[0], values[-1], values.min(), values.max())
            first, last, low, high = (format_number(float(number), percent) for number in numbers)
            parts.append(f"{one.name} from {first} to {last}, lowest {low}, highest {high}")
    return f"{title}: {'; '.join(parts) or 'no finite values'}"


def _gap_note(series: Series) -> str:
    steps = series.steps[~series.finite]
    more = f" and {len(steps) - 5:,} more" if len(steps) > 5 else ""
    return f"Not finite: {series.name} at step {', '.join(f'{step:,.0f}' for step in steps[:5])}{more}."
