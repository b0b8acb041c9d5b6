"""The data card of prepared rows: README.md with the YAML head that the hub and `datasets` read, a picture, and samples.

Texts of users and models stay text: in fences that they cannot close, with control characters escaped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from datasets import Features

from zephyr_jax.charts.bars import Bar, bar_chart
from zephyr_jax.charts.chart import Chart
from zephyr_jax.charts.histogram import Histogram, count_values, histogram_chart, histogram_markdown
from zephyr_jax.charts.picture import picture
from zephyr_jax.charts.scale import Floats
from zephyr_jax.errors import escape_control_chars, join_items
from zephyr_jax.prepare.raw import REJECTED_FILE
from zephyr_jax.prepare.rejections import RejectionLog

_BINS = 10
_MAX_BARS = 14
_OUTCOMES_WIDTH = 1100  # as wide as three histograms beside each other


@dataclass(frozen=True)
class Distribution:
    """Groups of numbers to show as a histogram and by their quantiles."""

    title: str
    unit: str
    groups: Mapping[str, Floats]
    doubling: bool = False
    """Whether the bins are powers of two, for lengths."""

    def histogram(self) -> Histogram | None:
        """The counts; None without numbers."""
        return count_values(self.groups, _BINS, self.doubling)


@dataclass(frozen=True)
class NamedCounts:
    """Counts to show as bars."""

    title: str
    unit: str
    counts: Mapping[str, int]
    percent: bool = False
    """Whether each is also shown as a share of their sum."""

    def chart(self, width: float = 360) -> Chart:
        """The first counts as bars; the first one stands out if they are shares."""
        total = sum(self.counts.values()) or 1
        bars = [
            Bar(name, count, f"{count:,} ({count / total:.1%})" if self.percent else f"{count:,}", color=5)
            for name, count in list(self.counts.items())[:_MAX_BARS]
        ]
        if bars and self.percent:
            bars[0] = replace(bars[0], color=2)
        return bar_chart(self.title, self.unit, bars, width=width)


def quantiles(values: Floats) -> str:
    """5 %, median, mean, 95 % and maximum as cells of a Markdown table."""
    if not len(values):
        return "- | - | - | - | -"
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return " | ".join(f"{number:,.4g}" for number in (low, median, values.mean(), high, values.max()))


@dataclass(frozen=True)
class Summary:
    """What one kind of preparation reports about the rows that it kept."""

    title: str
    about: str
    kept: int
    statistics: Mapping[str, str]
    distributions: Sequence[Distribution]
    counts: Sequence[NamedCounts] = ()


@dataclass(frozen=True)
class DataCard:
    """Content of README.md and card.svg."""

    summary: Summary
    command: str
    splits: Mapping[str, int]
    schema: pa.Schema
    rejections: RejectionLog
    settings: Mapping[str, Any]

    def outcomes(self) -> dict[str, int]:
        """Rows kept, then rows skipped by reason, the most frequent reason first."""
        skipped = sorted(self.rejections.skipped_rows.items(), key=lambda item: (-item[1], item[0]))
        return {"kept": self.summary.kept, **dict(skipped)}

    def markdown(self) -> str:
        """README.md."""
        log, distributions = self.rejections, self.summary.distributions
        ignored = f"Ignored in the data folder: {_cell(join_items(log.ignored_names))}." if log.ignored_names else ""
        parts = [
            f"---\n{yaml.safe_dump(self._front_matter(), sort_keys=False)}---",
            f"# {self.summary.title}",
            self.summary.about,
            "## Splits\n\n" + _table(("split", "rows"), self.splits),
            f"## Rows kept and skipped\n\n{log.rows_read:,} rows read.\n\n"
            + _table(("outcome", "rows"), self.outcomes()),
            *[
                _table((title, "count"), dict(sorted(counts.items())))
                for title, counts in (("skipped answers", log.skipped_answers), ("repairs", log.repairs))
                if counts
            ],
            ignored,
            f"`{REJECTED_FILE}` lists every skipped row and answer with its place; `samples.md` shows some of each reason.",
            "## Statistics\n\n" + _table(("statistic", "value"), self.summary.statistics),
            self._quantile_table(),
            "![histograms](card.svg)",
            *[histogram_markdown(one.title, one.unit, one.histogram()) for one in distributions],
            f"## Command\n\n{_fenced(self.command)}\n\n{_fenced(yaml.safe_dump(dict(self.settings), sort_keys=False), 'yaml')}",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def picture(self) -> str:
        """card.svg: histograms, counts below them, and the outcomes of all rows at the bottom."""
        histograms = [
            histogram_chart(one.title, one.unit, histogram)
            for one in self.summary.distributions
            if (histogram := one.histogram()) is not None
        ]
        counts = [*self.summary.counts, NamedCounts("splits", "rows", self.splits)]
        outcomes = NamedCounts("outcome of each row", "rows", self.outcomes(), percent=True)
        return picture([histograms, [one.chart() for one in counts], [outcomes.chart(_OUTCOMES_WIDTH)]])

    def _front_matter(self) -> dict[str, Any]:
        # `datasets` opens none of the splits when one that is named here has no rows
        files = [{"split": name, "path": f"{name}.parquet"} for name, rows in self.splits.items() if rows]
        features = Features.from_arrow_schema(self.schema)._to_yaml_list()
        return {
            "configs": [{"config_name": "default", "data_files": files}],
            "dataset_info": {"features": features},
            "tags": ["zephyr-jax"],
        }

    def _quantile_table(self) -> str:
        lines = ["| | 5 % | median | mean | 95 % | maximum |", "|---|---:|---:|---:|---:|---:|"]
        for one in self.summary.distributions:
            for name, values in one.groups.items():
                lines.append(f"| {one.title}: {name} ({one.unit}) | {quantiles(values)} |")
        return "\n".join(lines)


def samples_markdown(samples: Mapping[str, Sequence[str]]) -> str:
    """samples.md: sample texts of each reason and each kind of repair."""
    parts = ["# Samples of skipped and repaired texts", "The beginnings of a few texts of each kind."]
    for kind, texts in samples.items():
        parts += [f"## {_cell(kind)}", *[_fenced(text) for text in texts if text]]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---:|"]
    lines += [
        f"| {_cell(name)} | {value if isinstance(value, str) else f'{value:,}'} |" for name, value in rows.items()
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text with Markdown escaped, on one line."""
    return re.sub(r"([\\`*|<>#&\[\]])", r"\\\1", escape_text(text).replace("\n", " "))


def _fenced(text: str, language: str = "text") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{language}\n{escape_text(text).rstrip()}\n{fence}"


def escape_text(text: str) -> str:
    """Text with control characters escaped, but for line ends and tabs."""
    return re.sub(r"[^\n\t]+", lambda match: escape_control_chars(match[0]), text)
