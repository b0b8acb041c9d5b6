"""A page read as a browser reads it: elements, attributes, text."""

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np

from zephyr_jax.charts.chart import BOTTOM, LEFT, RIGHT, TOP


@dataclass
class Node:
    """An element with what is inside it."""

    name: str
    attributes: dict[str, str | None]
    children: list["Node"] = field(default_factory=list)
    text: str = ""

    def all(self, name: str | None = None, class_: str | None = None) -> list["Node"]:
        """Elements below with a name and a class, in order."""
        found = []
        for child in self.children:
            if name in (None, child.name) and (
                class_ is None or class_ in (child.attributes.get("class") or "").split()
            ):
                found.append(child)
            found += child.all(name, class_)
        return found

    def words(self) -> str:
        """All text inside."""
        return self.text + "".join(child.words() for child in self.children)

    def number(self, name: str) -> float:
        """An attribute as a number."""
        return float(self.attributes[name] or "nan")


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Node("document", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag != "meta":
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")


def read(text: str) -> Node:
    """The tree of a page, in which every element that is opened is closed."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert len(reader.open) == 1
    return reader.open[0]


def path(node: Node) -> list[np.ndarray]:
    """The stretches of a drawn line: float [n, 2] each."""
    pieces = (node.attributes["d"] or "").split("M")[1:]
    return [np.array([[float(x) for x in pair.split(",")] for pair in piece.split()]) for piece in pieces]


def dots(node: Node) -> np.ndarray:
    """Middles of the dots of a picture, not of its legend: float [n, 2]."""
    (picture,) = [each for each in node.all("svg") if each.attributes.get("role") == "img"]
    return np.array([[each.number("cx"), each.number("cy")] for each in picture.all("circle", "dot")])


def measured(figure: Node, points: np.ndarray, first: float, last: float) -> np.ndarray:
    """Points of a picture back in steps and values, by the figures at its axes; `first` and `last` are the ends of its steps."""
    marks = [(each.number("y") - 4, _value(each.words())) for each in figure.all("text", "y")]
    (low_place, low), (high_place, high) = marks[0], marks[-1]
    steps = first + (points[:, 0] - LEFT) / (RIGHT - LEFT) * (last - first)
    values = low + (points[:, 1] - low_place) / (high_place - low_place) * (high - low)
    assert ((points[:, 1] <= BOTTOM + 0.05) & (points[:, 1] >= TOP - 0.05)).all()
    return np.stack([steps, values], axis=1)


def _value(text: str) -> float:
    number, unit = re.fullmatch(r"(-?[\d.]+(?:e-?\d+)?)([kMGT%]?)", text).groups()
    return float(number) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "%": 0.01}[unit]
