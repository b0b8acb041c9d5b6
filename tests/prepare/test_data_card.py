"""What the data card counts, on rows whose numbers are known."""

import random
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.conftest import write_rows
from tests.prepare.raw import plain, prepare
from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.prepare.card import DataCard, Distribution, NamedCounts, Summary, quantiles
from zephyr_jax.prepare.rejections import RejectionLog

LENGTHS = ((10, 5), (300, 20), (7, 7), (2, 40), (70, 9))
"""Letters of the chosen and of the rejected answer of each pair; scores are 3 and 1, and 2 and 2 in the last."""


@pytest.fixture
def output(tmp_path: Path) -> Path:
    rows = []
    for number, lengths in enumerate(LENGTHS):
        row = plain(f"q{number}", *((2, 2) if number == len(LENGTHS) - 1 else (3, 1)))
        for each, length, letter in zip(row["completions"], lengths, "ab", strict=True):
            each["response"] = letter * length
        rows.append(row)
    prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", [*rows, plain("alone", 1)]), tmp_path / "out")
    return tmp_path / "out"


def table(page: str, title: str) -> dict[str, list[str]]:
    """Cells of the rows below a histogram's title, by the first one, without bars."""
    lines = page.split(f"**{title}**")[1].split("\n\n")[1].splitlines()[2:]
    cells = [[re.sub("[ █]", "", cell) for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_the_card_counts_what_is_there(output: Path) -> None:
    """Law: shares, lengths and scores of the pairs, chosen and rejected each under its name."""
    page = (output / "README.md").read_text()
    for line in (
        "| pairs | 5 |",
        "| the chosen answer is longer | 60.0% |",
        "| both have the same length | 20.0% |",
        "| both have the same score | 20.0% |",
        "| kept | 5 |",
        "| it has fewer than two answers | 1 |",
        "| length of an answer: chosen (characters) | 3 | 10 | 77.8 | 254 | 300 |",
        "| score: rejected (points) | 1 | 1 | 1.2 | 1.8 | 2 |",
    ):
        assert line in page
    assert table(page, "length of an answer") == {
        "2": ["1", "0"], "4": ["1", "2"], "8": ["1", "1"], "16": ["0", "1"], "32": ["0", "1"], "64": ["1", "0"],
        "128": ["0", "0"], "256": ["1", "0"],
    }  # fmt: skip
    assert table(page, "score") == {"1": ["0", "4"], "2": ["1", "1"], "3": ["4", "0"]}
    assert table(page, "chosen score minus rejected score") == {"0": ["1"], "1": ["0"], "2": ["4"]}


def test_counts_are_bars_with_shares() -> None:
    chart = NamedCounts("rows", "rows", {"kept": 3, "not": 1}, percent=True).chart()
    texts = [shape.text for shape in chart.shapes if shape.tag == "text"]
    assert {"kept", "not", "3 (75.0%)", "1 (25.0%)"} <= set(texts)


@pytest.mark.parametrize("values", [[], [5.0], [1e100, -1e100], [0.1, 0.1], [0.0, 1e-300], [1.0, 10.0, 10.0]])
def test_a_card_of_any_numbers_can_be_written(values: list[float]) -> None:
    """Law: whatever the numbers, quantiles, tables and a picture can be made."""
    numbers, schema = np.array(values), pa.schema([("prompt", pa.string())])
    with RejectionLog(4) as log:
        summary = Summary(
            title="t",
            about="a",
            kept=0,
            statistics={},
            distributions=[
                Distribution("score", "points", {"all": numbers}),
                Distribution("b", "c", {"all": abs(numbers)}, doubling=True),
            ],
            counts=[NamedCounts("a", "b", {})],
        )
        card = DataCard(summary, command="c", splits={"train": 0}, schema=schema, rejections=log, settings={})
        assert "**score** (points)" in card.markdown()
        assert card.picture().startswith("<svg")
    assert quantiles(numbers)


def test_samples_are_few_and_those_of_any_order() -> None:
    """Law: a kind's samples are as many as asked for, the same ones in whatever order the texts come; none are counted twice."""
    texts = [f"text {number}" for number in range(50)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(texts)
        with RejectionLog(4) as log:
            for text in [*texts, *texts]:
                log.skip("place", SkippedRow("why", text), {})
        assert log.skipped_rows == {"why": 100}
        found.append(log.samples()["why"])
    assert len(set(found[0])) == 4
    assert found[0] == found[1] == found[2]
