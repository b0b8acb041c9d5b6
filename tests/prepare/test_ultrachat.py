"""`prepare ultrachat` from raw dialogues to what `sft` and `datasets` read."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.conftest import write_rows
from tests.prepare.raw import files, prepare, rejected_lines, split
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.prepare import UltrachatConfig
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.segments import CONVERSATION
from zephyr_jax.prepare.refusal import RefusalDetector
from zephyr_jax.prepare.splits import chat_split

SPLITS = ("train_sft", "test_sft", "train_gen", "test_gen")


def raw(*turns: Any) -> dict[str, Any]:
    return {"id": "x", "data": list(turns)}


ROWS = [raw(f"Question {n}?", f"Answer {n}.", f"And {n + 1}?", f"Also {n}.") for n in range(150)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def dialogues(output: Path) -> list[list[str]]:
    """What is said in every dialogue of the `sft` splits, in order of the text."""
    rows = [*split(output, "train_sft"), *split(output, "test_sft")]
    return sorted([each["content"] for each in row["messages"]] for row in rows)


def made(folder: Path, rows: list[dict], *words: object) -> tuple[dict[str, Any], list[list[str]]]:
    """The record and the dialogues, all of them in the `sft` splits."""
    record = prepare("ultrachat", write_rows(folder / "rows.jsonl", rows), folder / "out", "--gen_fraction", 0, *words)
    return record, dialogues(folder / "out")


def test_a_dialogue_is_in_one_split(tmp_path: Path) -> None:
    """Law: four splits share the prompts among them; `gen` splits leave the last answer to a model."""
    out = tmp_path / "out"
    record = prepare("ultrachat", write_rows(tmp_path / "rows.jsonl", ROWS), out)
    prompts = [row["prompt"] for name in SPLITS for row in split(out, name)]
    assert sorted(prompts) == sorted(row["data"][0] for row in ROWS)
    assert all(record["splits"][name] > 0 for name in SPLITS)
    for name in SPLITS:
        for row in split(out, name):
            assert list(row) == ["prompt", "prompt_id", "messages"]
            roles = [each["role"] for each in row["messages"]]
            assert roles == ["user", "assistant", "user", "assistant"][: 3 if name.endswith("gen") else 4]


def test_splits_have_the_published_shares() -> None:
    """Law: by default prompts fall into the splits as the published 515,311 do, each by its words alone."""
    config = UltrachatConfig()
    prompts = [f"question {n}?" for n in range(20_000)]
    found = Counter(chat_split(prompt, config.test_fraction, config.gen_fraction) for prompt in prompts)
    published = {"train_sft": 207_865, "test_sft": 23_110, "train_gen": 256_032, "test_gen": 28_304}
    for name, rows in published.items():
        assert found[name] / 20_000 == pytest.approx(rows / sum(published.values()), abs=0.01)
    for prompt in prompts[:200]:
        assert chat_split(prompt, 0.5, 0.5) == chat_split(f" {prompt.upper()}\n", 0.5, 0.5)


def test_our_loader_and_datasets_read_it(tmp_path: Path, tiny_model: Path) -> None:
    """Law: `--data.path FOLDER --data.split train_sft` tokenises every dialogue; `load_dataset(FOLDER)` sees four splits."""
    out = tmp_path / "out"
    record = prepare("ultrachat", write_rows(tmp_path / "rows.jsonl", ROWS), out)
    tokenizer = load_tokenizer(str(tiny_model))
    chat = ChatTokenizer(tokenizer, load_template("zephyr", tokenizer))
    examples = load_examples(CONVERSATION, DataOptions(max_length=512, row_length=512), chat, str(out), "train_sft")
    assert len(examples) == record["splits"]["train_sft"]
    assert not examples.skipped
    assert {name: len(rows) for name, rows in datasets.load_dataset(str(out)).items()} == record["splits"]


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    """Law: shuffled rows with duplicates, refusals and repairs give the same bytes, subset included."""
    rows = [*ROWS, raw("question 3?", "Other."), raw("hi. how are you?", "Fine."), raw("Sad?", "I have no feelings.")]
    found = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        output = tmp_path / f"{seed}" / "out"
        prepare("ultrachat", write_rows(tmp_path / "rows.jsonl", rows), output, "--num_examples", 100)
        here = str(output).encode()
        found.append({name: content.replace(here, b"OUT") for name, content in files(output).items()})
    assert found[0] == found[1] == found[2]


def test_a_larger_subset_holds_the_smaller(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    kept = []
    for size in (20, 60):
        record = prepare("ultrachat", path, tmp_path / f"{size}", "--num_examples", size)
        assert sum(record["splits"].values()) == size
        assert record["rows_skipped"] == {"it is outside the subset": 150 - size}
        kept.append({row["prompt"] for name in SPLITS for row in split(tmp_path / f"{size}", name)})
    assert kept[0] < kept[1]


def test_case_is_repaired_and_shown(tmp_path: Path) -> None:
    rows = [raw("Hello. how are you?", "fine, i think. and you?"), raw("Good.", "Yes.")]
    record, said = made(tmp_path, rows)
    assert said == [["Good.", "Yes."], ["Hello. How are you?", "Fine, I think. And you?"]]
    assert record["repaired"] == {"the case of a sentence": 1}
    assert "Hello. how are you?\n-> Hello. How are you?" in (tmp_path / "out" / "samples.md").read_text()


def test_case_stays_on_demand(tmp_path: Path) -> None:
    record, said = made(tmp_path, [raw("Hello. how are you?", "fine.")], "--no_truecase")
    assert (record["repaired"], said) == ({}, [["Hello. how are you?", "fine."]])


# ---- refusals ----

SAYS_SO = [
    "As an AI language model, I do not have emotions.",
    "I don't have personal opinions, but many people like it.",
    "Well, I don’t have any feelings or beliefs of my own.",
    "I cannot form opinions.",
    "As a machine I have no personal preferences.",
    "I am not able to express personal views on this.",
    "I lack consciousness.",
    "I am not capable of feeling emotions.",
    "I'm incapable of forming opinions.",
    "I am an AI language model and do not have the capacity for emotions.",
    "I'm only a program, so I don't have opinions.",
    "I, as an AI language model, do not have feelings.",
    "I can't give you my personal opinion.",
    "I am not programmed to have beliefs.",
    "I do not have any bias.",
]
SAYS_NOT = [
    "They do not have emotions.",
    "I do not have a recipe for that, sorry.",
    "Feelings are not facts, and I have three of them.",
    "I don't think that opinions matter here.",
    "I do not have the time. Emotions ran high.",
    "Robots have no feelings, said the professor.",
    "I have no doubt that her feelings matter.",
    "I cannot hold back my emotions any longer, she cried.",
    "I can't give you a discount on opinions.",
    "I am afraid of dogs, so they do not have feelings for me.",
    "I'm sure that robots do not have feelings.",
    "I am not able to provide medical advice.",
]


@pytest.mark.parametrize("answer", SAYS_SO)
def test_answers_about_having_no_feelings_are_known(answer: str) -> None:
    said = [{"role": "user", "content": "Do you?"}, {"role": "assistant", "content": answer}]
    found = RefusalDetector().find(said)
    assert found is not None
    assert found.turn == 1


@pytest.mark.parametrize("answer", SAYS_NOT)
def test_other_answers_are_not(answer: str) -> None:
    assert (
        RefusalDetector().find([{"role": "user", "content": "Do you?"}, {"role": "assistant", "content": answer}])
        is None
    )


def test_long_answers_are_looked_through_in_one_go() -> None:
    for piece in (
        "I ",
        "I do not have ",
        "a",
        "I do not have any, ",
        "I lack ",
        "I'm and ",
        "I, as an ",
        "I can't give any ",
    ):
        assert RefusalDetector().find([{"role": "assistant", "content": piece * 100_000}]) is None


def test_only_the_assistant_can_refuse() -> None:
    assert (
        RefusalDetector().find([{"role": "user", "content": SAYS_SO[0]}, {"role": "assistant", "content": "I see."}])
        is None
    )


LATE = raw("Capital of Peru?", "Lima.", "Do you like it?", SAYS_SO[1], "Oh.", "Yes.")
EARLY = raw("Are you sad?", SAYS_SO[0], "And the capital?", "Lima.")


def test_dialogues_with_a_refusal_go(tmp_path: Path) -> None:
    """Law: the whole dialogue is left out, counted, and its words are shown."""
    record, said = made(tmp_path, [LATE, EARLY, raw("Hi.", "Hello.")])
    assert said == [["Hi.", "Hello."]]
    assert record["rows_skipped"] == {"an answer speaks of having no emotions, opinions and the like": 2}
    assert {line["excerpt"] for line in rejected_lines(tmp_path / "out")} == {SAYS_SO[0], SAYS_SO[1]}
    assert SAYS_SO[0] in (tmp_path / "out" / "samples.md").read_text()


def test_or_end_before_it(tmp_path: Path) -> None:
    """Law: under `cut` what came before stays; a dialogue that begins so goes."""
    record, said = made(tmp_path, [LATE, EARLY], "--refusals", "cut")
    assert said == [["Capital of Peru?", "Lima."]]
    assert sum(record["repaired"].values()) == sum(record["rows_skipped"].values()) == 1


def test_or_stay(tmp_path: Path) -> None:
    assert len(made(tmp_path, [LATE, EARLY], "--refusals", "keep")[1]) == 2


def test_phrases_can_be_added(tmp_path: Path) -> None:
    rows = [raw("Hi.", "AS AN AI, I’m fine (really)."), raw("Hello.", "As an air force pilot, I fly.")]
    _, said = made(tmp_path, rows, "--refusal_phrases", "as an ai,", "i'm fine (really)")
    assert said == [["Hello.", "As an air force pilot, I fly."]]


# ---- duplicates and bad rows ----


@pytest.mark.parametrize(("duplicates", "left"), [("prompt", 2), ("dialogue", 3), ("keep", 4)])
def test_duplicates(duplicates: str, left: int, tmp_path: Path) -> None:
    """Law: the same first question, the same dialogue (case and spacing ignored), or none counts as a duplicate."""
    rows = [raw("A?", "B."), raw("A?", "B."), raw("A?", "C."), raw("D?", "B.")]
    record, said = made(tmp_path, rows, "--duplicates", duplicates)
    assert len(said) == left
    assert sum(record["rows_skipped"].values()) == 4 - left


def test_chat_messages_are_rows_too(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "Yes?"},
    ]
    silent = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "So?"},
        {"role": "assistant", "content": "No."},
    ]
    _, said = made(tmp_path, [{"messages": chat}, {"messages": silent}, raw("Hello.", "Hm.")])
    assert said == [["Be brief.", "Hi.", "Yes?"], ["Hello.", "Hm."], ["So?", "No."]]
    assert {row["prompt"] for row in split(tmp_path / "out", "train_sft")} <= {"Hi.", "Hello.", "So?"}


def test_nothing_is_lost_silently(tmp_path: Path) -> None:
    """Law: every bad row is listed with its reason; a question without an answer is cut, and counted."""
    user = {"role": "user", "content": "Hi."}
    bad: list[dict] = [
        {"text": "x"},
        {"data": "x"},
        raw(),
        raw("Only this?"),
        raw("Q?", None),
        raw("Q?", " "),
        {"messages": [user, user]},
        {"messages": [{"role": ["user"], "content": "x"}, user]},
        {"messages": ["Hi."]},
        {"messages": [user, {"role": "assistant"}]},
        raw("Q \ud800?", "A."),
    ]
    record, said = made(tmp_path, [*bad, raw("Good?", "Yes.", "And then?")])
    assert said == [["Good?", "Yes."]]
    assert record["rows_read"] == 12
    assert record["rows_skipped"] == {
        "a turn holds half a surrogate pair": 1,
        "a turn is empty": 1,
        "a turn is not text": 2,
        "data is str, not a list of texts": 1,
        "it has no question with an answer": 2,
        "its roles do not alternate": 2,
        "messages holds str, not messages with role and content": 1,
        "messages is NoneType, not a list, and no other columns hold a conversation": 1,
    }
    assert record["repaired"] == {"a last question without an answer is cut": 1}
    assert len(rejected_lines(tmp_path / "out")) == 11


def test_test_sets_are_looked_for_in_every_question(tmp_path: Path) -> None:
    """Law: a leak in a later question is found; one in an answer only where answers are looked through."""
    exam = tmp_path / "exam.txt"
    exam.write_text("What happens to you if you eat watermelon seeds?\n")
    leak = exam.read_text()
    rows = [raw("Hi.", "Yes?", f"So: {leak}", "Nothing."), raw("Tell me a question.", leak), raw("Bye.", "Bye.")]
    assert len(made(tmp_path, rows, "--decontaminate.against", exam)[1]) == 2
    (tmp_path / "all").mkdir()
    words = ("--decontaminate.against", exam, "--decontaminate.scope", "all")
    assert made(tmp_path / "all", rows, *words)[1] == [["Bye.", "Bye."]]


@pytest.mark.parametrize(("name", "rows"), [("multiturn", 300), ("conversations", 1500)])
def test_real_dialogues(name: str, rows: int, shared: Path, tmp_path: Path) -> None:
    """Law: of real chats each is kept, or a duplicate; what is kept is what was there but for its case."""
    path = shared / "data" / f"{name}.jsonl"
    record = prepare("ultrachat", path, tmp_path / "out", "--gen_fraction", 0, "--duplicates", "dialogue")
    assert record["rows_read"] == rows
    assert set(record["rows_skipped"]) <= {"it is a duplicate"}
    before = {
        tuple(each["content"].casefold() for each in json.loads(line)["messages"])
        for line in path.read_text().splitlines()
    }
    kept = [tuple(text.casefold() for text in said) for said in dialogues(tmp_path / "out")]
    assert len(kept) + sum(record["rows_skipped"].values()) == rows
    assert set(kept) == before
