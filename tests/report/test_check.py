"""A finished run against its card's numbers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import write_rows
from tests.methods.small import sft_config
from zephyr_jax.cli import main
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.training_sections import ScheduleOptions
from zephyr_jax.config.yaml_file import load_card
from zephyr_jax.demo.corpus import conversations
from zephyr_jax.train_command import train

CARDS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    rows = write_rows(folder / "chats.jsonl", list(conversations(0, 24, "train")))
    config = sft_config(tiny_model, rows, folder / "run", epochs=1)
    config = replace(config, data=replace(config.data, eval_path=str(rows)), schedule=ScheduleOptions(max_steps=2))
    train(replace(config, expected={"loss": (6.5, 7.5)}))
    return folder / "run"


def card(folder: Path, text: str) -> str:
    (folder / "card.yaml").write_text(text)
    return str(folder / "card.yaml")


def test_numbers_in_their_ranges_pass(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", "--run", str(run)])
    said = capsys.readouterr().out
    assert "expected 6.5 to 7.5: pass" in said
    assert said.endswith("passed\n")


def test_numbers_outside_are_reported_by_how_much(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loss = next(
        line["eval/loss"]
        for line in map(json.loads, reversed((run / "metrics.jsonl").read_text().splitlines()))
        if "eval/loss" in line
    )
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--run", str(run), "--card", card(tmp_path, "expected: {loss: [1.0, 2.0]}")])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    assert f"OFF by {loss - 2:.4g}" in said
    assert said.endswith("NOT passed\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "expected: {loss: [LOW, HIGH]}"),
        (
            "expected: {loss: [2, 1]}\nexpected_settings: {data.targets: all}",
            "data.targets 'all', the run has 'assistant'",
        ),
        ("expected: {rewards/margins: [0, 1]}", "has no rewards/margins; it has loss"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["check", "--run", str(run), "--card", card(tmp_path, text)])
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "provenance.json").read_text())
    (tmp_path / "provenance.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        main(["check", "--run", str(tmp_path)])
    assert "is not finished: step 0 of 2" in capsys.readouterr().err


def test_the_cards_expect_what_their_headers_say() -> None:
    """The published ranges stand in the cards, where `check` finds them."""
    assert load_card(DpoConfig, CARDS / "zephyr-7b-beta/dpo.yaml").expected["loss"] == (0.502, 0.523)
    sft_card = load_card(SftConfig, CARDS / "zephyr-7b-beta/sft.yaml")
    assert sft_card.expected == {"loss": (0.932, 0.940)}
    assert sft_card.expected_settings == {"data.targets": "all"}
