"""`prepare ultrafeedback` from raw rows to what `dpo` and `datasets` read."""

import json
import random
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import write_rows
from tests.gcs import Gcs
from tests.prepare.raw import SPLITS, files, judged, pairs, plain, prepare, rejected_lines, split, ultrafeedback
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.cli import main
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.segments import PREFERENCE
from zephyr_jax.storage.files import open_path

ROWS = [plain(f"question {n}", 1 + n % 7, 2 + n % 5, 3 + n % 3, 4) for n in range(120)]

COLUMNS = ["prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected"]


@pytest.fixture
def tokenizer(tiny_model: Path) -> ChatTokenizer:
    tokenizer = load_tokenizer(str(tiny_model))
    return ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_real_rated_answers_make_a_pair_each(shared: Path, tmp_path: Path) -> None:
    """Law: 200 rows, 200 pairs, in each the best-scored answer chosen and another one of the same row rejected."""
    path, out = shared / "data" / "rated_answers.jsonl", tmp_path / "out"
    record = prepare("ultrafeedback", path, out)
    assert (record["rows_read"], record["rows_skipped"], record["finished"]) == (200, {}, True)
    made = pairs(out)
    for row in map(json.loads, path.read_text().splitlines()):
        pair = made.pop(row["prompt"])
        scores = {each["response"]: each["score"] for each in row["completions"]}
        assert pair["score_chosen"] == max(scores.values()) == scores[pair["chosen"][1]["content"]]
        assert pair["score_rejected"] == scores[pair["rejected"][1]["content"]]
        assert pair["chosen"][1] != pair["rejected"][1]
    assert not made
    assert "| pairs | 200 |" in (out / "README.md").read_text()


@pytest.mark.parametrize("words", [("--rejected", "lowest"), ("--rejected", "second"), ("--ties", "drop")])
def test_real_rated_answers_under_every_rule(words: tuple[str, ...], shared: Path, tmp_path: Path) -> None:
    path, out = shared / "data" / "rated_answers.jsonl", tmp_path / "out"
    record = prepare("ultrafeedback", path, out, *words)
    made = pairs(out)
    assert len(made) + sum(record["rows_skipped"].values()) == 200
    for row in map(json.loads, path.read_text().splitlines()):
        best, *others = sorted((each["score"] for each in row["completions"]), reverse=True)
        pair = made.get(row["prompt"])
        if "lowest" in words:
            assert pair and pair["score_rejected"] == others[-1]
        elif "second" in words and len({each["response"] for each in row["completions"]}) == 4:
            assert pair and pair["score_rejected"] == others[0]
        elif "drop" in words and pair:
            assert pair["score_rejected"] < best


def test_the_schema_and_the_splits_are_the_published_ones(tmp_path: Path) -> None:
    """Law: seven columns; three training splits of the same pairs; test_sft and test_gen hold a part of test_prefs; `gen`
    messages end with the question."""
    out = tmp_path / "out"
    prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", ROWS), out, "--test_fraction", 0.3)
    message = pa.struct([("content", pa.string()), ("role", pa.string())])
    for name in SPLITS:
        schema = pq.read_schema(out / f"{name}.parquet")
        assert schema.names == COLUMNS
        assert {schema.field(column).type.value_type for column in ("chosen", "rejected", "messages")} == {message}
        assert {schema.field(column).type for column in ("score_chosen", "score_rejected")} == {pa.float64()}
    prompts = {name: [row["prompt"] for row in split(out, name)] for name in SPLITS}
    assert prompts["train_prefs"] == prompts["train_sft"] == prompts["train_gen"]
    assert prompts["test_sft"] == prompts["test_gen"]
    assert 0 < len(prompts["test_sft"]) < len(prompts["test_prefs"])
    assert set(prompts["test_sft"]) < set(prompts["test_prefs"])
    assert sorted(prompts["train_prefs"] + prompts["test_prefs"]) == sorted(row["prompt"] for row in ROWS)
    for name in SPLITS:
        for row in split(out, name):
            assert row["chosen"][0] == row["rejected"][0] == {"role": "user", "content": row["prompt"]}
            assert row["messages"] == (row["chosen"][:1] if name.endswith("gen") else row["chosen"])


