"""The page of prepared data: README.md with what the hub and `datasets` read on top, and samples for the eye.

What users and models wrote is shown as text: in fences that it cannot close, control characters spelt out.
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
from zephyr_jax.errors import join_items
from zephyr_jax.prepare.filter_stats import Ledger

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
class Page:
    """What a card says."""

    title: str
    about: str
    command: str
    splits: Mapping[str, int]
    schema: pa.Schema
    ledger: Ledger
    kept: int
    facts: Mapping[str, str]
    distributions: Sequence[Distribution]
    counts: Sequence[NamedCounts]
    settings: Mapping[str, Any]

    def outcomes(self) -> dict[str, int]:
        """What became of the rows that were read: those kept, then reasons, the commonest first."""
        return {"kept": self.kept, **dict(sorted(self.ledger.rows.items(), key=lambda item: (-item[1], item[0])))}

    def markdown(self) -> str:
        """README.md."""
        parts = [
            f"---\n{yaml.safe_dump(self._front(), sort_keys=False)}---",
            f"# {self.title}",
            self.about,
            "## Splits\n\n" + _table(("split", "rows"), self.splits),
            f"## What became of the rows\n\n{self.ledger.read:,} were read.\n\n"
            + _table(("rows", "how many"), self.outcomes()),
            *self._answers(),
            self._passed_over(),
            "`set_aside/rows.jsonl` lists what was set aside, each with its place; `samples.md` shows some of every kind.",
            "## Numbers\n\n" + _table(("what", "value"), self.facts),
            self._spread(),
            "![histograms](card.svg)",
            *[histogram_markdown(one.title, one.unit, one.histogram()) for one in self.distributions],
            f"## How\n\n{_fenced(self.command)}\n\n{_fenced(yaml.safe_dump(dict(self.settings), sort_keys=False), 'yaml')}",
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def picture(self) -> str:
        """card.svg: histograms, counts below them, and the outcomes of all rows at the bottom."""
        histograms = [
            histogram_chart(one.title, one.unit, histogram)
            for one in self.distributions
            if (histogram := one.histogram()) is not None
        ]
        counts = [*self.counts, NamedCounts("splits", "rows", self.splits)]
        outcomes = NamedCounts("outcome of each row", "rows", self.outcomes(), percent=True)
        return picture([histograms, [one.chart() for one in counts], [outcomes.chart(_OUTCOMES_WIDTH)]])

    def _front(self) -> dict[str, Any]:
        # `datasets` opens none of the splits when one that is named here has no rows
        files = [{"split": name, "path": f"{name}.parquet"} for name, rows in self.splits.items() if rows]
        features = Features.from_arrow_schema(self.schema)._to_yaml_list()
        return {
            "configs": [{"config_name": "default", "data_files": files}],
            "dataset_info": {"features": features},
            "tags": ["zephyr-jax"],
        }

    def _answers(self) -> list[str]:
        both = {"answers set aside": self.ledger.answers, "put right": self.ledger.repairs}
        return [_table((name, "how many"), dict(sorted(each.items()))) for name, each in both.items() if each]

    def _passed_over(self) -> str:
        names = self.ledger.passed_over
        return f"Passed over in the folder, as they hold no rows: {_cell(join_items(names))}." if names else ""

    def _spread(self) -> str:
        lines = ["| | 5 % | median | mean | 95 % | largest |", "|---|---:|---:|---:|---:|---:|"]
        for each in self.distributions:
            for name, values in each.groups.items():
                lines.append(f"| {each.title}: {name} ({each.unit}) | {quantiles(values)} |")
        return "\n".join(lines)


def samples_page(samples: Mapping[str, Sequence[str]]) -> str:
    """samples.md: some texts of every kind of removal and repair."""
    parts = ["# What was left out, and what was put right", "The beginnings of a few texts of each kind."]
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
    """Text that stays within its cell or heading, and is no markup."""
    return re.sub(r"([\\`*|<>#&\[\]])", r"\\\1", spelt(text).replace("\n", " "))


def _fenced(text: str, kind: str = "text") -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}{kind}\n{spelt(text).rstrip()}\n{fence}"


def spelt(text: str) -> str:
    """Characters that a terminal or a page would obey, spelt out."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else each.encode("unicode_escape").decode() for each in text
    )
