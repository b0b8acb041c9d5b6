"""Histograms: counting, drawing, Markdown, JSON."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tests.report.reading import read
from zephyr_jax.charts.chart import BOTTOM, LEFT, RIGHT, TOP
from zephyr_jax.charts.histogram import (
    Histogram,
    count_values,
    histogram_chart,
    histogram_from_json,
    histogram_markdown,
)
from zephyr_jax.charts.template import render


@pytest.mark.parametrize(
    "values",
    [
        np.arange(1000),
        np.array([7]),
        np.array([3, 3, 3]),
        np.linspace(-1, 1, 77),
        np.array([1e17, 1e17]),
        np.array([2, 2048]),
    ],
)
def test_every_value_is_in_one_bar(values: np.ndarray) -> None:
    histogram = count_values({"all": values})
    assert histogram is not None
    assert sum(histogram.groups["all"]) == len(values)
    assert len(histogram.edges) - 1 <= 33
    for bar, number in enumerate(histogram.groups["all"][:-1]):
        assert ((values >= histogram.edges[bar]) & (values < histogram.edges[bar + 1])).sum() == number


def test_bins_of_integers_hold_equally_many() -> None:
    """Otherwise a uniform distribution would look uneven."""
    histogram = count_values({"all": np.arange(10, 110)})
    assert histogram is not None
    assert set(histogram.groups["all"][:-1]) == {4}


def test_non_finite_values_are_not_counted() -> None:
    assert count_values({"a": np.array([np.nan, np.inf])}) is None
    histogram = count_values({"a": np.array([1.5, np.nan, 2.5]), "b": np.array([np.nan])})
    assert histogram is not None and list(histogram.groups) == ["a"] and sum(histogram.groups["a"]) == 2


def test_bars_are_as_tall_as_their_counts() -> None:
    counts = Histogram(
        (0.5, 1.5, 2.5, 3.5), {"chosen": (10, 0, 5), "rejected": (0, 20, 1)}, {"chosen": 1, "rejected": 2}
    )
    figure = read(render("charts/figure.html.jinja", chart=histogram_chart("Length", "tokens", counts)))
    bars = [each for each in figure.all("rect", "bar") if each.number("x") > 20]
    tallest = (BOTTOM - TOP) / 20
    np.testing.assert_allclose([bar.number("height") / tallest for bar in bars], [10, 5, 20, 1], atol=0.02)
    third = (RIGHT - LEFT) / 3
    assert [int((bar.number("x") - LEFT) // third) for bar in bars] == [0, 2, 1, 2]
    assert all(bar.number("y") + bar.number("height") == pytest.approx(BOTTOM) for bar in bars)
    assert [each.words() for each in figure.all("rect", "strip")][1] == "2\nchosen 0\nrejected 20"


def test_counts_survive_a_file() -> None:
    histogram = count_values({"chosen": np.arange(50), "rejected": np.arange(25)})
    assert histogram is not None
    assert histogram_from_json(json.loads(json.dumps(asdict(histogram)))) == histogram


@pytest.mark.parametrize(
    "content",
    [
        None, [], {}, {"edges": [1, 2], "groups": {"a": [1, 2]}, "medians": {"a": 1}},
        {"edges": 3, "groups": {}, "medians": {}},
        {"edges": [2, 1], "groups": {"a": [1]}, "medians": {"a": 1}},
        {"edges": [1, 2], "groups": {"a": ["x"]}, "medians": {"a": 1}},
        {"edges": [1, 2], "groups": {"a": [1]}, "medians": {}},
    ],
)  # fmt: skip
def test_malformed_json_is_refused(content: Any) -> None:
    with pytest.raises(ValueError):
        histogram_from_json(content)


def test_doubling_bins_are_powers_of_two() -> None:
    """Every value is in a bin; 0 counts as 1; the axis is logarithmic, so that bars are equally wide."""
    histogram = count_values({"all": np.array([0, 1, 2, 3, 4, 300])}, doubling=True)
    assert histogram is not None
    assert histogram.edges == tuple(2.0**power for power in range(10))
    assert histogram.groups["all"] == (2, 2, 1, 0, 0, 0, 0, 0, 1)
    assert histogram.medians["all"] == 2.5
    widths = {bar.attributes["width"] for bar in histogram_chart("a", "b", histogram).shapes if "bar" in bar.css}
    assert len(widths) == 1


def test_markdown_has_a_row_for_each_bin() -> None:
    histogram = count_values({"chosen": np.array([3.0, 3, 1]), "rejected": np.array([1.0, 1, 1])})
    rows = histogram_markdown("score", "points", histogram).splitlines()[4:]
    assert [[cell.strip(" █") for cell in row.strip("|").split("|")] for row in rows] == [
        ["1", "1", "3"],
        ["2", "0", "0"],
        ["3", "2", "0"],
    ]
    assert histogram_markdown("score", "points", None).startswith("**score** (points)")


@pytest.mark.parametrize(
    "values", [[5.0], [1e100, -1e100], [0.1, 0.1], [0.0, 1e-300], [1.0, 10.0, 10.0], [5e-324, 0.0]]
)
def test_every_value_has_a_bin_and_a_chart(values: list[float]) -> None:
    histogram = count_values({"all": np.array(values)}, bins=10)
    assert histogram is not None
    assert sum(histogram.groups["all"]) == len(values)
    assert histogram_markdown("a", "b", histogram)
    assert "nan" not in render("charts/figure.html.jinja", chart=histogram_chart("a", "b", histogram))
