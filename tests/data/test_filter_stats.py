"""Skipped and truncated rows are counted by reason, with shares of rows and tokens, and too many of them stop a run."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_rows
from tests.methods.small import dpo_config, sft_config
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.cli import main
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.filter_stats import OTHER, filter_stats
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE
from zephyr_jax.data.splits import load_splits
from zephyr_jax.errors import InputError
from zephyr_jax.train_command import train

type Row = dict[str, Any]
LONG = "and on " * 80
EMPTY = "an assistant answer is empty"


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def conversations_of(good: int, bad: int, long: int = 0) -> list[Row]:
    """Rows of equal characters, but for the long ones."""
    answers = ["Fine."] * good + [" " * 5] * bad + [LONG] * long
    return [{"messages": chat("Hi!", answer)} for answer in answers]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    loaded = load_tokenizer(str(tiny_model))
    return ChatTokenizer(loaded, load_template("zephyr", loaded))


@pytest.mark.parametrize(("good", "bad"), [(9, 1), (5, 95), (99, 1), (1, 1)])
def test_skipped_rows_have_shares(good: int, bad: int, tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """A row that cannot be tokenized counts by its characters."""
    path = write_rows(tmp_path / "rows.jsonl", conversations_of(good, bad))
    stats = load_examples(CONVERSATION, DataOptions(), tokenizer, str(path), "train").stats
    (found,) = stats.skipped.items()
    assert found[0] == EMPTY and found[1].rows == bad
    np.testing.assert_allclose([found[1].row_share, found[1].token_share], bad / (good + bad), rtol=1e-6)
    assert not stats.truncated


def test_truncated_rows_lose_the_tokens_beyond_the_cut(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "rows.jsonl", conversations_of(2, 0, long=1)))
    whole = load_examples(CONVERSATION, DataOptions(), tokenizer, path, "train").lengths
    cut = load_examples(CONVERSATION, DataOptions(max_length=64), tokenizer, path, "train").stats
    assert not cut.skipped
    ((reason, found),) = cut.truncated.items()
    assert reason == "over-length: more than max_length 64 tokens" and found.rows == 1
    np.testing.assert_allclose(found.token_share, (whole[2] - 64) / whole.sum())
    dropped = load_examples(CONVERSATION, DataOptions(max_length=64, on_bad_row="drop"), tokenizer, path, "train").stats
    np.testing.assert_allclose(dropped.skipped[reason].token_share, whole[2] / whole.sum())
    assert not dropped.truncated


PAIRS = [
    ("equal texts", "Yes.", "Yes.", 1024, "chosen and rejected are identical"),
    ("equal up to the cut", LONG + "yes", LONG + "no", 64, "chosen and rejected are identical within max_length 64 tokens"),
    ("space that the template strips", "Yes.", " Yes. ", 1024, "chosen and rejected are identical"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "chosen", "rejected", "longest", "reason"), PAIRS)
def test_identical_answers_are_dropped_and_counted(
    what: str, chosen: str, rejected: str, longest: int, reason: str, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    rows = [{"chosen": chat("Hi!", "Good."), "rejected": chat("Hi!", "Bad.")}] * 3
    strips = "strip" in tokenizer.template.source
    path = write_rows(
        tmp_path / "rows.jsonl", [*rows, {"chosen": chat("Hi!", chosen), "rejected": chat("Hi!", rejected)}]
    )
    data = DataOptions(max_length=longest, max_prompt_length=32)
    examples = load_examples(PREFERENCE, data, tokenizer, str(path), "train")
    if what.startswith("space") and not strips:
        assert not examples.stats.skipped  # other tokens, so another answer
        return
    assert len(examples) == 3 and {name: each.rows for name, each in examples.stats.skipped.items()} == {reason: 1}
    why = "over-length" if longest == 64 else "chosen and rejected are identical"
    with pytest.raises(InputError, match=f"1 of 4 rows cannot be used; 1 because: {why}"):
        load_examples(PREFERENCE, replace(data, on_bad_row="error"), tokenizer, str(path), "train")


def test_rare_reasons_are_counted_together() -> None:
    problems = [f"reason {n}" for n in range(50)] + ["common"] * 3
    sizes = np.full(53, 10)
    stats = filter_stats(problems, [""] * 53, sizes, np.zeros(53, int), np.zeros(53, int))
    assert list(stats.skipped)[0] == "common" and len(stats.skipped) == 21
    assert stats.skipped[OTHER].rows == 31 and stats.skipped_rows == pytest.approx(1)


LIMITS = [
    (1, 0, 0.1, False), (2, 0, 0.1, True), (2, 0, 0.2, False), (0, 3, 0.1, True), (0, 3, 1, False), (1, 0, 0, True),
    (0, 0, 0, False),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "long", "limit", "stops"), LIMITS)
def test_a_run_stops_above_the_limit(
    bad: int, long: int, limit: float, stops: bool, tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    """By rows as well as by tokens; whichever is more."""
    path = write_rows(tmp_path / "rows.jsonl", conversations_of(10 - bad - long, bad, long))
    stats = load_examples(CONVERSATION, DataOptions(max_length=64), tokenizer, str(path), "train").stats
    assert stats.exceeds(limit) is stops
    if stops:
        with pytest.raises(InputError, match=rf"{bad} of 10 rows .* data\.max_skipped_fraction {limit:g}") as error:
            stats.check("rows", limit)
        assert ("over-length" if long else EMPTY) in str(error.value)


def test_training_stops_and_looking_warns(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The training rows and the held-out ones; nothing is written."""
    good = write_rows(tmp_path / "good.jsonl", conversations_of(20, 1))
    bad = write_rows(tmp_path / "bad.jsonl", conversations_of(5, 95))
    config = sft_config(tiny_model, bad, tmp_path / "run")
    with pytest.raises(InputError, match=r"bad.jsonl:train: 95 of 100 rows \(95.0%\) are skipped"):
        train(config)
    with pytest.raises(InputError, match=r"bad.jsonl:train: 95 of 100 rows"):
        train(replace(config, data=replace(config.data, path=str(good), eval_path=str(bad))))
    assert not (tmp_path / "run").exists()
    pairs = [{"chosen": chat("Hi!", answer), "rejected": chat("Hi!", "No.")} for answer in ("Yes.", "No.", "No.")]
    aligned = dpo_config(tiny_model, write_rows(tmp_path / "pairs.jsonl", pairs), tmp_path / "run", tmp_path / "table")
    loaded = load_tokenizer(str(tiny_model))
    with pytest.raises(InputError, match="2 of 3 rows .* chosen and rejected are identical"):
        load_splits(PREFERENCE, aligned.data, ChatTokenizer(loaded, load_template("zephyr", loaded)), None, "base")
    main(["preview", "--model.path", str(tiny_model), "--data.path", str(bad)])
    assert "warning: 95 of 100 rows (95.0%) are skipped" in capsys.readouterr().out
    main(["preview", "--model.path", str(tiny_model), "--data.path", str(good)])
    assert "warning" not in capsys.readouterr().out


