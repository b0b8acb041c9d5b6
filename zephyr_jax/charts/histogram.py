"""Histograms: values are counted once into a few numbers that fit a file, and drawn or tabulated from those."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zephyr_jax.charts.chart import BOTTOM, LEFT, RIGHT, TOP, Chart, LegendEntry, Shape, axes, hover_strips, shape
from zephyr_jax.charts.scale import Floats, Scale, format_number, value_scale

_MAX_EXACT = 1e15  # edges halfway between larger integers are not exact
_MARKDOWN_BAR = 20  # characters


@dataclass(frozen=True)
class Histogram:
    """Groups of values counted over the same bins."""

    edges: tuple[float, ...]
    """One more than there are bins."""
    groups: dict[str, tuple[int, ...]]
    """Counts per bin of each group."""
    medians: dict[str, float]

    @property
    def integral(self) -> bool:
        """Whether the edges lie halfway between integers."""
        return all(edge % 1 == 0.5 for edge in self.edges)

    @property
    def doubling(self) -> bool:
        """Whether each bin is twice as wide as the one before."""
        return len(self.edges) > 2 and all(b == 2 * a > 0 for a, b in zip(self.edges, self.edges[1:], strict=False))


def count_values(groups: Mapping[str, Floats], bins: int = 32, doubling: bool = False) -> Histogram | None:
    """Count the finite values of each group.

    Args:
        groups: name -> values [N].
        bins: at most this many bins of equal width; the bins of integers hold equally many integers.
        doubling: use powers of two as edges instead, for lengths of texts. Values must be at least 0; those below 1 count as 1.

    Returns:
        None if every group is empty or non-finite.
    """
    finite = {name: values[np.isfinite(values)].astype(np.float64) for name, values in groups.items()}
    finite = {name: np.maximum(values, 1) if doubling else values for name, values in finite.items() if len(values)}
    if not finite:
        return None
    edges = _edges(np.concatenate(list(finite.values())), bins, doubling)
    counts = {name: tuple(np.histogram(values, edges)[0].tolist()) for name, values in finite.items()}
    return Histogram(tuple(edges.tolist()), counts, {name: float(np.median(values)) for name, values in finite.items()})


def _edges(values: Floats, bins: int, doubling: bool) -> Floats:
    low, high = float(values.min()), float(values.max())
    if doubling:
        return np.asarray(2.0 ** np.arange(math.floor(math.log2(low)), math.floor(math.log2(high)) + 2))
    if max(abs(low), abs(high)) < _MAX_EXACT and (values == np.round(values)).all():
        width = max(1, -(-int(high - low + 1) // bins))
        return np.asarray(low - 0.5 + width * np.arange(int(high - low) // width + 2))
    edges = np.unique(np.linspace(low, high, bins + 1))
    return edges if len(edges) > 1 else np.array([low, low + max(1, abs(low) / 1000)])


def histogram_from_json(content: Any) -> Histogram:
    """A `Histogram` from what `asdict` and JSON made of it. Raises ValueError for anything else."""
    try:
        edges = tuple(float(edge) for edge in content["edges"])
        groups = {str(name): tuple(int(count) for count in counts) for name, counts in content["groups"].items()}
        medians = {name: float(content["medians"][name]) for name in groups}
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"expected edges, groups and medians, got {type(error).__name__}: {error}") from error
    if any(len(counts) + 1 != len(edges) for counts in groups.values()) or sorted(set(edges)) != list(edges):
        raise ValueError("the numbers of edges and counts differ, or the edges do not increase")
    return Histogram(edges, groups, medians)


def histogram_chart(title: str, unit: str, histogram: Histogram) -> Chart:
    """Bars from zero, the groups of a bin beside each other."""
    bins, groups = range(len(histogram.edges) - 1), histogram.groups
    x = _bin_scale(histogram)
    y = value_scale(np.array([0.0, max((max(counts) for counts in groups.values()), default=0) or 1]), BOTTOM, TOP)
    bounds = [float(bound) for bound in x.position(np.array(histogram.edges))]
    colors = {name: index + 2 if len(groups) == 2 else index for index, name in enumerate(groups)}  # as pairs' curves
    bars = [
        _bar(
            bounds[index],
            bounds[index + 1],
            float(y.position(np.array(counts[index]))),
            group,
            len(groups),
            colors[name],
        )
        for group, (name, counts) in enumerate(groups.items())
        for index in bins
        if counts[index]
    ]
    legend = [
        LegendEntry(name, colors[name], f"median {format_number(histogram.medians[name])} of {sum(counts):,}", "bar")
        for name, counts in groups.items()
    ]
    summary = f"{title}: " + "; ".join(f"{entry.name} {entry.value}" for entry in legend)
    tooltips = [_tooltip(histogram, index) for index in bins]
    return Chart(title, unit, [*axes(x, y), *bars, *hover_strips(bounds, tooltips)], summary, legend)


def histogram_markdown(title: str, unit: str, histogram: Histogram | None) -> str:
    """A Markdown table with a row for each bin, named by its lowest value."""
    groups = histogram.groups if histogram else {}
    largest = max((max(counts) for counts in groups.values()), default=0) or 1
    lines = [f"**{title}** ({unit})", "", f"| from | {' | '.join(groups)} |", "|---:" * (1 + len(groups)) + "|"]
    for index, edge in enumerate(histogram.edges[:-1] if histogram else ()):
        start = edge + 0.5 if histogram and histogram.integral else edge
        cells = [
            f"{counts[index]:,} {'█' * round(_MARKDOWN_BAR * counts[index] / largest)}" for counts in groups.values()
        ]
        lines.append(f"| {start:,.4g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _bin_scale(histogram: Histogram) -> Scale:
    low, high = histogram.edges[0], histogram.edges[-1]
    if histogram.doubling:
        return Scale(low, high, LEFT, RIGHT, histogram.edges[:: 1 + len(histogram.edges) // 6], logarithmic=True)
    ticks = value_scale(np.array(histogram.edges), LEFT, RIGHT, max_ticks=5).ticks
    return Scale(low, high, LEFT, RIGHT, tuple(tick for tick in ticks if low <= tick <= high))


def _bar(left: float, right: float, top: float, group: int, num_groups: int, color: int) -> Shape:
    """The bar of one group; the groups share 90% of the room from left to right."""
    width = (right - left) * 0.9 / num_groups
    start = left + (right - left) * 0.05 + width * group
    return shape("rect", f"bar c{color}", x=start, y=top, width=width, height=BOTTOM - top)


def _tooltip(histogram: Histogram, index: int) -> str:
    low, high = histogram.edges[index], histogram.edges[index + 1]
    bounds = f"{format_number(low)} to {format_number(high)}"
    if histogram.integral:
        first, last = f"{low + 0.5:,.0f}", f"{high - 0.5:,.0f}"
        bounds = first if first == last else f"{first} to {last}"
    return "\n".join([bounds, *(f"{name} {counts[index]:,}" for name, counts in histogram.groups.items())])
