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


def picture(histograms: Sequence[Histogram], outcomes: Mapping[str, int]) -> bytes:
    """A PNG: the histograms, and below them what became of the rows. Words of users are drawn as ASCII, letter by letter."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    places = figure.add_gridspec(2, 1, height_ratios=(3, 2))
    above, below = figure.add_subfigure(places[0]), figure.add_subfigure(places[1])
    for axes, each in zip(above.subplots(1, len(histograms), squeeze=False).flat, histograms, strict=True):
        _draw(axes, each)
    names = [_drawn(name) for name in outcomes][:_BARS]
    axes = below.subplots()
    colours = ["tab:green"] + ["tab:gray"] * (len(names) - 1)
    bars = axes.barh(range(len(names)), list(outcomes.values())[:_BARS], color=colours)
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 6) - 0.5, -0.5)
    axes.margins(x=0.1)
    axes.set(title="what became of the rows", xlabel="rows")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _draw(axes: Axes, histogram: Histogram) -> None:
    edges = histogram.edges
    for name, values in histogram.series.items():
        axes.hist(values, edges.tolist(), alpha=0.55, label=name)
    axes.set(title=histogram.title, xlabel=histogram.unit, ylabel="how many")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    if histogram.doubling:
        axes.set_xscale("log", base=2)
        ticks = edges[:: 1 + len(edges) // 6]
        axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    elif len(edges) > 1 and edges[0] % 1 == 0.5:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(histogram.series) > 1:
        axes.legend(frameon=False)


def _drawn(text: str, longest: int = 60) -> str:
    short = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return ascii(short)[1:-1].replace("$", r"\$")
