"""Rows from files of every kind as tokenised examples, and what is left out."""

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from multiprocess import popen_forkserver, popen_spawn_posix
from tokenizers import Tokenizer, processors

from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data import examples
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE
from zephyr_jax.data.sources import open_rows
from zephyr_jax.errors import InputError

type Row = dict[str, Any]

OPTIONS = DataOptions(max_length=128, max_prompt_length=64, row_length=256)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ROWS: list[Row] = [
    {"prompt_id": "first", "messages": chat("Name a colour.", "Blue.")},
    {"prompt_id": "second", "messages": [*chat("Hi!", "Hello."), *chat("And then?", "That is all.")]},
    {"prompt_id": "third", "messages": chat("Spell </s>.", "It is </s>.")},
]
PAIRS: list[Row] = [
    {"id": number, "chosen": chat(question, "Good."), "rejected": chat(question, "A bad one.")}
    for number, question in enumerate(("Name a colour.", "Name a fruit.", "Say </s>."), 1)
]
LONG = "and on " * 80


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own for every test, and no hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """Zephyr's template on the tiny tokenizer, which puts BOS first as Mistral's does."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text((tiny_model / "tokenizer_config.json").read_text())
    tokenizer = load_tokenizer(str(folder))
    return ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def contents(examples: Examples) -> list[list[tuple[list[int], list[bool]]]]:
    return [
        [(segment.tokens.tolist(), segment.targets.tolist()) for segment in examples[index]]
        for index in range(len(examples))
    ]


# ---- content ----


def test_conversations_are_one_segment_each(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: examples keep the order of their source, with ids, lengths and keys that fit their segments."""
    examples = load_examples(CONVERSATION, OPTIONS, tokenizer, str(jsonl(tmp_path / "rows.jsonl", ROWS)), "train")
    assert examples.ids() == ["first", "second", "third"]
    assert examples.segments_per_example == 1
    for index, row in enumerate(ROWS):
        (segment,) = examples[index]
        expected = tokenizer.encode(tokenizer.template.render(row["messages"]))
        assert segment.tokens.tolist() == expected.tokens.tolist()
        assert segment.targets.tolist() == expected.targets.tolist()
        assert (segment.tokens.dtype, segment.targets.dtype) == (np.int32, np.bool_)
        assert examples.lengths[index] == len(segment)
        assert examples.keys()[index].tolist() == [segment.key]
    assert examples.skipped == {}


