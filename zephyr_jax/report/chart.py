"""Lines over steps, as SVG: however many points there are, none that stands out is lost."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zephyr_jax.report.frame import BOTTOM, LEFT, RIGHT, TOP, Hint, Key, axes, figure
from zephyr_jax.report.markup import Markup, element, joined
from zephyr_jax.report.scale import Scale, across, fixed, spelt, upwards

_COLUMNS = RIGHT - LEFT
_STRIPS = 80
_SMOOTHED = 60  # points from which on a line is drawn with its moving median
_LARGEST = 1e300


@dataclass(frozen=True)
class Series:
    """Numbers by step, in order; NaN and infinite ones are gaps."""

    name: str
    steps: np.ndarray
    values: np.ndarray
    colour: int
    dots: bool = False
    """Drawn as dots that dashes join (few and far between), not as a line."""

    @property
    def finite(self) -> np.ndarray:
        """bool [N]: which numbers can be drawn."""
        return np.isfinite(self.values) & (np.abs(self.values) < _LARGEST)


@dataclass(frozen=True)
class Level:
    """A number to compare with, drawn across."""

    name: str
    value: float


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    share: bool = False,
    whole: bool = False,
    level: Level | None = None,
) -> Markup:
    """A picture of all series over one axis of steps; `share`: told in percent; `whole`: upwards from 0 to 1."""
    drawn = [each for each in series if len(each.steps)]
    shown = np.concatenate([np.zeros(0), *(each.values[each.finite] for each in drawn)])
    x = across(np.concatenate([np.zeros(0), *(each.steps for each in drawn)]), LEFT, RIGHT)
    beside = np.append(shown, level.value) if level else shown
    y = fixed(0, 1, BOTTOM, TOP) if whole else upwards(beside, BOTTOM, TOP)
    parts = [axes(x, y, share), _level(level, y) if level else None, *(_drawn(each, x, y) for each in drawn)]
    notes = [_scale_note(y), *(_smoothed_note(each) for each in drawn[:1]), *(_gaps(each) for each in drawn)]
    return figure(
        title, unit, [_key(each, share) for each in drawn], _summary(title, drawn, share), joined(*parts),
        _hints(drawn, x, share), " ".join(filter(None, notes)),
    )  # fmt: skip


def thinned(steps: np.ndarray, values: np.ndarray, columns: int = _COLUMNS) -> tuple[np.ndarray, np.ndarray]:
    """At most four points a column of the picture: the first, the last, the lowest and the highest."""
    if len(steps) <= 4 * columns:
        return steps, values
    place = np.minimum((steps - steps[0]) / (steps[-1] - steps[0]) * columns, columns - 1).astype(int)
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    kept: list[int] = []
    for start, end in zip(starts, [*starts[1:], len(steps)], strict=True):
        good = start + np.flatnonzero(np.isfinite(values[start:end]))
        if not len(good):
            kept.append(int(start))
            continue
        extremes = good[np.argmin(values[good])], good[np.argmax(values[good])]
        kept += sorted({int(each) for each in (good[0], good[-1], *extremes)})
    return steps[kept], values[kept]


def _drawn(series: Series, x: Scale, y: Scale) -> Markup:
    steps, values = thinned(series.steps, np.where(series.finite, series.values, np.nan))
    points = np.stack([x.place(steps), y.place(values)], axis=1)
    pieces = _pieces(points)
    name = f"c{series.colour}"
    if series.dots:
        line = element("path", d=_path(pieces), class_=f"dashes {name}")
        return joined(line, *[_dot(each, f"dot {name}") for piece in pieces for each in piece])
    smoothed = len(series.steps) > _SMOOTHED
    line = element("path", d=_path(pieces), class_=f"line {name}{' raw' if smoothed else ''}")
    alone = [_dot(piece[0], f"dot {name}") for piece in pieces if len(piece) == 1]
    if not smoothed:
        return joined(line, *alone)
    steps, values = moving_median(series.steps, np.where(series.finite, series.values, np.nan))
    middle = _path(_pieces(np.stack([x.place(steps), y.place(values)], axis=1)))
    return joined(line, *alone, element("path", d=middle, class_=f"line middle {name}"))


def moving_median(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each value's median with its neighbours' (a twentieth of all, fewer at the ends), of at most two a column; NaN in gaps."""
    parts = min(len(values), 2 * _COLUMNS)
    middles = np.array([part.mean() for part in np.array_split(steps, parts)])
    medians = np.array([_median(part) for part in np.array_split(values, parts)])
    half, last = parts // 40, parts - 1
    reach = [min(half, place, last - place) for place in range(parts)]
    return middles, np.array([_median(medians[place - r : place + r + 1]) for place, r in enumerate(reach)])


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else np.nan


