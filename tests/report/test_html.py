"""Whatever the texts of models and files, a report is one valid document that runs no scripts and loads nothing."""

import base64
import re
from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import pytest

from tests.report.reading import Node, read
from zephyr_jax.charts.histogram import count_values, histogram_chart
from zephyr_jax.charts.line_chart import Series, line_chart
from zephyr_jax.methods.dpo import DPO
from zephyr_jax.methods.sft import SFT
from zephyr_jax.report.curves import curve_charts, curves_of
from zephyr_jax.report.html import (
    Charts,
    Commands,
    Details,
    Facts,
    Notes,
    PromptSamples,
    Sample,
    Samples,
    Section,
    Subheading,
    Table,
    render_report,
)
from zephyr_jax.report.sections import flatten_settings
from zephyr_jax.train.metrics_file import parse_metrics

EVIL = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title></head><body onload=alert(1)>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)",
    "</div></section></main><iframe src='https://evil.example'></iframe>",
    "<!-- <a href=javascript:alert(1)>x</a> -->",
    "<svg/onload=alert(1)>",
    "&lt;script&gt;&#60;b&#62; &amp; &nbsp",
    "]]><style>*{display:none}</style>",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "\0<b>\x1b[31m\x08 \ud800 lone \x85",
    "\u202egnp.exe\u2066",
    "{{ 7 * 7 }} ${7*7} <%= 7 %>",
    "<b" * 50,
]  # fmt: skip
ELEMENTS = """
html head meta title style body header h1 h2 h3 h4 p dl div dt dd nav a main section footer figure figcaption strong span ul li
svg line text path circle rect b table thead tbody tr th td article i details summary pre
"""
ATTRIBUTES = """
lang charset http-equiv content name class href id scope tabindex dir role aria-label aria-hidden viewbox d x y x1 x2 y1 y2 cx
cy r width height
"""


def full_page(text: str) -> str:
    """A page with every kind of block, which shows `text` wherever a text can be."""
    points = Series(text, np.arange(3), np.array([1.0, 2.0, 3.0]), 0)
    histogram = count_values({text: np.arange(9)})
    assert histogram is not None
    charts = Charts([line_chart(text, text, [points]), histogram_chart(text, text, histogram)])
    samples = (Sample(text, text), Sample(text, text, ended=False), Sample(text, ""))
    return render_report(
        text,
        [text],
        {text: text},
        [
            Section(text, [charts], text),
            Section(text, [
                Samples([PromptSamples(text, samples)]), Table([text, text], [[text, text]]),
                Facts(flatten_settings({text: {text: text}})),
            ]),
            Section("a", [Notes([text]), Details(text, [Subheading(text)]), Commands([text])]),
        ],
    )  # fmt: skip


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


@pytest.mark.parametrize("text", EVIL)
def test_text_stays_text(text: str) -> None:
    """The tree of elements is that of harmless text, and the text is there to be read."""
    evil, tame = full_page(text), full_page("tame")
    skeleton = [[(node.name, sorted(node.attributes.keys())) for node in walk(read(each))] for each in (evil, tame)]
    assert skeleton[0] == skeleton[1]
    names = {node.name for node in walk(read(evil))} - {"document"}
    assert names <= set(ELEMENTS.split())
    assert {name for node in walk(read(evil)) for name in node.attributes} <= set(ATTRIBUTES.split())
    shown = re.sub("[\0\x1b\x08\ud800\x85]", "\N{REPLACEMENT CHARACTER}", text)
    assert [node.words() for node in walk(read(evil)) if (node.attributes.get("class") or "") == "sample"][0] == shown
    evil.encode()


def test_control_characters_and_lone_surrogates_never_reach_the_file() -> None:
    every = "".join(map(chr, range(0x300))) + "\ud800\udfff\ufffe\uffff"
    document = render_report(every, [every], {}, [Section("a", [Commands([every])])])
    assert not re.search("[\0\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", document)
    assert "é" in document


def test_text_in_an_attribute_is_escaped_too() -> None:
    chart = line_chart('"<b>&', "", [Series('"<b>', np.arange(3), np.arange(3.0), 0)])
    assert 'aria-label="&#34;&lt;b&gt;&amp;' in render_report("a", [], {}, [Section("a", [Charts([chart])])])


