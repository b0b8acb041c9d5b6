"""Bars are as tall as there are many."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from tests.report.reading import read
from zephyr_jax.report.frame import BOTTOM, LEFT, RIGHT, TOP
from zephyr_jax.report.histogram import Counts, counted, counts_from, histogram


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
    found = counted({"all": values})
    assert found is not None
    assert sum(found.groups["all"]) == len(values)
    assert len(found.edges) - 1 <= 33
    for bar, number in enumerate(found.groups["all"][:-1]):
        assert ((values >= found.edges[bar]) & (values < found.edges[bar + 1])).sum() == number


def test_bars_of_whole_numbers_hold_equally_many() -> None:
    """Otherwise even lengths would look uneven."""
    found = counted({"all": np.arange(10, 110)})
    assert found is not None
    assert set(found.groups["all"][:-1]) == {4}


def test_what_is_not_finite_is_not_counted() -> None:
    assert counted({"a": np.array([np.nan, np.inf])}) is None
    found = counted({"a": np.array([1.5, np.nan, 2.5]), "b": np.array([np.nan])})
    assert found is not None and list(found.groups) == ["a"] and sum(found.groups["a"]) == 2


def test_bars_are_as_tall_as_their_counts() -> None:
    counts = Counts((0.5, 1.5, 2.5, 3.5), {"chosen": (10, 0, 5), "rejected": (0, 20, 1)}, {"chosen": 1, "rejected": 2})
    figure = read(histogram("Length", "tokens", counts))
    bars = [each for each in figure.all("rect", "bar") if each.number("x") > 20]
    tallest = (BOTTOM - TOP) / 20
    np.testing.assert_allclose([bar.number("height") / tallest for bar in bars], [10, 5, 20, 1], atol=0.02)
    third = (RIGHT - LEFT) / 3
    assert [int((bar.number("x") - LEFT) // third) for bar in bars] == [0, 2, 1, 2]
    assert all(bar.number("y") + bar.number("height") == pytest.approx(BOTTOM) for bar in bars)
    assert [each.words() for each in figure.all("rect", "strip")][1] == "2\nchosen 0\nrejected 20"


def test_counts_survive_a_file() -> None:
    found = counted({"chosen": np.arange(50), "rejected": np.arange(25)})
    assert found is not None
    assert counts_from(json.loads(json.dumps(asdict(found)))) == found


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
def test_other_things_in_the_file_are_refused(content: Any) -> None:
    with pytest.raises(ValueError):
        counts_from(content)
