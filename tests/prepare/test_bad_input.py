"""Mistakes of users: each ends with exit code 2 and one paragraph that names values and a way out; nothing is written."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_rows
from tests.prepare.raw import plain, prepare
from zephyr_jax.cli import main
from zephyr_jax.prepare.raw import raw_rows

type Words = list[str]
MISTAKES: dict[str, tuple[Callable[[Path], Words], tuple[str, ...]]] = {}


def mistake(*says: str) -> Callable[[Callable[[Path], Words]], Callable[[Path], Words]]:
    """Register what a user does wrong, given a folder, and what the message must hold."""

    def register(do: Callable[[Path], Words]) -> Callable[[Path], Words]:
        MISTAKES[do.__name__] = (do, says)
        return do

    return register


def feedback(folder: Path, *words: object, rows: list[dict] | None = None) -> Words:
    path = write_rows(folder / "rows.jsonl", [plain("q", 1, 2)] if rows is None else rows)
    return ["ultrafeedback", "--data", str(path), "--output", str(folder / "out"), *map(str, words)]


def chats(folder: Path, *words: object) -> Words:
    path = write_rows(folder / "rows.jsonl", [{"data": ["Hi.", "Yes?"]}])
    return ["ultrachat", "--data", str(path), "--output", str(folder / "out"), *map(str, words)]


@mistake("`data` is not set")
def no_path(folder: Path) -> Words:
    return ["ultrafeedback", "--output", str(folder / "out")]


@mistake("`output` is not set", "--output")
def no_output(folder: Path) -> Words:
    return ["ultrachat", "--data", str(folder)]


@mistake("nowhere.jsonl", "Check the spelling")
def nothing_there(folder: Path) -> Words:
    return ["ultrachat", "--data", str(folder / "nowhere.jsonl"), "--output", str(folder / "out")]


@mistake("holds no file that ends in", ".jsonl")
def a_folder_without_rows(folder: Path) -> Words:
    (folder / "notes.md").write_text("x")
    return ["ultrachat", "--data", str(folder), "--output", str(folder / "out")]


@mistake("is empty")
def an_empty_file(folder: Path) -> Words:
    return feedback(folder, rows=[])


@mistake("has no rows")
def an_empty_list(folder: Path) -> Words:
    (folder / "rows.json").write_text("[]")
    return ["ultrachat", "--data", str(folder / "rows.json"), "--output", str(folder / "out")]


@mistake("rows.json is not a JSON list", ".jsonl")
def a_broken_list(folder: Path) -> Words:
    (folder / "rows.json").write_text("[{}")
    return ["ultrachat", "--data", str(folder / "rows.json"), "--output", str(folder / "out")]


@mistake("ends in `.xlsx`")
def a_file_of_another_kind(folder: Path) -> Words:
    (folder / "rows.xlsx").write_text("x")
    return ["ultrachat", "--data", str(folder / "rows.xlsx"), "--output", str(folder / "out")]


@mistake("rows.parquet cannot be read as Parquet")
def a_damaged_parquet_file(folder: Path) -> Words:
    pq.write_table(pa.table({"x": [1]}), folder / "rows.parquet")
    (folder / "rows.parquet").write_bytes((folder / "rows.parquet").read_bytes()[:-20])
    return ["ultrachat", "--data", str(folder / "rows.parquet"), "--output", str(folder / "out")]


@mistake(
    "all 3 rows are skipped", "3 because: it has neither `instruction` nor `prompt`; the first is rows.jsonl line 1"
)
def rows_of_another_kind(folder: Path) -> Words:
    return feedback(folder, rows=[{"messages": []}] * 3)


@mistake("all 2 rows are skipped", "the line is not JSON")
def lines_that_are_no_json(folder: Path) -> Words:
    words = feedback(folder)
    (folder / "rows.jsonl").write_text("prompt,answer\nx,y\n")
    return words


@mistake("all 1 rows are skipped", "an answer has no ratings, 3 times")
def plain_scores_have_no_mean(folder: Path) -> Words:
    return feedback(folder, "--score", "mean", rows=[plain("q", None, 2, 3)])


@mistake("all 2 rows are skipped", "rated low enough")
def a_margin_that_no_pair_has(folder: Path) -> Words:
    return feedback(folder, "--ties", "margin", "--min_margin", 5, rows=[plain("q", 1, 2), plain("r", 1, 2)])


@mistake("min_margin", "ties")
def a_margin_without_its_rule(folder: Path) -> Words:
    return feedback(folder, "--min_margin", 1)


@mistake("min_margin None", "ties")
def the_rule_without_a_margin(folder: Path) -> Words:
    return feedback(folder, "--ties", "margin")


@mistake("`min_margin`", "greater than 0", "-1.0")
def a_negative_margin(folder: Path) -> Words:
    return feedback(folder, "--ties", "margin", "--min_margin", -1)


@mistake("revision-2023", "repair_scores", "True")
def the_old_revision_repaired(folder: Path) -> Words:
    return feedback(folder, "--rejected", "revision-2023")


@mistake("`test_fraction`", "1.5")
def more_than_all(folder: Path) -> Words:
    return feedback(folder, "--test_fraction", 1.5)


@mistake("`gen_fraction`", "nan")
def a_share_that_is_no_number(folder: Path) -> Words:
    return chats(folder, "--gen_fraction", "nan")


@mistake("`num_examples`", "got 0")
def an_empty_subset(folder: Path) -> Words:
    return chats(folder, "--num_examples", 0)


@mistake("refusals `keep`")
def phrases_without_effect(folder: Path) -> Words:
    return chats(folder, "--refusals", "keep", "--refusal_phrases", "as an AI")


@mistake("refusal_phrases")
def an_empty_phrase(folder: Path) -> Words:
    return chats(folder, "--refusal_phrases", " ")


@mistake("decontaminate.ngram", "got 3")
def runs_of_three_words(folder: Path) -> Words:
    return chats(folder, "--decontaminate.ngram", 3, "--decontaminate.against", folder / "rows.jsonl")


@mistake("decontaminate.against")
def runs_of_no_test_set(folder: Path) -> Words:
    return chats(folder, "--decontaminate.ngram", 8)


@mistake("expected one of the columns", "got data", "Rename")
def a_test_set_without_questions(folder: Path) -> Words:
    return chats(folder, "--decontaminate.against", folder / "rows.jsonl")


@mistake("`split` is 'test'", "plain files", "Leave it out")
def a_split_of_a_file(folder: Path) -> Words:
    return feedback(folder, "--split", "test")


@mistake("`output` and `data` are both", "Choose another output")
def output_over_input(folder: Path) -> Words:
    write_rows(folder / "rows.jsonl", [plain("q", 1, 2)])
    return ["ultrafeedback", "--data", str(folder), "--output", f"{folder}/."]


@mistake("Cannot create the folder", "is a file")
def output_in_a_file(folder: Path) -> Words:
    (folder / "file").write_text("x")
    return [*feedback(folder)[:-1], str(folder / "file" / "out")]


@mistake("holds train.parquet of another program", "Choose another output")
def output_among_other_data(folder: Path) -> Words:
    (folder / "out").mkdir()
    pq.write_table(pa.table({"x": [1]}), folder / "out" / "train.parquet")
    return feedback(folder)


@mistake("holds README.md of another program", "Choose another output")
def output_among_words_of_the_user(folder: Path) -> Words:
    (folder / "out").mkdir()
    (folder / "out" / "README.md").write_text("my notes")
    return feedback(folder)


@mistake("rows.jsonl.gz cannot be read", "Compressed file ended", "Copy it again")
def a_packed_file_that_is_cut(folder: Path) -> Words:
    (folder / "rows.jsonl.gz").write_bytes(b"\x1f\x8b")
    return ["ultrachat", "--data", str(folder / "rows.jsonl.gz"), "--output", str(folder / "out")]


@mistake("made by other settings", "seed was 0, is 5", "Choose another output")
def output_of_other_settings(folder: Path) -> Words:
    prepare("ultrafeedback", write_rows(folder / "rows.jsonl", [plain("q", 1, 2)]), folder / "out")
    return feedback(folder, "--seed", 5)


@mistake("made by `prepare ultrafeedback`, not `prepare ultrachat`")
def output_of_another_verb(folder: Path) -> Words:
    prepare("ultrafeedback", write_rows(folder / "rows.jsonl", [plain("q", 1, 2)]), folder / "out")
    return chats(folder)


@mistake("prepared.json is damaged", "Delete the folder")
def a_damaged_record(folder: Path) -> Words:
    (folder / "out").mkdir()
    (folder / "out" / "prepared.json").write_text("{")
    return feedback(folder)


@mistake("gs://", "has no bucket")
def a_bucket_without_a_name(folder: Path) -> Words:
    return ["ultrachat", "--data", str(write_rows(folder / "a.jsonl", [{}])), "--output", "gs://"]


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_with_one_paragraph_and_leaves_nothing(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    do, says = MISTAKES[name]
    words = do(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", *words])
    message = capsys.readouterr().err
    assert stopped.value.code == 2
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    for said in says:
        assert said in message
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_mistake_does_not_stand_in_the_way_of_the_next_try(tmp_path: Path) -> None:
    """Law: settings that leave no row may be changed, and the same output is used."""
    with pytest.raises(SystemExit):
        main(["prepare", *feedback(tmp_path, "--ties", "margin", "--min_margin", "5")])
    main(["prepare", *feedback(tmp_path)])
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["finished"]


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: killed among its last files, the same command writes them all; another one is refused."""
    from zephyr_jax.prepare import pipeline as preparation

    def killed(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation.DataCard, "picture", killed)
        with pytest.raises(SystemExit):
            main(["prepare", *feedback(tmp_path)])
    assert not json.loads((tmp_path / "out" / "prepared.json").read_text())["finished"]
    with pytest.raises(SystemExit):
        main(["prepare", *feedback(tmp_path, "--seed", 1)])
    main(["prepare", *feedback(tmp_path)])
    assert json.loads((tmp_path / "out" / "prepared.json").read_text())["finished"]


