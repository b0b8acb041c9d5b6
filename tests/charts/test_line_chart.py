"""Line charts: positions, gaps, downsampling, tooltips."""

import math
from typing import Any

import numpy as np
import pytest

from tests.report.reading import Node, dots, measured, path, read
from zephyr_jax.charts.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from zephyr_jax.charts.line_chart import Level, Series, downsample, line_chart, moving_median
from zephyr_jax.charts.scale import format_ticks
from zephyr_jax.charts.template import render


def series(values: list[float] | np.ndarray, start: int = 1, name: str = "training", is_dots: bool = False) -> Series:
    return Series(name, np.arange(start, start + len(values)), np.array(values, np.float64), 0, is_dots)


def figure_text(*series: Series, **options: Any) -> str:
    return render("charts/figure.html.jinja", chart=line_chart("Loss", "nats", series, **options))


def drawn(*series: Series, **options: Any) -> Node:
    return read(figure_text(*series, **options)).all("figure")[0]


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1, 7e5, 3e13])
@pytest.mark.parametrize("shift", [0, -0.4, 2.5])
def test_points_match_the_axis_labels(factor: float, shift: float) -> None:
    """Read back by the figures at the axes, a line is its data, to the tenth of a unit that the picture resolves."""
    values = (np.random.default_rng(0).random(40) + shift) * factor
    figure = drawn(series(values, start=5))
    (piece,) = path(figure.all("path", "line")[1])
    back = measured(figure, piece, 5, 44)
    np.testing.assert_allclose(back[:, 0], np.arange(5, 45), atol=0.01 * 39)
    np.testing.assert_allclose(back[:, 1], values, atol=0.002 * 3 * factor)


def test_step_labels_are_at_their_steps() -> None:
    figure = drawn(series(np.arange(90.0), start=10))
    for mark in figure.all("text", "x"):
        expected = LEFT + (float(mark.words()) - 10) / 89 * (RIGHT - LEFT)
        assert mark.number("x") == pytest.approx(expected, abs=0.06)
    assert len(figure.all("text", "x")) >= 3


def test_non_finite_numbers_are_gaps_and_listed() -> None:
    values = [1.0, 2.0, math.nan, 3.0, 4.0, math.inf, -math.inf, 5.0]
    figure = drawn(series(values))
    assert [len(piece) for piece in path(figure.all("path", "line")[1])] == [2, 2, 1]
    assert len(dots(figure)) == 1  # a line of one point would be invisible
    assert "Not finite: training at step 3, 6, 7." in figure.words()


def test_the_legend_shows_the_last_number_even_if_nan() -> None:
    """A run that ended in NaN does not look as if it had ended well."""
    assert drawn(series([1.0, 2.0, math.nan])).all("ul", "legend")[0].words().split() == ["training", "NaN"]


@pytest.mark.parametrize(
    ("ticks", "said"),
    [
        ((0, 5e-5, 1e-4, 1.5e-4), ["0", "0.5e-4", "1e-4", "1.5e-4"]),
        ((1e-7, 1e-5, 1e-3), ["1e-7", "1e-5", "0.001"]),
        ((-0.02, 0, 0.02), ["-0.02", "0", "0.02"]),
        ((0, 2e18), ["0", "2e18"]),
    ],
)
def test_tick_labels_share_one_format(ticks: tuple[float, ...], said: list[str]) -> None:
    assert format_ticks(ticks) == said


def test_a_series_of_gaps_is_accepted() -> None:
    figure = drawn(series([math.nan] * 3))
    assert path(figure.all("path", "line")[1]) == []
    assert "at step 1, 2, 3" in figure.words()
    assert "NaN" in figure.words()


def test_one_point_is_a_dot_in_the_middle() -> None:
    ((x, y),) = dots(drawn(series([3.5], start=7)))
    assert x == (LEFT + RIGHT) / 2
    assert TOP < y < BOTTOM


@pytest.mark.parametrize("value", [0.0, 0.6931, -5.0, 1e-12, 1e15])
def test_a_constant_is_a_horizontal_line_inside(value: float) -> None:
    (piece,) = path(drawn(series([value] * 5)).all("path", "line")[1])
    assert len(set(piece[:, 1])) == 1
    assert TOP < piece[0, 1] < BOTTOM


def test_downsampling_keeps_extremes() -> None:
    """Each column's lowest and highest are there, and with them a spike of a single step."""
    values = np.random.default_rng(1).normal(size=100_000)
    values[56_789], values[12_345] = 40.0, -30.0
    steps = np.arange(100_000)
    kept_steps, kept = downsample(steps, values)
    assert len(kept) <= 4 * (RIGHT - LEFT)
    assert (np.diff(kept_steps) > 0).all()
    assert (values[kept_steps] == kept).all()
    for column in np.array_split(steps, RIGHT - LEFT)[::7]:
        inside = kept[(kept_steps >= column[0] - 330) & (kept_steps <= column[-1] + 330)]
        assert inside.min() <= values[column].min() and inside.max() >= values[column].max()
    text = figure_text(Series("training", steps, values, 0))
    figure = read(text).all("figure")[0]
    back = measured(figure, path(figure.all("path", "raw")[0])[0], 0, 99_999)
    assert back[:, 1].max() == pytest.approx(40, abs=0.3) and back[:, 1].min() == pytest.approx(-30, abs=0.3)
    assert abs(back[np.argmax(back[:, 1]), 0] - 56_789) < 33
    assert len(text) < 100_000


