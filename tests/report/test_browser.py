"""The page in a real browser, on a phone and on a desk, by day and by night. Skipped where no Chromium is installed."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.report.browser import View, found, look
from zephyr_jax.report.html import PromptSamples, Sample, render_report
from zephyr_jax.report.report import write_report
from zephyr_jax.report.sections import run_section, samples_section

pytestmark = pytest.mark.skipif(found() is None, reason="no Chromium is installed (apt-get install chromium)")

PHONE, DESK = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every chart there is, and with text that would break out if it could."""
    folder = tmp_path_factory.mktemp("run")
    draw = np.random.default_rng(0)
    names = [
        "loss",
        "rewards/accuracies",
        "rewards/margins",
        "rewards/chosen",
        "rewards/rejected",
        "logps/chosen",
        "logps/rejected",
        "padding",
    ]
    names += [
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "targets_per_second",
        "eval/loss",
        "eval/rewards/accuracies",
    ]
    lines = [{"step": step} | {name: float(draw.random()) for name in names} for step in range(1, 200)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {"dpo": {"loss": "sigmoid"}, "data": {"path": "y" * 200}}
    record = {"made_by": "dpo", "output": "x" * 300, "steps": 199, "config": config}
    (folder / "provenance.json").write_text(json.dumps(record))
    counts = {
        "edges": [0.5, 1.5, 2.5],
        "groups": {"chosen": [3, 5], "rejected": [4, 1]},
        "medians": {"chosen": 1, "rejected": 2},
    }
    (folder / "histograms.json").write_text(json.dumps({"lengths": counts, "scores": counts}))
    evil = "<img src=https://evil.example/x.png onerror=\"document.title='broken'\"><script>document.title='broken'</script>"
    prompts = [
        PromptSamples(
            "w" * 500,
            (Sample("base", evil), Sample("dSFT", "\u05e9\u05dc\u05d5\u05dd " * 40), Sample("dDPO", "z" * 2000)),
        )
    ]
    write_report(
        folder / "report.html",
        "A run",
        [evil],
        {"loss": "1"},
        [samples_section(prompts), run_section(folder, "dDPO")],
    )
    return folder / "report.html"


@pytest.fixture(scope="module", params=[(PHONE, False), (PHONE, True), (DESK, False), (DESK, True)], ids=str)
def view(request: pytest.FixtureRequest, report: Path) -> View:
    (width, height), dark = request.param
    return look(report, width, height, dark)


def test_no_chart_is_blank(view: View) -> None:
    assert len(view.boxes) == 11
    for title in view.boxes:
        assert min(view.inside(title).shape[:2]) > 150, title
        assert not view.blank(title), title


def test_nothing_is_wider_than_the_screen(view: View) -> None:
    assert view.width == view.pixels.shape[1]


def test_nothing_is_asked_for_but_the_page(view: View, report: Path) -> None:
    """Nor does the browser complain that something was: the text that would, is text."""
    assert view.requests == [report.as_uri()]
    assert view.complaints == []


def test_a_night_is_dark(report: Path) -> None:
    assert look(report, *PHONE, dark=True).pixels[:5].mean() < 60 < 200 < look(report, *PHONE).pixels[:5].mean()


def test_a_phone_has_one_chart_beside_none_and_a_desk_three(report: Path) -> None:
    for size, beside in ((PHONE, 1), (DESK, 3)):
        boxes = look(report, *size).boxes
        assert sum(abs(box[1] - boxes["Loss"][1]) < 2 for box in boxes.values()) == beside


def test_a_blank_chart_would_be_found(report: Path, tmp_path: Path) -> None:
    """The test above can fail: without its curves a page is reported to be blank."""
    text = report.read_text()
    bare = tmp_path / "report.html"
    for mark in ('class="line', 'class="dashes', 'class="dot', 'class="bar'):
        text = text.replace(mark, 'visibility="hidden" class="line')
    bare.write_text(text)
    seen = look(bare, *PHONE)
    assert len(seen.boxes) == 11
    assert all(seen.blank(title) for title in seen.boxes)


def test_what_could_run_is_stopped_by_the_page_itself(tmp_path: Path) -> None:
    """Were the escaping to fail, the policy in the page's head forbids scripts and requests all the same."""
    text = render_report("harmless", [], {}, [])
    evil = "<script>document.title='broken'</script><img src='https://evil.example/x.png'><p style='width:3000px'>x</p>"
    path = tmp_path / "report.html"
    path.write_text(text.replace("<main>", f"<main>{evil}"))
    seen = look(path, *PHONE)
    assert set(seen.requests) - set(seen.stopped) == {path.as_uri()}
    assert seen.width == 390
    assert sum("Content Security Policy" in each for each in seen.complaints) >= 3
