"""What every picture has: its place on the page, axes, a legend, and words for those who point at it or cannot see it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zephyr_jax.report.markup import LONGEST, Markup, cut, element, joined
from zephyr_jax.report.scale import Scale, spelt_ticks

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 352, 10, 174


@dataclass(frozen=True)
class Key:
    """A line of the legend."""

    name: str
    colour: int
    value: str = ""
    kind: str = "line"
    """`line`, `dots` or `bar`: how it is drawn."""


@dataclass(frozen=True)
class Hint:
    """What is said of the stretch of the picture from `start` to `end` when it is pointed at."""

    start: float
    end: float
    text: str


def figure(
    title: str, unit: str, keys: Sequence[Key], summary: str, drawing: Markup, hints: Sequence[Hint], note: str = ""
) -> Markup:
    """A picture with its title, legend and note; `summary` says in words what there is to see."""
    legend = element("ul", *[_legend(key) for key in keys], class_="legend") if keys else None
    strips = [_strip(hint) for hint in hints]
    picture = element(
        "svg", element("title", summary), drawing, *strips,
        viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=cut(summary, LONGEST),
    )  # fmt: skip
    heading = element("figcaption", element("strong", title), " ", element("span", unit, class_="unit"))
    return element(
        "figure", heading, legend, picture, element("p", note, class_="note") if note else None, class_="chart"
    )


def axes(x: Scale, y: Scale, share: bool = False) -> Markup:
    """Lines at the round numbers of `y`, marks at those of `x`, and both in figures."""
    lines = []
    for place, text in zip(y.place(np.array(y.ticks)), spelt_ticks(y.ticks, share), strict=True):
        lines.append(element("line", x1=LEFT, x2=RIGHT, y1=f"{place:.1f}", y2=f"{place:.1f}", class_="grid"))
        lines.append(element("text", text, x=LEFT - 6, y=f"{place + 4:.1f}", class_="y"))
    for place, text in zip(x.place(np.array(x.ticks)), spelt_ticks(x.ticks), strict=True):
        lines.append(element("line", x1=f"{place:.1f}", x2=f"{place:.1f}", y1=BOTTOM, y2=BOTTOM + 4, class_="mark"))
        lines.append(element("text", text, x=f"{place:.1f}", y=BOTTOM + 18, class_="x"))
    return joined(*lines, element("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="mark"))


def _legend(key: Key) -> Markup:
    shapes = {
        "line": element("path", d="M1 5H21", class_=f"line c{key.colour}"),
        "dots": joined(
            element("path", d="M1 5H21", class_=f"dashes c{key.colour}"),
            element("circle", cx=11, cy=5, r=3, class_=f"dot c{key.colour}"),
        ),
        "bar": element("rect", x=4, y=0, width=14, height=10, class_=f"bar c{key.colour}"),
    }
    swatch = element("svg", shapes[key.kind], viewBox="0 0 22 10", class_="swatch", aria_hidden="true")
    return element("li", swatch, " ", key.name, element("b", f" {key.value}") if key.value else None)


def _strip(hint: Hint) -> Markup:
    width = max(hint.end - hint.start, 0.5)
    return element(
        "rect", element("title", hint.text), x=f"{hint.start:.1f}", y=TOP, width=f"{width:.1f}", height=BOTTOM - TOP,
        class_="strip",
    )  # fmt: skip