def test_downsampling_keeps_gaps() -> None:
    values = np.ones(50_000)
    values[20_000:30_000] = np.nan
    pieces = path(drawn(series(values)).all("path", "raw")[0])
    assert len(pieces) == 2
    assert pieces[0][-1, 0] == pytest.approx(LEFT + 0.4 * (RIGHT - LEFT), abs=1.5)
    assert pieces[1][0, 0] == pytest.approx(LEFT + 0.6 * (RIGHT - LEFT), abs=1.5)


def test_the_moving_median_ignores_spikes() -> None:
    noise = np.random.default_rng(2).normal(size=400) / 10
    steps, medians = moving_median(np.arange(400), np.linspace(0, 4, 400) + noise)
    np.testing.assert_allclose(medians, steps / 100, atol=0.25)
    assert np.std(np.diff(medians)) < np.std(np.diff(noise)) / 4
    _, spiked = moving_median(np.arange(400), np.where(np.arange(400) == 200, 1e200, 0.5))
    assert (np.delete(spiked, 200) == 0.5).all()
    steps, medians = moving_median(np.arange(100_000), np.arange(100_000.0))
    assert len(steps) <= 2 * (RIGHT - LEFT)
    np.testing.assert_allclose(medians, steps, atol=1)


def test_a_few_large_values_make_the_axis_logarithmic() -> None:
    """Where all are positive and some dwarf the rest, the axis goes by powers of ten and says so."""
    values = np.linspace(2, 1, 50)
    values[20] = 1e6
    figure = drawn(series(values))
    (piece,) = path(figure.all("path", "line")[1])
    np.testing.assert_allclose(piece[:, 1], BOTTOM - np.log10(values) / 6 * (BOTTOM - TOP), atol=0.06)
    assert "Logarithmic" in figure.words()
    assert "Logarithmic" not in drawn(series(np.linspace(2, 1, 50))).words()


def test_several_series_share_the_axes() -> None:
    few = Series("held out", np.array([0, 10, 20]), np.array([3.0, 2.0, 1.0]), 1, dots=True)
    figure = drawn(series(np.linspace(3, 1, 20)), few)
    back = measured(figure, dots(figure), 0, 20)
    np.testing.assert_allclose(back, [[0, 3], [10, 2], [20, 1]], atol=0.05)
    assert [each.words().split() for each in figure.all("li")] == [["training", "1"], ["held", "out", "1"]]


def test_percentages_on_an_axis_from_0_to_1() -> None:
    figure = drawn(series([0.5, 0.75]), percent=True, unit_range=True)
    assert [each.words() for each in figure.all("text", "y")] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert "75.0%" in figure.words()
    (piece,) = path(figure.all("path", "line")[1])
    np.testing.assert_allclose(piece[:, 1], [BOTTOM - 0.5 * (BOTTOM - TOP), BOTTOM - 0.75 * (BOTTOM - TOP)], atol=0.06)


def test_a_level_is_always_inside() -> None:
    (line,) = drawn(series([0.2, 0.3]), level=Level("ln 2", math.log(2))).all("line", "level")
    assert TOP <= line.number("y1") <= BOTTOM


@pytest.mark.parametrize("count", [1, 2, 60, 81, 5000])
def test_tooltips_cover_every_step_once(count: int) -> None:
    """Strips lie side by side over the whole picture, and every step is reported by exactly one of them."""
    strips = drawn(series(np.arange(count, dtype=float))).all("rect", "strip")
    assert strips[0].number("x") == LEFT
    ends = [strip.number("x") + strip.number("width") for strip in strips]
    assert ends[-1] == pytest.approx(RIGHT, abs=0.1)
    np.testing.assert_allclose([strip.number("x") for strip in strips[1:]], ends[:-1], atol=0.11)
    said = [strip.words().split("\n")[0].replace(",", "").split() for strip in strips]
    assert sum(int(words[-1]) - int(words[1]) + 1 for words in said) == count
    assert all("training" in strip.words() for strip in strips)


def test_the_summary_for_screen_readers() -> None:
    (picture,) = [each for each in drawn(series([3.0, 1.0, 2.0])).all("svg") if each.attributes.get("role") == "img"]
    assert picture.attributes["aria-label"] == "Loss: training from 3 to 2, lowest 1, highest 3"
    assert picture.children[0].name == "title"
    assert picture.attributes["viewbox"] == f"0 0 {WIDTH} {HEIGHT}"


@pytest.mark.parametrize(
    "values",
    [[1e308, -1e308], [5e-324, 1.0], [1e299, 1.0], [-0.0, 0.0], [1.0, 1.0 + 1e-15], [0.0, 5e-324], [1e-299, 2e-299]],
)
def test_extreme_floats_stay_inside(values: list[float]) -> None:
    """Nothing is drawn outside, and no figure is NaN."""
    text = figure_text(series(values))
    assert "nan" not in text.lower().replace("not finite", "").replace("no finite", "")
    for piece in path(read(text).all("path", "line")[1]):
        assert ((piece[:, 1] >= TOP - 0.05) & (piece[:, 1] <= BOTTOM + 0.05)).all()
