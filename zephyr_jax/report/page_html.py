"""One page of HTML that needs nothing else: no script, no network, readable on a phone, by day and by night."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from zephyr_jax.report.markup import Markup, element, joined


@dataclass(frozen=True)
class Section:
    """A part of a page, under its heading."""

    heading: str
    body: tuple[Markup, ...]
    about: str = ""
    """A sentence or two that belong to it."""


def page(title: str, about: Sequence[str], tiles: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The whole document: a title, words about it, a few numbers to see first, and the sections."""
    anchors = [f"part-{number}" for number in range(len(sections))]
    links = [
        element("a", section.heading, href=f"#{anchor}") for section, anchor in zip(sections, anchors, strict=True)
    ]
    header = element(
        "header", element("p", "zephyr-jax", class_="kicker"), element("h1", title),
        *[element("p", words) for words in about],
        element("dl", *[_tile(name, value) for name, value in tiles.items()], class_="tiles") if tiles else None,
        element("nav", *links, aria_label="parts of this page"),
    )  # fmt: skip
    main = element("main", *map(_section, sections, anchors))
    foot = element(
        "footer", "Written by zephyr-jax. Everything on this page is in this file: nothing is loaded, nothing runs."
    )
    body = element("body", header, main, foot)
    return f"<!doctype html>\n{element('html', _head(title), body, lang='en')}\n"


def charts(pictures: Sequence[Markup]) -> Markup:
    """Pictures beside each other, as many as there is room for."""
    return element("div", *pictures, class_="charts")


def notes(texts: Sequence[str]) -> Markup:
    """Sentences, one below the other."""
    return element("ul", *[element("li", text) for text in texts], class_="notes")


def commands(lines: Sequence[str]) -> Markup:
    """What to type into a shell."""
    return element("pre", "\n".join(lines))


def folded(title: str, *content: Markup) -> Markup:
    """Something to open when it is wanted."""
    return element("details", element("summary", title), *content)


def subheading(text: str) -> Markup:
    """A heading inside a section."""
    return element("h3", text)


def _head(title: str) -> Markup:
    style = _style()
    digest = base64.b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(style)),
    )


@cache
def _style() -> str:
    return Path(__file__).with_name("style.css").read_text()


def _section(section: Section, anchor: str) -> Markup:
    about = element("p", section.about, class_="about") if section.about else None
    return element("section", element("h2", section.heading), about, joined(*section.body), id=anchor, class_="part")


def _tile(name: str, value: str) -> Markup:
    return element("div", element("dt", name), element("dd", value))
