"""SVG files of their own: bars, radar charts, panels side by side."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from zephyr_jax.charts.bars import Bar, bar_chart
from zephyr_jax.charts.histogram import count_values, histogram_chart
from zephyr_jax.charts.picture import picture
from zephyr_jax.charts.radar import radar_chart

SVG = "{http://www.w3.org/2000/svg}"
EVIL = '<script>alert(1)</script> & "\x00\x1b\ud800'


def test_bars_are_as_long_as_their_values() -> None:
    chart = bar_chart("rows", "rows", [Bar("a", 3, "3 (75%)"), Bar("b", 1, error=0.5)], maximum=4)
    first, second = (float(shape.attributes["width"]) for shape in chart.shapes if "bar" in shape.css)
    assert first == pytest.approx(3 * second, abs=0.02)
    (error,) = [shape.attributes["d"] for shape in chart.shapes if shape.tag == "path"]
    low, high = (float(number) for number in re.match(r"M([\d.]+),[\d.]+H([\d.]+)M", error).groups())
    assert high - low == pytest.approx(second, abs=0.2)
    assert chart.summary == "rows: a 3 (75%); b 1"
    assert bar_chart("none", "rows", []).shapes


def test_radar_points_lie_on_their_spokes() -> None:
    chart = radar_chart("MT-Bench", "rating", {"ours": {"writing": 10.0, "math": 5.0, "coding": None}}, maximum=10)
    (outline,) = [shape.attributes["d"] for shape in chart.shapes if shape.css == "line c0"]
    points = np.array([[float(x) for x in point.split(",")] for point in outline.strip("MZ").split("L")])
    radii = np.hypot(*(points - [chart.width / 2, chart.height / 2]).T)
    np.testing.assert_allclose(radii / radii[0], [1, 0.5, 0], atol=0.01)
    assert "math 5" in chart.summary


def test_a_picture_is_well_formed_whatever_the_text() -> None:
    """Text of users stays text; panels do not overlap and lie inside."""
    histogram = count_values({EVIL: np.arange(50)})
    assert histogram is not None
    rows = [
        [histogram_chart(EVIL, EVIL, histogram), bar_chart(EVIL, EVIL, [Bar(EVIL, 1, EVIL)])],
        [radar_chart(EVIL, EVIL, {EVIL: {EVIL: 1.0}}, maximum=10)],
    ]
    root = ET.fromstring(picture(rows))
    assert root.tag == f"{SVG}svg"
    assert not [node for node in root.iter() if node.tag.removeprefix(SVG) in ("script", "image", "foreignObject")]
    boxes = [[float(node.attrib[name]) for name in ("x", "y", "width", "height")] for node in root.findall(f"{SVG}svg")]
    assert len(boxes) == 3
    assert boxes[0][0] + boxes[0][2] <= boxes[1][0] and boxes[0][1] + boxes[0][3] <= boxes[2][1]
    for x, y, width, height in boxes:
        assert x + width <= float(root.attrib["width"]) and y + height <= float(root.attrib["height"])
