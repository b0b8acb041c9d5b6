"""The report as data: sections of charts, tables, texts and samples. A Jinja template turns it into one self-contained page."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar

from zephyr_jax.charts.chart import Chart
from zephyr_jax.charts.template import render, stylesheet


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, as many as there is room for."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; it scrolls horizontally on a narrow screen."""

    kind: ClassVar[str] = "table"
    header: Sequence[object]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    values: Mapping[str, object]


@dataclass(frozen=True)
class Notes:
    """A list of sentences."""

    kind: ClassVar[str] = "notes"
    texts: Sequence[str]


@dataclass(frozen=True)
class Commands:
    """Lines to paste into a shell."""

    kind: ClassVar[str] = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class Subheading:
    """A heading inside a section."""

    kind: ClassVar[str] = "subheading"
    text: str


@dataclass(frozen=True)
class Sample:
    """One model's answer to a prompt."""

    model: str
    text: str
    ended: bool = True
    """False if generation stopped at the token limit."""


@dataclass(frozen=True)
class PromptSamples:
    """A prompt with one sample of each model, in the same order for all prompts."""

    prompt: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Samples:
    """Prompts with the models' answers side by side; below each other on a phone."""

    kind: ClassVar[str] = "samples"
    prompts: Sequence[PromptSamples]


@dataclass(frozen=True)
class Details:
    """Blocks that are folded until the reader opens them."""

    kind: ClassVar[str] = "details"
    title: str
    blocks: Sequence["Block"]


type Block = Charts | Table | Facts | Notes | Commands | Subheading | Samples | Details


@dataclass(frozen=True)
class Section:
    """Blocks under a heading, which the page's navigation links to."""

    heading: str
    blocks: Sequence[Block]
    about: str = ""
    """A sentence or two below the heading."""


def render_report(title: str, about: Sequence[str], tiles: Mapping[str, str], sections: Sequence[Section]) -> str:
    """The HTML document. It runs no scripts and loads nothing; its content security policy forbids both.

    Args:
        about: paragraphs below the title.
        tiles: name -> value of the few numbers to show first.
    """
    style = stylesheet("charts/chart.css") + stylesheet("report/report.css")
    digest = base64.b64encode(sha256(style.encode()).digest()).decode()
    return render(
        "report/report.html.jinja",
        title=title,
        about=about,
        tiles=tiles,
        sections=sections,
        style=style,
        policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
    )
