"""Planted questions of test sets are found; their neighbours are not."""

from pathlib import Path

import pytest

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.sections import DecontaminationOptions
from zephyr_jax.errors import InputError
from zephyr_jax.prepare.decontaminate import TestSets

SHORT = "What happens to you if you eat watermelon seeds?"
LONG = (
    "A farmer has seventeen sheep and all but nine of them run away over the hill in the night; "
    "how many sheep does the farmer still have in the morning?"
)
TINY = "Who wrote Hamlet?"


def sets(folder: Path, ngram: int = 13) -> TestSets:
    file = folder / "truth.txt"
    file.write_text("\n".join((SHORT, LONG, TINY)) + "\n")
    return TestSets(DecontaminationOptions((str(file),), ngram))


def is_leak(tests: TestSets, *texts: str) -> bool:
    try:
        tests.check(texts)
    except SkippedRow as why:
        assert "truth.txt" in why.reason
        return True
    return False


@pytest.mark.parametrize(
    "leak",
    [
        SHORT,
        SHORT.upper().replace("?", " !!"),
        f"Answer in one sentence. {SHORT} Thank you.",
        "ｗhat happens to you if you eat\nwatermelon  seeds",
        f"Q: {LONG}\nA:",
        LONG[: len(LONG) - 40],
        TINY,
        "who wrote hamlet",
    ],
)
def test_planted_leaks_are_found(leak: str, tmp_path: Path) -> None:
    """Law: the whole, whatever its case and punctuation, and enough of it in a row inside another text."""
    assert is_leak(sets(tmp_path), "Something else.", leak)


@pytest.mark.parametrize(
    "near",
    [
        "What happens to you if you eat apple seeds?",
        "What happens if you eat watermelon seeds?",
        "A farmer has seventeen sheep and all but nine of them are black.",
        "Who wrote Hamlet, and who wrote Faust?",
        "seeds watermelon eat you if you to happens What",
        "",
        "!?",
    ],
)
def test_near_misses_are_kept(near: str, tmp_path: Path) -> None:
    """Law: another question in similar words stays, and so does one that holds a very short one."""
    assert not is_leak(sets(tmp_path), near)


def test_without_runs_only_the_whole_counts(tmp_path: Path) -> None:
    assert is_leak(sets(tmp_path, ngram=0), SHORT.lower())
    assert not is_leak(sets(tmp_path, ngram=0), f"Please: {SHORT}")


def test_shorter_runs_find_more(tmp_path: Path) -> None:
    piece = "Then seventeen sheep and all but nine came."
    assert not is_leak(sets(tmp_path, 13), piece)
    assert is_leak(sets(tmp_path, 6), piece)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"question": "one"}\n{"question": "two"}\n{"question": ""}\n'),
        ("a.json", '[{"prompt": "one"}, {"prompt": "two"}]'),
        ("a.csv", "Type,Question\nx,one\ny,two\n"),
        ("a.txt", "one\n\ntwo\n"),
        ("b.jsonl", '{"turns": ["one", "two"]}\n'),
        (
            "c.jsonl",
            '{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "no"}]}\n{"text": "two"}\n',
        ),
    ],
)
def test_test_sets_of_every_form_are_read(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    tests = TestSets(DecontaminationOptions((str(tmp_path / name),)))
    assert tests.num_texts == 2
    for text in ("one", "two"):
        with pytest.raises(SkippedRow):
            tests.check([text])
    tests.check(["no"])


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"sentence": "one"}\n', "expected one of the columns"),
        ("a.jsonl", "{\n", "line 1: the line is not JSON"),
        ("a.jsonl", '{"question": ""}\n', "no text to look for"),
        ("a.pdf", "x", "ends in `.pdf`"),
        ("a.csv", "", "is empty"),
    ],
)
def test_a_test_set_that_is_none_is_refused(name: str, content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says):
        TestSets(DecontaminationOptions((str(tmp_path / name),)))
