"""How values are spread: as Markdown with bars, and as a picture."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_BINS, _BAR = 10, 20
_BARS = 14  # reasons in the picture


@dataclass(frozen=True)
class Histogram:
    """Some series of numbers over the same bins."""

    title: str
    unit: str
    series: Mapping[str, np.ndarray]
    doubling: bool = False
    """Whether each bin is twice as wide as the one before: for lengths, which range from a word to a book."""

    @property
    def starts(self) -> np.ndarray:
        """What each bin is called by: its lowest value, or its only one."""
        return self.edges[:-1] + 0.5 if self._whole() else self.edges[:-1]

    @property
    def edges(self) -> np.ndarray:
        """Bins from the lowest value to the highest: powers of two, one for each whole number, or ten."""
        values = np.concatenate([*self.series.values()])
        if not len(values):
            return np.array([0.0, 1.0])
        low, high = float(values.min()), float(values.max())
        if self.doubling:
            first, last = math.floor(math.log2(max(low, 1))), math.floor(math.log2(max(high, 1))) + 1
            return 2.0 ** np.arange(first, last + 1)
        if self._whole():
            return np.arange(low - 0.5, high + 1)
        return np.linspace(low, high, _BINS + 1) if high > low else np.array([low, low + 1])

    def _whole(self) -> bool:
        """Whether all values are whole numbers, and few enough for a bin each."""
        values = np.concatenate([*self.series.values()])
        return not self.doubling and len(values) > 0 and bool(np.ptp(values) <= 2 * _BINS) and not np.any(values % 1)

    def counts(self) -> dict[str, np.ndarray]:
        """How many of each series are in each bin."""
        return {name: np.histogram(values, self.edges)[0] for name, values in self.series.items()}

    def markdown(self) -> str:
        """A table with a row for each bin."""
        counts = self.counts()
        most = max((int(each.max()) for each in counts.values()), default=0) or 1
        lines = [
            f"**{self.title}** ({self.unit})",
            "",
            f"| from | {' | '.join(counts)} |",
            "|---:" * (1 + len(counts)) + "|",
        ]
        for place, start in enumerate(self.starts):
            cells = [f"{each[place]:,} {'█' * round(_BAR * each[place] / most)}" for each in counts.values()]
            lines.append(f"| {start:,.4g} | {' | '.join(cells)} |")
        return "\n".join(lines)


def quantiles(values: np.ndarray) -> str:
    """Some numbers in a table's cells: 5 %, median, mean, 95 %, largest."""
    if not len(values):
        return "- | - | - | - | -"
    low, middle, high = np.quantile(values, [0.05, 0.5, 0.95])
    return " | ".join(f"{each:,.4g}" for each in (low, middle, values.mean(), high, values.max()))


@dataclass(frozen=True)
class Bars:
    """Some counts by name."""

    title: str
    unit: str
    counts: Mapping[str, int]
    shares: bool = False
    """Whether each is said as a share of them all, too."""

    def labels(self) -> list[str]:
        """What stands beside each bar."""
        whole = sum(self.counts.values()) or 1
        return [f"{each:,}{f' ({each / whole:.1%})' if self.shares else ''}" for each in self.counts.values()]


def picture(histograms: Sequence[Histogram], small: Sequence[Bars], outcomes: Bars) -> bytes:
    """A PNG: see `drawing`."""
    content = io.BytesIO()
    drawing(histograms, small, outcomes).savefig(content, format="png", dpi=100)
    return content.getvalue()


def drawing(histograms: Sequence[Histogram], small: Sequence[Bars], outcomes: Bars) -> Figure:
    """Histograms, below them small counts side by side, and below these what became of the rows. Words of users are drawn as
    ASCII, letter by letter."""
    rows = (max(len(each.counts) for each in small), min(len(outcomes.counts), _BARS))
    heights = [3.8, *(0.9 + 0.27 * each for each in rows)]
    figure = Figure(figsize=(13, sum(heights)), layout="constrained")
    places = figure.add_gridspec(3, 1, height_ratios=heights)
    above, middle, below = (figure.add_subfigure(places[place]) for place in range(3))
    for axes, each in zip(above.subplots(1, len(histograms), squeeze=False).flat, histograms, strict=True):
        _draw(axes, each)
    for axes, bars in zip(middle.subplots(1, len(small), squeeze=False).flat, small, strict=True):
        _draw_bars(axes, bars)
    _draw_bars(below.subplots(), outcomes)
    return figure


def _draw_bars(axes: Axes, bars: Bars) -> None:
    names, counts = [_drawn(name) for name in bars.counts][:_BARS], list(bars.counts.values())[:_BARS]
    drawn = axes.barh(range(len(names)), counts, color=["C2" if bars.shares else "0.6", *["0.6"] * len(names)])
    axes.bar_label(drawn, bars.labels()[:_BARS], padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set(title=bars.title, xlabel=bars.unit)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.spines[["top", "right"]].set_visible(False)


def _draw(axes: Axes, histogram: Histogram) -> None:
    edges = histogram.edges
    for place, (name, counts) in enumerate(histogram.counts().items()):
        values, colour = histogram.series[name], f"C{place}"
        axes.stairs(counts, edges, fill=True, color=colour, alpha=0.25)
        middle = float(np.median(values)) if len(values) else math.nan
        axes.axvline(middle, color=colour, linestyle="--")
        label = f"{name}, median {middle:,.4g}" if len(histogram.series) > 1 else f"median {middle:,.4g}"
        axes.stairs(counts, edges, color=colour, linewidth=1.5, label=label)
    axes.set(title=histogram.title, xlabel=histogram.unit, ylabel="how many")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    if histogram.doubling:
        axes.set_xscale("log", base=2)
        ticks = edges[:: 1 + len(edges) // 6]
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    elif len(edges) > 1 and edges[0] % 1 == 0.5:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)


def _drawn(text: str, longest: int = 60) -> str:
    short = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return ascii(short)[1:-1].replace("$", r"\$")
