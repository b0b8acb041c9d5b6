"""Answers that mean harm are data: whole in the splits, harmless in card, samples, picture and terminal."""

import re
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from tests.conftest import write_rows
from tests.prepare.raw import pairs, plain, prepare, rejected_lines

HOSTILE = [
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "```\n</details>\n# A heading of mine\n````\n![x](http://evil.example/x.png)",
    "\x1b[2J\x1b]0;owned\x07 \x00 \x7f \x9b31m",
    "\u202egnp.exe \u2066 \ufeff \u200b",
    "| a | b |\n|---|---|\n| $\\frac{1}{$ | $x_{$ |",
    "---\nconfigs: evil\n---\n",
    "<|assistant|>\n</s><s>",
    "%s %n {0} {x} ${HOME} $(rm -rf /)",
    "a" * 10_000_000,
]


def visible(text: str) -> bool:
    """Whether a text holds no character that a terminal or a page would obey."""
    return not [each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Co", "Cs") and each != "\n"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for number, text in enumerate(HOSTILE):
        row = plain(f"question {number}", 1, 2, 3, None, dataset=text[:100])
        row["completions"][2]["response"] = row["completions"][3]["response"] = text
        row["completions"][2]["model"] = text[:100]
        rows.append(row)
    rows += [plain(text, 1) for text in HOSTILE]
    exam = folder / "exam $x_{$ |<b>`_*.txt"
    exam.write_text("What happens to you if you eat watermelon seeds?\n")
    rows.append(plain(exam.read_text(), 1, 2))
    path = write_rows(folder / "rows.jsonl", rows)
    record = prepare("ultrafeedback", path, folder / "out", "--num_samples", 20, "--decontaminate.against", exam)
    assert record["rows_read"] == 2 * len(HOSTILE) + 1
    return folder / "out"


def test_the_answers_are_in_the_splits_letter_for_letter(output: Path) -> None:
    made = pairs(output)
    assert [made[f"question {number}"]["chosen"][1]["content"] for number in range(len(HOSTILE))] == HOSTILE


def test_the_card_is_the_card(output: Path) -> None:
    """Law: its front is one YAML document with our splits; outside of fences nothing of theirs is in it."""
    text = (output / "README.md").read_text()
    _, front, page = text.split("---\n", 2)
    assert set(yaml.safe_load(front)) == {"configs", "dataset_info", "tags"}
    assert len(text) < 20_000
    assert visible(text)
    prose = re.sub(r"(?ms)^(`{3,})\w*\n.*?\n\1$", "", page)
    assert "<b>" not in prose.replace(r"\<b\>", "")
    assert "script" not in prose


def test_samples_stay_in_their_fences(output: Path) -> None:
    """Law: every text lies in a fence that it cannot close, cut, its control characters escaped."""
    text = (output / "samples.md").read_text()
    assert visible(text)
    prose = re.sub(r"(?ms)^(`{3,})text\n.*?\n\1$", "", text)
    assert "A heading of mine" in text
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    assert len(headings) == len(re.findall(r"(?m)^## ", prose)) + 1
    assert not re.search(r"(?<!\\)[<|`]|evil|A heading", prose)
    assert r"\x1b" in text


def test_lists_and_pictures_are_small_and_whole(output: Path) -> None:
    assert all(len(line["excerpt"]) <= 200 for line in rejected_lines(output))
    assert ET.parse(output / "card.svg").getroot().tag.endswith("svg")
    assert sum(path.stat().st_size for path in output.glob("*.md")) < 60_000


def test_the_terminal_gets_no_control_characters(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    rows = [plain("good", 1, 2), *(plain(text, 1) for text in HOSTILE)]
    prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    shown = capsys.readouterr()
    assert visible(shown.out + shown.err)
    assert len(shown.out) < 1000
