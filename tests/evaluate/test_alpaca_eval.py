"""AlpacaEval: rows of its leaderboard from preferences, and outputs in its form."""

import json
import math
from collections import defaultdict
from pathlib import Path

import pytest

from zephyr_jax.cli import main
from zephyr_jax.errors import InputError
from zephyr_jax.evaluate.alpaca_eval.format import leaderboard_row, leaderboard_row_with_length_control, read_json_rows
from zephyr_jax.evaluate.paper_table import measured
from zephyr_jax.storage.files import open_path

PUBLISHED = {
    "zephyr-7b-beta": ((727, 75, 1), 90.5977584059776, 1.0287080531312012),
    "zephyr-7b-alpha": ((688, 113, 3), 85.7587064676617, 1.2285451680042003),
    "gpt4_1106_preview": ((783, 16, 5), 97.69900497512438, 0.5104849118311993),
}
"""Wins, losses and draws against text-davinci-003 with the published win rate and standard error (version 1)."""


def annotations(wins: int, losses: int, draws: int) -> list[dict]:
    return [{"preference": value} for value in [2] * wins + [1] * losses + [1.5] * draws]


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_rows_come_out_exactly(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Version 1's preferences are known from their counts; rate and error come out to the last published digits."""
    counts, rate, error = PUBLISHED[model]
    file = tmp_path / f"{model}.json"
    file.write_text(json.dumps(annotations(*counts)))
    main(["evaluate", "alpaca-eval", "--annotations", str(file), "--output", str(tmp_path / "out")])
    assert f"| win_rate | {rate:.4f} |" in capsys.readouterr().out
    row = json.loads((tmp_path / "out" / f"{model}.row.json").read_text())
    assert row["win_rate"] == pytest.approx(rate, rel=1e-13)
    assert row["standard_error"] == pytest.approx(error, rel=1e-12)
    assert (row["n_wins"], row["n_wins_base"], row["n_draws"], row["n_total"]) == (*counts, sum(counts))
    assert row["discrete_win_rate"] == pytest.approx(rate, rel=1e-13)


def test_weighted_preferences_and_what_is_none() -> None:
    """Version 2's preferences weigh; old draws are 0; what is missing, NaN or out of range counts nowhere."""
    values = [1.25, 1.75, 1.5, 0, None, math.nan, 3, "2", 2.0, True]
    row = leaderboard_row([{"preference": value, "output_2": "x" * 10} for value in values])
    assert row.n_total == 5
    assert row.win_rate == pytest.approx(100 * (0.25 + 0.75 + 0.5 + 0.5 + 1) / 5)
    assert row.discrete_win_rate == pytest.approx(100 * (0 + 1 + 0.5 + 0.5 + 1) / 5)
    assert (row.n_wins, row.n_wins_base, row.n_draws, row.avg_length) == (2, 1, 2, 10)


@pytest.mark.parametrize(
    ("baseline", "annotator", "version"),
    [
        ("gpt4_1106_preview", "alpaca_eval_gpt4_turbo_fn", 2),
        ("gpt4_1106_preview", "weighted_alpaca_eval_gpt4_turbo", 2),
        ("gpt4_1106_preview", "alpaca_eval_llama3_70b_fn", 2),
        ("gpt4_1106_preview", None, 2),
        ("text_davinci_003", "alpaca_eval_gpt4", 1),
        ("text_davinci_003", "weighted_alpaca_eval_gpt4_turbo", 1),
        ("text_davinci_003", "claude", 1),
        ("mine", "alpaca_eval_gpt4", None),
        (None, "alpaca_eval_gpt4", None),
    ],
)
def test_the_baseline_decides_the_version(
    baseline: str | None, annotator: str | None, version: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the baseline, for any judge; only version 1 enters the paper's column. What holds no preference is counted."""
    rows = [
        {"preference": value, "generator_1": baseline, "annotator": annotator} for value in (1, 2, 2, None, 7, math.nan)
    ]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    main(["evaluate", "alpaca-eval", "--annotations", str(tmp_path / "own.json"), "--output", str(tmp_path / "out")])
    assert "3 of 6 annotations have no preference" in capsys.readouterr().err
    row = json.loads((tmp_path / "out/own.row.json").read_text())
    assert (row["version"], row["baseline"], row["n_total"], row["n_dropped"]) == (version, baseline, 3, 3)
    if version == 1:
        assert [each.alpaca_eval for each in measured([str(tmp_path / "out")])] == [pytest.approx(200 / 3)]
    else:
        with pytest.raises(InputError, match="AlpacaEval row"):
            measured([str(tmp_path / "out")])
        assert "own.row.json is skipped in the AlpacaEval column" in capsys.readouterr().err


def test_mixed_baselines_have_no_version() -> None:
    names = ("text_davinci_003", "gpt4_1106_preview")
    assert leaderboard_row([{"preference": 2, "generator_1": name} for name in names]).version is None


def test_real_annotations_make_rows(shared: Path) -> None:
    """Scores of four answers each by AlpacaEval 2's judge: every annotation counts in its model's row."""
    by_model: dict[str, list[dict]] = defaultdict(list)
    for row in map(json.loads, (shared / "data/rated_answers.jsonl").read_text().splitlines()):
        for each in row["completions"]:
            by_model[each["model"]].append({"preference": each["score"] + 1, "output_2": each["response"]})
    rows = {model: leaderboard_row(each) for model, each in by_model.items()}
    assert sum(row.n_total for row in rows.values()) == 4 * 200
    often = {model: row for model, row in rows.items() if row.n_total > 20}
    assert len(often) > 2
    assert all(0 <= row.win_rate <= 100 and row.standard_error >= 0 for row in often.values())


def test_outputs_are_in_the_published_form(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One object for each instruction, in order; how to have them judged is reported; a second run makes nothing again."""
    rows = [{"dataset": "own", "instruction": f"Say {index}."} for index in range(5)]
    (tmp_path / "instructions.json").write_text(json.dumps(rows))
    words = (
        f"evaluate alpaca-eval --model {tiny_model} --instructions {tmp_path}/instructions.json --output {tmp_path}/out "
        "--name tiny --chat_template zephyr --max_new_tokens 9 --model.compute_dtype float32"
    ).split()
    main(words)
    first = capsys.readouterr()
    assert first.out.startswith(f"{tmp_path}/out/tiny.json\n")
    assert "generated 5 samples" in first.err
    found = json.loads((tmp_path / "out/tiny.json").read_text())
    assert [set(each) for each in found] == [{"dataset", "instruction", "output", "generator"}] * 5
    assert [each["instruction"] for each in found] == [row["instruction"] for row in rows]
    main(words)
    assert "tok/s" not in capsys.readouterr().err
    assert json.loads((tmp_path / "out/tiny.json").read_text()) == found
    main([*words, "--seed", "1", "--limit", "3"])
    assert "generated 3 samples" in capsys.readouterr().err
    others = json.loads((tmp_path / "out/tiny.json").read_text())
    assert [each["output"] for each in others] != [each["output"] for each in found[:3]]


def test_an_instruction_that_does_not_fit_loses_its_beginning(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "i.json").write_text(json.dumps([{"instruction": "Hi."}, {"instruction": "and so on " * 5000}]))
    main(
        f"evaluate alpaca-eval --model {tiny_model} --instructions {tmp_path}/i.json --output {tmp_path}/out "
        "--name tiny --chat_template zephyr --max_new_tokens 9 --model.compute_dtype float32".split()
    )
    output = capsys.readouterr().err
    assert "truncated 1 prompts from the left to the context length" in output
    assert "generated 2 samples" in output


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is not JSON|got []"),
        ("[1]", "a list of objects"),
        ("{", "is not JSON"),
        ('[{"preference": null}]', "got none"),
    ],
)
def test_what_is_no_annotation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "alpaca-eval", "--annotations", str(tmp_path / "a.json"), "--output", str(tmp_path / "o")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert any(each in said for each in words.split("|")), said


def test_lines_of_json_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"preference": 1}\n{"preference": 2}\n')
    assert leaderboard_row(read_json_rows(tmp_path / "a.jsonl", "x")).win_rate == 50


def test_length_control_is_reported_only_where_it_is_defined() -> None:
    """Version 2 and all instructions in their order; for anything else the reason is reported."""
    own = [{"preference": 2, "annotator": "weighted_alpaca_eval_gpt4_turbo"}] * 7
    first = [{"preference": 2, "annotator": "alpaca_eval_gpt4"}] * 805
    for rows in (own, first):
        row, why = leaderboard_row_with_length_control(rows)
        assert row.length_controlled_winrate is None
        assert "version 2 and all 805" in why


@pytest.mark.usefixtures("bucket")
def test_files_on_cloud_storage_are_read() -> None:
    open_path("gs://bucket/a.json").write_text('[{"preference": 2}]')
    assert leaderboard_row(read_json_rows("gs://bucket/a.json", "x")).win_rate == 100


def test_a_published_file_of_another_annotator(shared: Path) -> None:
    """Its annotator's name begins as version 1's does; its baseline is version 2's."""
    row = leaderboard_row(read_json_rows(shared / "cases/serving/ae_version_prefix.json", "annotations"))
    assert (row.version, row.baseline) == (2, "gpt4_1106_preview")
