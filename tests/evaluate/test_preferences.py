"""Opinions about pairs: numbers worked out in full, and the verb's against `evaluate`'s."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_rows
from zephyr_jax.cli import main
from zephyr_jax.demo.corpus import preferences
from zephyr_jax.evaluate.preference_stats import calibration_error, group_of, groups_by, groups_by_length, longer_wins


def test_known_numbers() -> None:
    group = group_of("x", np.array([1.0, -2.0, 0.0, 3.0]))
    assert (group.pairs, group.accuracy, group.margin) == (4, 0.625, 0.5)
    assert group.error == pytest.approx(np.std([1, 0, 0.5, 1]) / 2)
    by_length = groups_by_length(np.array([64, 1, 65, 2, 3, 60]), np.ones(6))
    assert [(group.name, group.pairs) for group in by_length] == [
        ("chosen of 1 to 1 tokens", 1),
        ("chosen of 2 to 2 tokens", 1),
        ("chosen of 3 to 4 tokens", 1),
        ("chosen of 33 to 64 tokens", 2),
        ("chosen of 65 to 128 tokens", 1),
    ]
    assert [(group.name, group.pairs) for group in groups_by(["a", "b", "b"], np.ones(3))] == [("b", 2), ("a", 1)]
    counts = np.array([[5, 3], [3, 5], [4, 4]])
    assert longer_wins(counts, np.array([1.0, 1.0, 1.0])) == 0.5
    assert longer_wins(counts, np.array([1.0, -1.0, 1.0])) == pytest.approx(5 / 6)


def test_calibration_is_zero_for_the_honest_and_large_for_the_sure() -> None:
    """Margins drawn so that sigmoid of them is the truth; and the same ten times as large."""
    draw = np.random.default_rng(0)
    size = np.abs(draw.normal(size=200_000))
    margins = np.where(draw.random(200_000) < 1 / (1 + np.exp(-size)), size, -size)
    assert calibration_error(margins) < 0.005
    assert calibration_error(10 * margins) > 0.2


def test_the_command_agrees_with_evaluate(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracy and margin of all pairs are those of `evaluate`; groups by a column and by length hold every pair once.

    Both tell what was left out, and a row holds a pair by itself.
    """
    pairs = [{**row, "source": ("a", "b", "b")[place % 3]} for place, row in enumerate(preferences(0, 24, "train"))]
    pairs.insert(3, {"prompt_id": "bad", "chosen": [], "rejected": [], "source": "a"})
    rows = write_rows(tmp_path / "pairs.jsonl", pairs)
    words = (
        f"--model {tiny_model} --data.path {rows} --data.max_length 256 --data.max_prompt_length 64 "
        "--model.compute_dtype float32"
    ).split()
    main(["evaluate", *words])
    printed = capsys.readouterr()
    plain = dict(line.split() for line in printed.out.splitlines())
    assert "pairs.jsonl: 24 examples" in printed.err
    assert re.search(r"1 skipped: .* \(bad\)", printed.err)
    main(["evaluate", "preferences", *words, "--group_by", "source", "--output", str(tmp_path / "out.json")])
    output = capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["overall"]["accuracy"] == pytest.approx(float(plain["accuracy"]), abs=1e-5)
    assert found["overall"]["margin"] == pytest.approx(0.1 * float(plain["margin"]), rel=1e-3)
    sizes = {group["name"]: group["pairs"] for group in found["groups"]}
    assert (sizes.pop("a"), sizes.pop("b")) == (8, 16)
    assert sum(sizes.values()) == 24
    assert "| all | 24 |" in output
    with pytest.raises(SystemExit):
        main(["evaluate", "preferences", *words, "--group_by", "nothing"])
    assert "has no column 'nothing'" in capsys.readouterr().err
