"""Reported cases that are a card and rows, replayed as they were reported; skipped where the reference data are absent."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from zephyr_jax.cli import main

pytestmark = pytest.mark.shared


def train(case: Path, model: Path, home: Path, *words: str) -> list[dict[str, Any]]:
    """Lines of metrics of the case's own card, whose settings have their names of 2026-11-26, and rows."""
    [rows] = case.glob("*.jsonl")
    home.mkdir(exist_ok=True)
    card = home / "sft.yaml"
    text = (case / "sft.yaml").read_text()
    for old, new in {
        "keep: everything": "remat: none",
        "answers:": "num_samples:",
        "progress:": "progress_bar:",
    }.items():
        text = text.replace(old, new)
    card.write_text(text)
    command = f"sft --config {card} --model.path {model} --data.path {rows} --output {home}/run"
    main([*command.split(), "--data.chat_template", "zephyr", "--batch.microbatch_rows", "8", *words])
    return [json.loads(line) for line in (home / "run" / "metrics.jsonl").read_text().splitlines()]


def test_max_steps_beyond_the_data_are_reported(
    shared: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 13: 50 steps are asked for, and 20 rows of 8 a step give 3."""
    lines = train(shared / "cases/data/13-max-steps", tiny_model, tmp_path, "--schedule.max_steps", "50")
    assert lines[-1]["step"] == 3
    assert "schedule.max_steps is 50" in capsys.readouterr().err


def test_a_line_covers_all_steps_since_the_last(shared: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Case 20: with a line every third step, its loss is the mean over the three, weighted by their targets."""
    case = shared / "cases/data/20-throughput-log-every"
    each = train(case, tiny_model, tmp_path / "each")
    [third] = train(case, tiny_model, tmp_path / "third", "--schedule.log_every", "3")
    losses = [line["loss"] for line in each]
    assert len(losses) == 3 and min(losses) < third["loss"] < max(losses)
    assert third["loss"] != losses[-1]


def test_a_row_longer_than_the_context_is_refused(
    shared: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 15: a row of thousands of tokens and a model of 128 positions."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 128}))
    rows = shared / "cases/data/15-longer-than-context/long.jsonl"
    words = f"sft --model.path {model} --data.path {rows} --output {tmp_path}/run --batch.rows 8".split()
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--data.chat_template", "zephyr", "--data.max_length", "8192", "--data.row_length", "8192"])
    assert stopped.value.code == 2
    assert "the 128 positions" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_home_is_expanded_in_a_card(
    shared: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 10: `~` in the card's output and data."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    chat = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    card = shared / "cases/data/10-tilde/card.yaml"
    words = f"sft --config {card} --model.path {tiny_model} --batch.rows 8 --report.num_samples 0".split()
    main([*words, "--report.no_progress_bar", "--data.chat_template", "zephyr"])
    assert (tmp_path / "zephyr-tilde-test/run/metrics.jsonl").exists()
    assert not (tmp_path / "~").exists()