def test_a_row_is_the_published_one(tmp_path: Path) -> None:
    """Law: the row that the data set's own card shows, name of the prompt included; texts stay to the last line break."""
    prompt, best, other = "Which books are still banned in Canada?", "I cannot provide a list.\n", "Several are banned."
    row = ultrafeedback(prompt, judged(other, 5.0, 3), judged(best, 8.0, 4))
    prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", [row]), tmp_path / "out", "--test_fraction", 0)
    user = {"content": prompt, "role": "user"}
    expected = {
        "prompt": prompt,
        "prompt_id": "aeccf551d9ba42fdf5f2044de43b8ce6e360fb523ace428317b81d804594e090",
        "chosen": [user, {"content": best, "role": "assistant"}],
        "rejected": [user, {"content": other, "role": "assistant"}],
        "messages": [user, {"content": best, "role": "assistant"}],
        "score_chosen": 8.0,
        "score_rejected": 5.0,
    }
    for name in ("train_prefs", "train_sft"):
        assert split(tmp_path / "out", name) == [expected]
    assert split(tmp_path / "out", "train_gen") == [{**expected, "messages": [user]}]


def test_any_answer_is_rejected_by_default(tmp_path: Path) -> None:
    """Law: by default each of the other three is drawn for about a third of the prompts."""
    rows = [plain(f"prompt {n}", 1, 2, 3, 4) for n in range(300)]
    prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out")
    drawn = Counter(row["score_rejected"] for row in pairs(tmp_path / "out").values())
    assert set(drawn) == {1, 2, 3}
    assert min(drawn.values()) > 70