@pytest.mark.parametrize("words", [["prepare"], ["prepare", "ultrafedback"]])
def test_preparations_are_suggested(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(words)
    assert "prepare ultrafeedback" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_written_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Law: when the last rows cannot be written, no split is there and no scratch file is left."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", *feedback(tmp_path)])
    assert stopped.value.code == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prepared.json"]
    assert "TMPDIR" in capsys.readouterr().err


def test_a_killed_run_leaves_nothing_that_stays(tmp_path: Path) -> None:
    """Law: scratch rows go with the process; unfinished splits of a process that is gone go with the next run, those of one
    that is still there stay."""
    scratch, out = tmp_path / "scratch", tmp_path / "out"
    scratch.mkdir()
    words = feedback(tmp_path)
    script = (
        "import os, signal; from zephyr_jax.prepare import ultrafeedback\n"
        "ultrafeedback.UltrafeedbackSteps.make_rows = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"from zephyr_jax.cli import main; main({['prepare', *words]!r})"
    )
    run = subprocess.run([sys.executable, "-c", script], env={**os.environ, "TMPDIR": str(scratch)}, check=False)
    assert run.returncode == -signal.SIGKILL
    assert list(scratch.iterdir()) == []
    left = list(out.iterdir())
    assert left
    assert all(path.suffix == ".tmp" for path in left)
    other = out / f".x.parquet.{os.getppid()}.tmp"
    other.touch()
    main(["prepare", *words])
    assert [path for path in out.iterdir() if path.suffix == ".tmp"] == [other]


def test_a_csv_cell_may_be_long(tmp_path: Path) -> None:
    """Law: cells above 128 KiB, where Python's reader gives up by default, are read whole."""
    longest = "word " * 60_000
    path = tmp_path / "rows.csv"
    path.write_text(f'prompt,answer\nshort,"{longest}"\nlast,x\n')
    assert [row.require() for row in raw_rows(str(path))] == [
        {"prompt": "short", "answer": longest}, {"prompt": "last", "answer": "x"},
    ]  # fmt: skip