@pytest.mark.parametrize("text", ["tame", *EVIL])
def test_nothing_is_loaded_and_nothing_runs(text: str) -> None:
    """No element that fetches or runs, no address but places on the page itself, and a policy that forbids the rest."""
    document = full_page(text)
    nodes = list(walk(read(document)))
    assert not {node.name for node in nodes} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "image",
        "use",
    }
    assert not {name for node in nodes for name in node.attributes} & {"src", "srcset", "style", "xlink:href", "action"}
    assert not [name for node in nodes for name in node.attributes if name.startswith("on")]
    anchors = {node.attributes["href"] for node in nodes if "href" in node.attributes}
    ids = [node.attributes["id"] for node in nodes if "id" in node.attributes]
    assert {f"#{each}" for each in ids} == anchors and len(set(ids)) == len(ids)
    assert all(re.fullmatch("[a-z0-9-]+", each or "") for each in ids)
    (style,) = [node for node in nodes if node.name == "style"]
    assert not re.search(r"url\(|@import|expression|https?:", style.text)
    digest = base64.b64encode(sha256(style.text.encode()).digest()).decode()
    (policy,) = [node for node in nodes if node.attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy.attributes["content"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert nodes.index(policy) < nodes.index(style)


def test_a_phone_can_read_it() -> None:
    """The screen's own width counts, and nothing is wider than the narrowest phone."""
    nodes = list(walk(read(full_page("tame"))))
    (viewport,) = [node for node in nodes if node.attributes.get("name") == "viewport"]
    assert viewport.attributes["content"] == "width=device-width, initial-scale=1"
    (style,) = [node.text for node in nodes if node.name == "style"]
    fixed = re.findall(r"(?<!max-)(?:\bwidth|min-width|minmax\()[:\s]*(\d+)px", style)
    assert fixed and max(map(int, fixed)) <= 360
    for large in re.findall(r"minmax\(([^,]+(?:\([^)]*\))?),", style):
        assert "100%" in large or large == "0" or int(re.sub(r"\D", "", large)) <= 170


def test_those_who_cannot_see_it_can_read_it() -> None:
    """Its language is named, headings go down one by one, and pictures and what can be pushed sideways say what they are."""
    nodes = list(walk(read(full_page("tame"))))
    assert nodes[1].name == "html" and nodes[1].attributes["lang"] == "en"
    levels = [int(node.name[1]) for node in nodes if re.fullmatch("h[1-6]", node.name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    named = [node for node in nodes if node.name == "nav" or "tabindex" in node.attributes]
    named += [node for node in nodes if node.name == "svg" and node.attributes.get("aria-hidden") != "true"]
    assert len(named) == 4 and all(node.attributes["aria-label"] for node in named)
    assert {node.attributes.get("role") for node in named} == {"img", "region", None}


def brightness(colour: str) -> float:
    """Relative luminance, as WCAG has it."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("night", [False, True])
def test_text_and_curves_stand_out(night: bool) -> None:
    """By WCAG's measure: 4.5 for text, 3 for what is drawn."""
    (style,) = [node.text for node in walk(read(full_page("tame"))) if node.name == "style"]
    scheme = style.split("@media (prefers-color-scheme: dark)")[night].partition("* {")[0]
    colours = dict(re.findall(r"--(\w+): (#\w{6});", scheme))
    for name, least in ({"ink": 4.5, "soft": 4.5} | {f"c{number}": 3 for number in range(6)}).items():
        for ground in ("ground", "card"):
            light, dark = sorted((brightness(colours[name]), brightness(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)


PLACES = ("title", "about", "tile", "note", "command", "heading", "series", "sample", "cell", "fact")


@pytest.mark.parametrize("place", PLACES)
def test_ten_megabytes_are_cut_with_a_note(place: str) -> None:
    long = "y<" * 5_000_000
    text = {name: long if name == place else "a" for name in PLACES}
    points = Series(text["series"], np.arange(200), np.arange(200.0), 0)
    document = render_report(
        text["title"],
        [text["about"]],
        {"a": text["tile"]},
        [
            Section(text["heading"], [Notes([text["note"]]), Commands([text["command"]])]),
            Section(
                "b",
                [Charts([line_chart("a", "b", [points])]), Table(["a"], [[text["cell"]]]), Facts({"a": text["fact"]})],
            ),
            Section(
                "c", [Samples([PromptSamples(text["sample"], (Sample("one", text["sample"]), Sample("two", "short")))])]
            ),
        ],
    )
    assert len(document) < 1_000_000
    limit = "1,000" if place in ("cell", "fact") else "4,000"
    assert f"[cut: {limit} of 10,000,000 characters are shown]" in document or place == "series"


def test_empty_and_unfinished_samples_are_marked() -> None:
    samples = Samples([PromptSamples("p", (Sample("a", " \n"), Sample("b", "text", ended=False)))])
    page = read(render_report("a", [], {}, [Section("a", [samples])]))
    assert [node.words() for node in page.all("div", "sample")] == ["empty", "text"]
    assert [node.words() for node in page.all("p", "note")] == ["stopped at the token limit"]


def test_metrics_are_read_from_any_lines() -> None:
    """Cut, foreign and damaged lines are left out, numbers out of reach are infinite, and order is by step."""
    lines = parse_metrics(
        '{"step": 2, "loss": 1}\n{"step": 1, "loss": NaN, "note": "x", "on": true}\n[1]\nnull\n"x"\n'
        '{"loss": 3}\n{"step": Infinity, "loss": 1}\n{"step": 3, "loss": 1' + "0" * 400 + '}\n{"step": 4, "lo'
    )
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0].keys() == {"step", "loss"}
    assert lines[2]["loss"] == float("inf")
    assert parse_metrics("[" * 100_000) == parse_metrics("") == []


def test_twenty_thousand_steps_are_a_small_file() -> None:
    """Every curve full of noise, which is what costs most."""
    names = [name for curve in curves_of(DPO, {"loss": "sigmoid"}) for name, _ in curve.metrics]
    noise = np.random.default_rng(0).normal(size=(20_000, len(names)))
    lines = [{"step": float(n)} | dict(zip(names, map(float, row), strict=True)) for n, row in enumerate(noise)]
    drawn = curve_charts(lines, curves_of(DPO, {"loss": "sigmoid"}))
    assert len(drawn) == 9
    assert 100_000 < len(render_report("a", [], {}, [Section("Curves", [Charts(drawn)])])) < 700_000


def test_every_curve_of_the_issue_is_there_and_those_without_points_are_not() -> None:
    names = "loss rewards/accuracies rewards/margins rewards/chosen rewards/rejected learning_rate padding tokens_per_second"
    lines = [{"step": float(step)} | dict.fromkeys(names.split(), 0.5) for step in range(3)]
    titles = [chart.title for chart in curve_charts(lines, curves_of(DPO, {"loss": "sigmoid"}))]
    assert titles == ["Loss", "Accuracy", "Margin", "Rewards", "Learning rate", "Padding", "Throughput"]
    titles = [chart.title for chart in curve_charts([{"step": 1.0, "loss": 2.0}], curves_of(SFT, {}))]
    assert titles == ["Loss"]
    assert curve_charts([], curves_of(SFT, {})) == []