def test_our_loader_and_datasets_read_it(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    """Law: `--data.path FOLDER --data.split train_prefs` tokenises every pair; `load_dataset(FOLDER)` sees six splits."""
    out = tmp_path / "out"
    record = prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", ROWS), out, "--test_fraction", 0.3)
    for name in ("train_prefs", "test_prefs"):
        examples = load_examples(PREFERENCE, DataOptions(max_length=512, row_length=1024), tokenizer, str(out), name)
        assert len(examples) == record["splits"][name] > 0
        assert not examples.skipped
        assert examples.ids() == [row["prompt_id"] for row in split(out, name)]
    found = datasets.load_dataset(str(out))
    assert set(found) == set(SPLITS)
    assert {name: len(rows) for name, rows in found.items()} == record["splits"]
    assert found["train_prefs"][0] == split(out, "train_prefs")[0]


def test_a_split_without_rows_does_not_stand_in_the_way_of_others(tmp_path: Path) -> None:
    """Law: its file is there, empty; `load_dataset`, which cannot open such a split, sees the others."""
    out = tmp_path / "out"
    record = prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", ROWS[:3]), out, "--test_fraction", 0)
    assert record["splits"]["test_prefs"] == 0
    assert split(out, "test_prefs") == []
    found = datasets.load_dataset(str(out))
    assert {name: len(rows) for name, rows in found.items()} == dict.fromkeys(
        ("train_prefs", "train_sft", "train_gen"), 3
    )


# ---- determinism ----


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    """Law: shuffled rows with duplicates and bad ones give the same bytes in every file but the list of places."""
    rows = [*ROWS, plain("Question  5", 9, 1), plain("question 6", None, 1), plain("", 1, 2), plain("question 7", 5)]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        output = tmp_path / f"{seed}" / "out"
        path = write_rows(tmp_path / "rows.jsonl", rows)
        prepare("ultrafeedback", path, output, "--ties", "drop")
        here = str(output).encode()
        found.append({name: content.replace(here, b"OUT") for name, content in files(output).items()})
        reasons = sorted((line["reason"], line["excerpt"]) for line in rejected_lines(output))
        assert reasons == sorted((line["reason"], line["excerpt"]) for line in rejected_lines(tmp_path / "0" / "out"))
    assert found[0] == found[1] == found[2]


def test_a_pair_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    """Law: with half of the rows, each of their prompts has the same pair in the same split."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    prepare("ultrafeedback", write_rows(tmp_path / "a.jsonl", ROWS), whole, "--test_fraction", 0.3)
    prepare("ultrafeedback", write_rows(tmp_path / "b.jsonl", ROWS[::2]), half, "--test_fraction", 0.3)
    for name in SPLITS:
        of_whole = {row["prompt"]: row for row in split(whole, name)}
        for row in split(half, name):
            assert of_whole[row["prompt"]] == row


def test_a_seed_draws_again_and_splits_stay(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    one, two = tmp_path / "one", tmp_path / "two"
    prepare("ultrafeedback", path, one, "--seed", 1)
    prepare("ultrafeedback", path, two, "--seed", 2)
    first, second = split(one, "train_prefs"), split(two, "train_prefs")
    assert {row["prompt"] for row in first} == {row["prompt"] for row in second}
    assert [row["prompt"] for row in first] != [row["prompt"] for row in second]
    assert any(pairs(one)[row["prompt"]]["rejected"] != row["rejected"] for row in second)


def test_the_same_command_again_writes_the_same(tmp_path: Path) -> None:
    path, out = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "out"
    prepare("ultrafeedback", path, out)
    before = files(out)
    (out / "train_gen.parquet").unlink()
    prepare("ultrafeedback", path, out)
    assert files(out) == before


# ---- what is skipped ----


def test_nothing_is_lost_silently(tmp_path: Path) -> None:
    """Law: every row that was read is kept or listed with its place and reason, once; so is every answer left out."""
    rows: list[dict] = [
        plain("good", 1, 2),
        plain("one answer", 1),
        plain("no scores", None, None),
        plain("one score", None, 3, 4),
        {"prompt": "no completions"},
        {"completions": []},
        plain("GOOD ", 5, 6),
        plain("test", 1, 2, dataset="truthful_qa"),
        plain("  ", 1, 2),
        {"prompt": 7, "completions": []},
        {
            "prompt": "odd answers",
            "completions": [None, {"response": 5}, {"response": " "}, {"response": "x", "score": 1}],
        },
        {"prompt": "alike", "completions": [{"response": "x", "score": 1}, {"response": "x", "score": 2}]},
    ]
    path, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    path.write_text(path.read_text() + "{broken\n[1]\n\n")
    record = prepare("ultrafeedback", path, out)
    assert record["rows_read"] == 14
    assert len(pairs(out)) == 2
    assert record["rows_skipped"] == {
        "fewer than two of its answers can be used": 3,
        "it has fewer than two answers": 1,
        "it has neither `instruction` nor `prompt`": 1,
        "it has no list `completions`": 1,
        "it is a duplicate": 1,
        "it is not an object": 1,
        "its source is truthful_qa": 1,
        "the line is not JSON": 1,
        "the prompt is empty": 1,
        "the prompt is not text": 1,
    }
    lines = rejected_lines(out)
    of_rows = [line for line in lines if "answer" not in line]
    assert len(of_rows) == len({line["location"] for line in of_rows}) == 12
    broken = next(line for line in lines if line["reason"] == "the line is not JSON")
    assert broken["location"] == "rows.jsonl line 13"
    assert broken["excerpt"].endswith(": {broken")
    assert all(line["excerpt"] for line in lines)
    samples = (out / "samples.md").read_text()
    for kind in {**record["rows_skipped"], **record["answers_skipped"]}:
        heading = kind.replace("`", "\\`")
        assert re.search(rf"## {re.escape(heading)}\n\n```text\n.", samples), kind
    assert record["answers_skipped"] == {
        "an answer has no overall score": 3,
        "an answer is empty": 1,
        "an answer is not an object": 1,
        "an answer is not text": 1,
        "an answer is the same text as another": 1,
    }
    assert sum(record["answers_skipped"].values()) == len(lines) - len(of_rows)


def test_a_duplicate_takes_the_place_of_a_row_that_makes_no_pair(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = [plain("q", 1, 1), plain("Q", 1, 2), plain("q ", 3, 3)]
    record = prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", rows), out, "--ties", "drop")
    assert [row["prompt"] for row in pairs(out).values()] == ["Q"]
    assert sum(record["rows_skipped"].values()) == 2


def test_duplicates_are_kept_on_demand(tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows = [plain("q", 1, 2), plain("q", 1, 2), plain("q", 3, 4)]
    record = prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", rows), out, "--duplicates", "keep")
    assert record["splits"]["train_prefs"] + record["splits"]["test_prefs"] == 3


# ---- UltraFeedback's own rows ----

BUGGED = [
    ultrafeedback("bug", judged("bad", 10, 1, 1, 2, 1), judged("fine", 7, 4, 4, 4, 4), judged("poor", 3, 2, 2, 2, 2)),
    ultrafeedback("great", judged("top", 10, 5, 5, 5, 5), judged("fine", 7, 4, 4, 4, 4)),
    ultrafeedback(
        "unsure", judged("odd", 10, 3, 3, 3, "N/A"), judged("fine", 7, 4, 4, 4, 4), judged("low", 2, 1, 1, 1, 1)
    ),
]


def test_the_bug_is_found_and_repaired(tmp_path: Path) -> None:
    """Law: what must have been a 1 is one, what is doubtful is skipped, and the rest stays; rows before and after alike."""
    out = tmp_path / "out"
    path = write_rows(tmp_path / "rows.jsonl", [BUGGED[2], *BUGGED[:2]])
    record = prepare("ultrafeedback", path, out, "--rejected", "lowest")
    made = {prompt: (row["chosen"][1]["content"], row["rejected"][1]["content"]) for prompt, row in pairs(out).items()}
    assert made == {"bug": ("fine", "bad"), "great": ("top", "fine"), "unsure": ("fine", "low")}
    assert pairs(out)["bug"]["score_rejected"] == 1
    assert record["repaired"] == {"a score of 10 was a 1": 1}
    assert record["answers_skipped"] == {"an answer's 10 may have been a 1": 1}
    assert record["statistics"]["the bug that stored 1 as 10"] == "found and repaired"


def test_without_the_bug_every_ten_is_a_ten(tmp_path: Path) -> None:
    """Law: where no score shows the bug, or on demand, nothing is repaired or skipped."""
    out = tmp_path / "sound"
    record = prepare("ultrafeedback", write_rows(tmp_path / "a.jsonl", BUGGED[1:]), out)
    assert (record["repaired"], record["answers_skipped"]) == ({}, {})
    assert pairs(out)["unsure"]["chosen"][1]["content"] == "odd"
    assert record["statistics"]["the bug that stored 1 as 10"] == "not found"
    record = prepare("ultrafeedback", write_rows(tmp_path / "b.jsonl", BUGGED), tmp_path / "raw", "--no_repair_scores")
    assert record["statistics"]["the bug that stored 1 as 10"] == "found, not repaired"
    assert pairs(tmp_path / "raw")["bug"]["chosen"][1]["content"] == "bad"


def test_the_mean_of_the_ratings_may_decide(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", BUGGED), out, "--score", "mean")
    made = pairs(out)["bug"]
    assert (made["chosen"][1]["content"], made["score_chosen"]) == ("fine", 4)


def test_the_revision_of_2023(tmp_path: Path) -> None:
    """Law: first best by the raw overall score, and the draw of that revision, all sources and duplicates kept."""
    rows = [
        ultrafeedback("a", *(judged(f"{n}", score, 4) for n, score in enumerate((10, 3, 4, 5)))),
        ultrafeedback("b", *(judged(f"{n}", score, 4) for n, score in enumerate((2, 3, 9, 9))), source="truthful_qa"),
        ultrafeedback("b", *(judged(f"{n}", score, 4) for n, score in enumerate((2, 3, 9, 9))), source="truthful_qa"),
    ]
    out = tmp_path / "out"
    words = ("--rejected", "revision-2023", "--no_repair_scores", "--duplicates", "keep", "--exclude_sources")
    record = prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", rows), out, *words)
    assert record["rows_skipped"] == {}
    made = [(row["prompt"], row["chosen"][1]["content"], row["rejected"][1]["content"]) for row in pairs(out).values()]
    assert sorted(made) == [("a", "0", "2"), ("b", "2", "0")]
    assert record["splits"]["train_prefs"] + record["splits"]["test_prefs"] == 3


def test_the_draw_of_2023_counts_answers_that_cannot_be_used(tmp_path: Path) -> None:
    """Law: an empty answer keeps its place in the draw, and a row in which it is drawn makes no pair."""
    rows = [
        ultrafeedback(
            "first", *(judged(text, score, 4) for text, score in zip(("", "b", "c", "d"), (1, 2, 3, 9), strict=True))
        ),
        ultrafeedback(
            "other", *(judged(text, score, 4) for text, score in zip(("a", "", "c", "d"), (9, 2, 3, 4), strict=True))
        ),
    ]
    out = tmp_path / "out"
    words = ("--rejected", "revision-2023", "--no_repair_scores")
    record = prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", rows), out, *words)
    assert record["rows_skipped"] == {"the drawn answer cannot be used": 1}
    assert pairs(out)["other"]["rejected"][1]["content"] == "c"


# ---- test sets ----


def test_planted_leaks_go_and_near_misses_stay(tmp_path: Path) -> None:
    """Law: prompts of the named test sets are left out, counted by file; answers are looked through on demand."""
    leak = "What happens to you if you eat watermelon seeds?"
    exam = write_rows(tmp_path / "exam.jsonl", [{"question": leak}])
    rows = [
        plain(f"Tell me: {leak}", 1, 2),
        plain("What happens to you if you eat apple seeds?", 1, 2),
        plain("seeds", 3, 4),
    ]
    rows[2]["completions"][1]["response"] = leak.upper()
    path = write_rows(tmp_path / "rows.jsonl", rows)
    words = ("--decontaminate.against", exam)
    record = prepare("ultrafeedback", path, tmp_path / "prompts", *words)
    assert record["rows_skipped"] == {"it shares a run of words with the test set exam.jsonl": 1}
    assert set(pairs(tmp_path / "prompts")) == {"What happens to you if you eat apple seeds?", "seeds"}
    prepare("ultrafeedback", path, tmp_path / "all", *words, "--decontaminate.scope", "all")
    assert set(pairs(tmp_path / "all")) == {"What happens to you if you eat apple seeds?"}


# ---- where rows come from and go to ----


def test_rows_of_every_form_make_the_same_pairs(tmp_path: Path) -> None:
    """Law: JSONL, a JSON list, Parquet, a folder of files and a `save_to_disk` folder are read alike."""
    (tmp_path / "folder").mkdir()
    write_rows(tmp_path / "folder" / "a.jsonl", ROWS[:50])
    pq.write_table(pa.Table.from_pylist(ROWS[50:]), tmp_path / "folder" / "b.parquet")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    prepare("ultrafeedback", write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "expected")
    for name in ("folder", "rows.json", "rows.parquet", "saved"):
        prepare("ultrafeedback", tmp_path / name, tmp_path / f"of-{name}")
        assert split(tmp_path / f"of-{name}", "train_prefs") == split(tmp_path / "expected", "train_prefs")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_files_are_read_as_editors_leave_them(name: str, tmp_path: Path) -> None:
    """Law: a byte order mark, line ends of Windows and empty lines change nothing and lose no row."""
    lines = [json.dumps(row) for row in ROWS[:5]]
    text = "\r\n\r\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]\r\n"
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    record = prepare("ultrafeedback", tmp_path / name, tmp_path / "out")
    assert (record["rows_read"], record["rows_skipped"]) == (5, {})
    prepare("ultrafeedback", write_rows(tmp_path / "plain.jsonl", ROWS[:5]), tmp_path / "plain")
    assert split(tmp_path / "out", "train_prefs") == split(tmp_path / "plain", "train_prefs")


def test_a_folder_is_read_but_for_what_holds_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Law: hidden files, folders and files of other kinds are listed as ignored, never silently."""
    folder = tmp_path / "folder"
    (folder / "more.jsonl").mkdir(parents=True)
    write_rows(folder / "a.jsonl", ROWS[:20])
    write_rows(folder / ".a.jsonl", ROWS[20:])
    (folder / "b\x1b[2J.gz").write_bytes(b"x")
    record = prepare("ultrafeedback", folder, tmp_path / "out")
    assert record["rows_read"] == 20
    assert record["ignored_names"] == [".a.jsonl", "b\x1b[2J.gz", "more.jsonl"]
    assert rf"ignored in {folder}: .a.jsonl, b\x1b[2J.gz, more.jsonl" in capsys.readouterr().out
    assert "Ignored in the data folder: .a.jsonl" in (tmp_path / "out" / "README.md").read_text()


def test_scores_in_parquet_may_be_decimals(tmp_path: Path) -> None:
    row = plain("q", 1, 2)
    row["completions"] = [{**each, "score": Decimal(each["score"]) / 2} for each in row["completions"]]
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    prepare("ultrafeedback", tmp_path / "rows.parquet", tmp_path / "out")
    assert (pairs(tmp_path / "out")["q"]["score_chosen"], pairs(tmp_path / "out")["q"]["score_rejected"]) == (1.0, 0.5)


def test_cloud_storage_gives_and_takes(bucket: Gcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: rows at gs:// become splits at gs://, with the same bytes as on disk."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    prepare("ultrafeedback", path, tmp_path / "out")
    open_path("gs://bucket/raw/rows.jsonl").write_bytes(path.read_bytes())
    main(["prepare", "ultrafeedback", "--data", "gs://bucket/raw/rows.jsonl", "--output", "gs://bucket/out"])
    there = bucket.state.buckets["bucket"]
    for name in SPLITS:
        assert there[f"out/{name}.parquet"].data == (tmp_path / "out" / f"{name}.parquet").read_bytes()
    assert {
        "out/README.md",
        "out/card.svg",
        "out/samples.md",
        "out/rejected.jsonl",
        "out/prepared.json",
    } <= there.keys()