def test_pairs_are_two_segments_each(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: a pair is chosen, then rejected; its length is that of both."""
    examples = load_examples(PREFERENCE, OPTIONS, tokenizer, str(jsonl(tmp_path / "rows.jsonl", PAIRS)), "train")
    assert examples.ids() == ["1", "2", "3"]
    assert examples.segments_per_example == 2
    assert examples.keys().shape == (3, 2)
    for index, row in enumerate(PAIRS):
        sides = examples[index]
        assert examples.lengths[index] == sum(map(len, sides))
        for side, segment, key in zip(("chosen", "rejected"), sides, examples.keys()[index], strict=True):
            whole = tokenizer.encode(tokenizer.template.render(row[side]))
            assert segment.tokens.tolist() == whole.tokens.tolist()
            assert segment.key == key


def test_a_selection_keeps_its_examples(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: `select` gives the examples asked for, in the order asked for."""
    examples = load_examples(PREFERENCE, OPTIONS, tokenizer, str(jsonl(tmp_path / "rows.jsonl", PAIRS)), "train")
    some = examples.select(np.array([2, 0]))
    assert contents(some) == [contents(examples)[2], contents(examples)[0]]
    assert some.ids() == ["3", "1"]
    assert some.keys().tolist() == examples.keys()[[2, 0]].tolist()
    assert some.lengths.tolist() == examples.lengths[[2, 0]].tolist()


def test_rows_without_ids_are_called_by_their_number(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: the id is `prompt_id`, else `id` (0 is one too), else the row's number."""
    named = [{"id": 0, **ROWS[0]}, {"id": 5, **ROWS[0]}]
    for row in named:
        del row["prompt_id"]
    path = jsonl(tmp_path / "rows.jsonl", named)
    assert load_examples(CONVERSATION, OPTIONS, tokenizer, str(path), "train").ids() == ["0", "5"]
    path = jsonl(tmp_path / "more.jsonl", [{"messages": row["messages"]} for row in ROWS])
    assert load_examples(CONVERSATION, OPTIONS, tokenizer, str(path), "train").ids() == ["row 0", "row 1", "row 2"]


def test_a_limit_takes_the_first_rows(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: `limit` counts rows from the first, and more than there are is all."""
    path = str(jsonl(tmp_path / "rows.jsonl", ROWS))
    for limit in (1, 2, 99):
        examples = load_examples(CONVERSATION, replace(OPTIONS, limit=limit), tokenizer, path, "train")
        assert examples.ids() == ["first", "second", "third"][:limit]


# ---- what is left out ----

GOOD = {"prompt_id": "good", "messages": chat("Hi!", "Hello.")}
BAD = [
    GOOD,
    {"prompt_id": "empty", "messages": chat("Hi!", "")},
    {"prompt_id": "long", "messages": chat("Hi!", LONG)},
    {"prompt_id": "late", "messages": chat(LONG, "Hello.")},
    {"prompt_id": "blank", "messages": chat("Hi!", " ")},
]


def test_rows_are_left_out_with_a_reason_and_their_ids(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: under `truncate` malformed and targetless rows are counted by reason; long rows are cut."""
    examples = load_examples(CONVERSATION, OPTIONS, tokenizer, str(jsonl(tmp_path / "rows.jsonl", BAD)), "train")
    assert examples.ids() == ["good", "long"]
    assert examples.lengths[1] == 128
    assert examples.skipped == {
        "an assistant answer is empty": ["empty", "blank"],
        "no target token within the first 128 tokens": ["late"],
    }
    assert examples.summary("training").splitlines() == [
        f"training: 2 examples, {int(examples.lengths.sum())} tokens",
        "  1 truncated (long)",
        "  2 skipped: an assistant answer is empty (empty, blank)",
        "  1 skipped: no target token within the first 128 tokens (late)",
        f"  skipped or truncated: {examples.stats.lost_tokens:.1%} of all tokens",
    ]


def test_drop_leaves_long_rows_out(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: under `drop` nothing is cut; an over-long row is left out with its length as the reason."""
    path = str(jsonl(tmp_path / "rows.jsonl", BAD))
    examples = load_examples(CONVERSATION, replace(OPTIONS, on_bad_row="drop"), tokenizer, path, "train")
    assert examples.ids() == ["good"]
    reasons = {identity: reason for reason, ids in examples.skipped.items() for identity in ids}
    assert set(reasons) == {"empty", "long", "late", "blank"}
    assert "more than max_length 128" in reasons["long"]
    assert "more than max_length 128" in reasons["late"]


def test_long_rows_are_one_reason_however_long(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: the summary of a real data set stays short: rows over the limit are counted together."""
    rows = [{"prompt_id": f"long {n}", "messages": chat("Hi!", LONG * n)} for n in range(1, 6)]
    path = str(jsonl(tmp_path / "rows.jsonl", [GOOD, *rows]))
    examples = load_examples(CONVERSATION, replace(OPTIONS, on_bad_row="drop"), tokenizer, path, "train")
    assert list(examples.skipped.values()) == [[f"long {n}" for n in range(1, 6)]]


def test_error_refuses_the_data(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: under `error` one bad row stops all; the count, the commonest reason and its ids are reported."""
    path = str(jsonl(tmp_path / "rows.jsonl", BAD))
    strict = replace(OPTIONS, on_bad_row="error")
    with pytest.raises(
        InputError, match=r"4 of 5 rows .* 2 because: an assistant answer is empty \(ids empty, blank\)"
    ):
        load_examples(CONVERSATION, strict, tokenizer, path, "train")
    fine = str(jsonl(tmp_path / "fine.jsonl", [GOOD]))
    assert len(load_examples(CONVERSATION, strict, tokenizer, fine, "train")) == 1


def test_policies_of_pairs(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: an over-long pair is cut, dropped or refused, as a conversation is."""
    long = {"id": 9, "chosen": chat("Hi!", LONG), "rejected": chat("Hi!", "No.")}
    path = str(jsonl(tmp_path / "rows.jsonl", [*PAIRS, long]))
    cut = load_examples(PREFERENCE, OPTIONS, tokenizer, path, "train")
    assert cut.ids() == ["1", "2", "3", "9"]
    assert max(map(len, cut[3])) == 128
    assert load_examples(PREFERENCE, replace(OPTIONS, on_bad_row="drop"), tokenizer, path, "train").ids() == [
        "1",
        "2",
        "3",
    ]
    with pytest.raises(InputError, match=r"1 of 4 rows .* over-length: .* \(ids 9\)"):
        load_examples(PREFERENCE, replace(OPTIONS, on_bad_row="error"), tokenizer, path, "train")


def test_data_of_bad_rows_only_is_refused(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: nothing usable is an error under every policy, never an empty run."""
    path = str(jsonl(tmp_path / "rows.jsonl", [row for row in BAD if row["prompt_id"] in ("empty", "blank")]))
    with pytest.raises(InputError, match="of 2 rows none can be used; 2 because: an assistant answer is empty"):
        load_examples(CONVERSATION, OPTIONS, tokenizer, path, "train")


@pytest.mark.parametrize("rows", [[{"text": "Hello."}], [{"prompt": "Hi!", "chosen": "Hello."}]])
def test_a_missing_column_is_named(tokenizer: ChatTokenizer, tmp_path: Path, rows: list[Row]) -> None:
    """Law: the refusal names the columns that are missing and those that are there."""
    path = str(jsonl(tmp_path / "rows.jsonl", rows))
    there = ", ".join(rows[0])
    with pytest.raises(InputError, match=f"has no column messages; it has {there}. Conversations need messages"):
        load_examples(CONVERSATION, OPTIONS, tokenizer, path, "train")
    with pytest.raises(InputError, match=f"rejected; it has {there}. Preferences need chosen, rejected"):
        load_examples(PREFERENCE, OPTIONS, tokenizer, path, "train")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "Hi!", "completions": []}], "prepare ultrafeedback"),
        ([{"messages": []}], "look like conversations"),
        ([{"text": "Hello."}], "Rename"),
    ],
)
def test_a_missing_column_says_what_to_do(
    tokenizer: ChatTokenizer, tmp_path: Path, rows: list[Row], words: str
) -> None:
    """Law: rows that another verb reads are sent there."""
    with pytest.raises(InputError, match=words):
        load_examples(PREFERENCE, OPTIONS, tokenizer, str(jsonl(tmp_path / "rows.jsonl", rows)), "train")


# ---- the cache ----


class Counting(ChatTokenizer):
    """Counts the conversations that it encodes."""

    calls = 0

    def encode(self, rendered: Any) -> Any:
        Counting.calls += 1
        return super().encode(rendered)


@pytest.fixture
def counting(tokenizer: ChatTokenizer) -> Counting:
    copy = Counting.__new__(Counting)
    copy.__dict__.update(tokenizer.__dict__)
    Counting.calls = 0
    return copy


@pytest.mark.parametrize("kind", ["jsonl", "saved"])
def test_a_second_load_tokenises_nothing(counting: Counting, tmp_path: Path, kind: str) -> None:
    """Law: tokens are cached by content: loading again reads them back, equal."""
    path = tmp_path / kind
    if kind == "saved":
        Dataset.from_list(ROWS).save_to_disk(str(path))
    else:
        path = jsonl(tmp_path / "rows.jsonl", ROWS)
    first = load_examples(CONVERSATION, OPTIONS, counting, str(path), "train")
    assert Counting.calls == len(ROWS)
    second = load_examples(CONVERSATION, replace(OPTIONS, row_length=512, packing=False), counting, str(path), "train")
    assert Counting.calls == len(ROWS)
    assert contents(first) == contents(second)
    assert first.skipped == second.skipped


def test_whatever_changes_tokens_tokenises_again(counting: Counting, tmp_path: Path) -> None:
    """Law: other rows, another length or other targets never meet a stale cache."""
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    options = (
        OPTIONS,
        replace(OPTIONS, max_length=50),
        replace(OPTIONS, targets="all"),
        replace(OPTIONS, limit=2),
    )
    found = [contents(load_examples(CONVERSATION, each, counting, str(path), "train")) for each in options]
    assert Counting.calls == 3 * len(ROWS) + 2  # once each, though under max_length 50 every row is over-long
    assert len({json.dumps(each) for each in found}) == 4
    jsonl(path, ROWS[::-1])
    assert contents(load_examples(CONVERSATION, OPTIONS, counting, str(path), "train")) == found[0][::-1]


class StartedError(Exception):
    """A worker process was about to start."""


@pytest.mark.parametrize("num_workers", [2, None], ids=["as set", "by default"])
def test_workers_are_not_forked(
    num_workers: int | None, tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: workers start afresh. A fork of a process in which JAX runs may never come back."""

    def started(*_: object) -> None:
        raise StartedError

    def forked() -> int:
        raise AssertionError("forked a process in which JAX runs")

    monkeypatch.setattr(os, "fork", forked)
    monkeypatch.setattr(popen_spawn_posix.Popen, "__init__", started)
    monkeypatch.setattr(popen_forkserver.Popen, "__init__", started)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(examples, "_ROWS_PER_WORKER", len(ROWS) - 1)
    options, path = replace(OPTIONS, num_workers=num_workers), jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(StartedError):
        load_examples(CONVERSATION, options, tokenizer, str(path), "train")


def test_few_rows_start_no_workers(tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: by default few rows are tokenized in the process that asks."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(popen_forkserver.Popen, "__init__", lambda *_: pytest.fail("started a process"))
    monkeypatch.setattr(examples, "_ROWS_PER_WORKER", len(ROWS))
    found = load_examples(CONVERSATION, OPTIONS, tokenizer, str(jsonl(tmp_path / "rows.jsonl", ROWS)), "train")
    assert len(found) == len(ROWS)


# ---- sources ----


def sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """The same rows as every kind of source: name -> (path, split)."""
    rows = Dataset.from_list(ROWS)
    rows.to_parquet(folder / "rows.parquet")
    jsonl(folder / "rows.jsonl", ROWS)
    (folder / "rows.json").write_text(json.dumps(ROWS))
    rows.save_to_disk(folder / "saved")
    DatasetDict({"train_sft": rows, "test_sft": rows.select([0])}).save_to_disk(folder / "splits")
    for name in ("files", "shards", "both"):
        (folder / name).mkdir()
    jsonl(folder / "files" / "train_sft.jsonl", ROWS)
    jsonl(folder / "files" / "test_sft.jsonl", ROWS[:1])
    (folder / "files" / "README.md").write_text("Rows.")
    rows.select([0, 1]).to_parquet(folder / "shards" / "train-00000-of-00002.parquet")
    rows.select([2]).to_parquet(folder / "shards" / "train-00001-of-00002.parquet")
    rows.select([0]).to_parquet(folder / "shards" / "test-00000-of-00001.parquet")
    return {
        "jsonl": (folder / "rows.jsonl", "train"),
        "jsonl by its name": (folder / "rows.jsonl", "rows"),
        "json": (folder / "rows.json", "train"),
        "parquet": (folder / "rows.parquet", "train"),
        "saved": (folder / "saved", "train"),
        "saved with splits": (folder / "splits", "train_sft"),
        "folder of splits": (folder / "files", "train_sft"),
        "folder of shards": (folder / "shards", "train"),
    }


def test_every_kind_of_source_gives_equal_examples(tokenizer: ChatTokenizer, tmp_path: Path) -> None:
    """Law: JSONL, JSON, Parquet, `save_to_disk` and folders of splits or shards are one and the same."""
    found = {}
    for name, (path, split) in sources(tmp_path).items():
        examples = load_examples(CONVERSATION, OPTIONS, tokenizer, str(path), split)
        found[name] = (contents(examples), examples.ids(), examples.keys().tolist())
    expected = found["jsonl"]
    assert {name for name, each in found.items() if each != expected} == set()


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    """Law: a path may be spelled as a URL of fsspec."""
    path = jsonl(tmp_path / "rows.jsonl", ROWS)
    whole = [list(open_rows(name, "train")) for name in (f"file://{path}", str(path))]
    assert whole[0] == whole[1]
    assert whole[0] == ROWS


@pytest.mark.parametrize("name", ["rows[1].jsonl", "a * b.jsonl", "what?.jsonl"])
def test_a_name_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    """Law: characters that mean something to a shell mean nothing in a path."""
    assert len(open_rows(str(jsonl(tmp_path / name, ROWS)), "train")) == 3


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.jsonl", '{"messages": []}\n{"messages": \n', "rows.jsonl line 2"),
        ("rows.parquet", "not parquet at all", "cannot be read as Parquet"),
        ("rows.txt", "hello", "ends in `.txt`; rows are read from .jsonl, .json, .parquet, .ndjson, .csv"),
        ("rows.jsonl", "", "rows.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: str, reason: str) -> None:
    """Law: the refusal names the file, and the line where there is one to blame."""
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError, match=reason):
        open_rows(str(path), "train")


def test_a_suffix_that_is_not_read_is_named(tmp_path: Path) -> None:
    """Law: a suffix that is not read is refused with those that are."""
    path = tmp_path / "rows.jsonl.lz4"
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(InputError, match=r"ends in `.lz4`; rows are read from"):
        open_rows(str(path), "train")


@pytest.mark.parametrize(
    ("source", "split", "reason"),
    [
        ("jsonl", "test", "single file, so its only split is `train`; got `test`"),
        ("saved with splits", "dev", "no split `dev`; it has test_sft, train_sft"),
        ("folder of splits", "train", "no rows for the split `train`: it holds test_sft, train_sft"),
        ("folder of shards", "dev", "no rows for the split `dev`: it holds test, train"),
    ],
)
def test_an_unknown_split_is_answered_with_those_there_are(
    tmp_path: Path, source: str, split: str, reason: str
) -> None:
    """Law: the refusal of a split names the splits to choose from."""
    with pytest.raises(InputError, match=reason):
        open_rows(str(sources(tmp_path)[source][0]), split)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """Law: a folder without rows says what a split is called."""
    with pytest.raises(InputError, match=r"it holds no .jsonl or .parquet. A split is a file named `train.jsonl`"):
        open_rows(str(tmp_path), "train")


def test_a_name_that_is_nowhere_fails_at_once(tmp_path: Path) -> None:
    """Law: what is neither here nor on the hub is refused with its name, without a network."""
    with pytest.raises(InputError, match="'nobody/no-such-rows' is not a local file or folder"):
        open_rows("nobody/no-such-rows", "train")