@pytest.mark.shared
def test_the_case_of_rows_left_out(shared: Path, tiny_model: Path) -> None:
    """Its rows were skipped for their tool messages, which the template renders: they are context, and no row is lost."""
    rows = shared / "cases" / "data" / "14-left-out-not-recorded" / "mostly_bad.jsonl"
    loaded = load_tokenizer(str(tiny_model))
    examples = load_examples(
        CONVERSATION, DataOptions(), ChatTokenizer(loaded, load_template("zephyr", loaded)), str(rows), "train"
    )
    assert len(examples) == 100 and not examples.stats.skipped
    [segment] = examples[1]
    learned, context = (loaded.decode(segment.tokens[segment.targets == target]) for target in (True, False))
    assert "let me see" in learned and "42" in context and "42" not in learned


def test_record_report_and_card_hold_the_counts(tiny_model: Path, tmp_path: Path) -> None:
    """Of the training and the evaluation rows; a resumed run may raise the limit."""
    rows = write_rows(tmp_path / "train.jsonl", conversations_of(30, 2, long=1))
    held_out = write_rows(tmp_path / "held_out.jsonl", conversations_of(20, 1))
    config = sft_config(tiny_model, rows, tmp_path / "run", epochs=1)
    data = replace(config.data, eval_path=str(held_out), max_skipped_fraction=0.2, max_length=200)
    train(replace(config, data=data))
    train(replace(config, data=replace(data, max_skipped_fraction=0.5)))
    record = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert {reason: each["rows"] for reason, each in record["data_skipped"].items()} == {EMPTY: 2}
    assert record["data_skipped"][EMPTY]["row_share"] == pytest.approx(2 / 33)
    assert [each["rows"] for each in record["data_truncated"].values()] == [1]
    assert [each["rows"] for each in record["eval_skipped"].values()] == [1] and record["eval_truncated"] == {}
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count(EMPTY) == 2 and "Skipped and truncated rows" in page
    main(f"export --model.path {tmp_path}/run --output {tmp_path}/hf".split())
    card = (tmp_path / "hf" / "README.md").read_text()
    assert re.search(rf"\| {EMPTY} \| training \| skipped \| 2 \(6\.1%\) \| \d+\.\d% \|", card)
    assert re.search(r"\| over-length: .* \| training \| truncated \| 1 \(3\.0%\) \| \d+\.\d% \|", card)