def _pieces(points: np.ndarray) -> list[np.ndarray]:
    """Stretches without a gap."""
    there = np.isfinite(points).all(axis=1)
    bounds = np.flatnonzero(np.diff(there, prepend=False, append=False))
    return [points[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)]


def _path(pieces: list[np.ndarray]) -> str:
    return "".join("M" + " ".join(f"{px:.1f},{py:.1f}" for px, py in piece) for piece in pieces)


def _dot(point: np.ndarray, name: str) -> Markup:
    return element("circle", cx=f"{point[0]:.1f}", cy=f"{point[1]:.1f}", r="2.6", class_=name)


def _level(level: Level, y: Scale) -> Markup:
    place = float(y.place(np.array(level.value)))
    line = element("line", x1=LEFT, x2=RIGHT, y1=f"{place:.1f}", y2=f"{place:.1f}", class_="level")
    return joined(line, element("text", level.name, x=RIGHT, y=f"{place - 4:.1f}", class_="level"))


def _key(series: Series, share: bool) -> Key:
    return Key(series.name, series.colour, spelt(float(series.values[-1]), share), "dots" if series.dots else "line")


def _hints(drawn: Sequence[Series], x: Scale, share: bool) -> list[Hint]:
    """For each step, or stretch of steps where there are many, what every series is there."""
    steps = np.unique(np.concatenate([np.zeros(0), *(each.steps for each in drawn)]))
    groups = np.array_split(steps, min(_STRIPS, len(steps))) if len(steps) else []
    firsts = x.place(np.array([group[0] for group in groups]))
    lasts = x.place(np.array([group[-1] for group in groups]))
    bounds = [LEFT, *((lasts[:-1] + firsts[1:]) / 2), RIGHT]
    return [
        Hint(start, end, "\n".join([_stretch(group), *_told(drawn, group[0], group[-1], share)]))
        for group, start, end in zip(groups, bounds, bounds[1:], strict=False)
    ]


def _stretch(group: np.ndarray) -> str:
    return f"step {group[0]:,.0f}" if len(group) == 1 else f"steps {group[0]:,.0f} to {group[-1]:,.0f}"


def _told(drawn: Sequence[Series], first: float, last: float, share: bool) -> list[str]:
    lines = []
    for each in drawn:
        start, end = np.searchsorted(each.steps, first, "left"), np.searchsorted(each.steps, last, "right")
        values, finite = each.values[start:end], each.finite[start:end]
        if len(values) == 1 or not finite.any():
            lines += [f"{each.name} {spelt(float(value), share)}" for value in values[:1]]
            continue
        low, mean, high = (spelt(float(of(values[finite])), share) for of in (np.min, np.mean, np.max))
        lines.append(f"{each.name} {mean} (from {low} to {high})")
    return lines


def _summary(title: str, drawn: Sequence[Series], share: bool) -> str:
    """For screen readers."""
    words = []
    for each in drawn:
        values = each.values[each.finite]
        if len(values):
            first, last, low, high = (
                spelt(float(v), share) for v in (values[0], values[-1], values.min(), values.max())
            )
            words.append(f"{each.name} from {first} to {last}, lowest {low}, highest {high}")
    return f"{title}: {'; '.join(words) or 'nothing to draw'}"


def _scale_note(y: Scale) -> str:
    return "Powers of ten upwards." if y.logarithmic else ""


def _smoothed_note(series: Series) -> str:
    if series.dots or len(series.steps) <= _SMOOTHED:
        return ""
    return "Bold: moving median of a twentieth of all."


def _gaps(series: Series) -> str:
    steps = series.steps[~series.finite]
    if not len(steps):
        return ""
    first = ", ".join(f"{step:,.0f}" for step in steps[:5])
    return f"Not finite: {series.name} at step {first}{f' and {len(steps) - 5:,} more' if len(steps) > 5 else ''}."
