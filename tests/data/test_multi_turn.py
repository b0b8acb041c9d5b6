"""`data.multi_turn`: conversations of several answers as one example, or as one example per answer; and pairs."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests.chat.test_last_answer import CALLED, TOOLS
from tests.chat.thinking import CHAT, PLAIN, THINKING, chat_with
from tests.tokenizers import CHATML
from zephyr_jax.chat.message import OverLengthRow, SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.data.example_rows import short_id
from zephyr_jax.data.examples import Examples, load_examples
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE, tokenize_conversation, tokenize_preference
from zephyr_jax.errors import InputError

LAST = DataOptions(max_length=256, row_length=512, multi_turn="last")
ALL = replace(LAST, multi_turn="all")
THREE: list[dict[str, Any]] = [
    *PLAIN,
    {"role": "user", "content": "A third?"},
    {"role": "assistant", "content": "Green."},
]
ROWS: list[dict[str, Any]] = [
    {"prompt_id": "one", "messages": PLAIN[:2]},
    {"prompt_id": "three", "messages": THREE},
    {"messages": CHAT},
    {"prompt_id": "muted", "messages": [PLAIN[0], {**PLAIN[1], "weight": 0}, *PLAIN[2:]]},
    {"prompt_id": "bad", "messages": [PLAIN[0], *PLAIN]},
    {"prompt_id": "tools", "messages": CALLED, "tools": TOOLS},
]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache for every test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def thinking(tmp_path: Path) -> ChatTokenizer:
    return chat_with(tmp_path, THINKING, answers="last")


def load(folder: Path, rows: list[dict[str, Any]], chat: ChatTokenizer, data: DataOptions) -> Examples:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_examples(CONVERSATION, data, chat, str(path), "train")


def targets(chat: ChatTokenizer, segment: Segment) -> str:
    return chat.saved.backend.decode(segment.tokens[segment.targets].tolist(), skip_special_tokens=True)


def test_multi_turn_last_makes_an_example_of_each_answer(tmp_path: Path, thinking: ChatTokenizer) -> None:
    """Law: each answer that is a target is one example, with the id of its conversation and its number, in their order."""
    examples = load(tmp_path, ROWS, thinking, LAST)
    assert examples.ids() == [
        *("one", "three#turn 1", "three#turn 2", "three#turn 3", "row 2#turn 1", "row 2#turn 2"),
        *("muted#turn 2", "tools#turn 2"),
    ]
    assert examples.row_indices.tolist() == [0, 1, 1, 1, 2, 2, 3, 5]
    assert list(examples.skipped.values()) == [["bad"]]
    assert "5 conversations became 8 examples, one per answer (data.multi_turn: last)" in examples.summary("rows")
    said = [" ".join(targets(thinking, examples[index][0]).split()) for index in range(len(examples))]
    assert said == [
        *("Blue", "Blue", "Red.", "Green.", "The sky. Blue", "A rose. Red.", "Red.", "It is 42."),
    ]


def test_each_example_is_its_conversation_up_to_the_answer(tmp_path: Path, thinking: ChatTokenizer) -> None:
    """Law: the tokens of a turn are those of the messages through it, rendered as a conversation that ends there."""
    examples = load(tmp_path, [{"id": 7, "messages": THREE}], thinking, LAST)
    for index, end in enumerate((2, 4, 6)):
        (segment,) = examples[index]
        assert segment.tokens.tolist() == thinking.encode(thinking.template.render_last(THREE[:end])).tokens.tolist()
    assert len(set(examples.ids())) == len({key for (key,) in examples.keys().tolist()}) == 3


def test_all_and_last_have_the_same_targets_where_a_template_rewrites_nothing(tmp_path: Path) -> None:
    """Law: for such templates the targets of the turns are those of the conversation, and `all` is one example as before."""
    chat = chat_with(tmp_path, CHATML)
    turns, whole = (load(tmp_path, [{"messages": THREE}], chat, data) for data in (LAST, ALL))
    assert (len(turns), len(whole), whole.ids()) == (3, 1, ["row 0"])
    (segment,) = whole[0]
    parts = [turns[index][0] for index in range(3)]
    assert segment.tokens[segment.targets].tolist() == np.concatenate([p.tokens[p.targets] for p in parts]).tolist()


def test_worker_processes_make_the_same_examples(tmp_path: Path, thinking: ChatTokenizer) -> None:
    """Law: the number of processes changes neither ids nor rows of the examples."""
    one = load(tmp_path, ROWS, thinking, LAST)
    datasets.config.HF_DATASETS_CACHE = tmp_path / "other"
    two = load(tmp_path, ROWS, thinking, replace(LAST, num_workers=2))
    assert one.ids() == two.ids()
    assert one.row_indices.tolist() == two.row_indices.tolist()


def test_turns_beyond_max_length_are_counted(tmp_path: Path, thinking: ChatTokenizer) -> None:
    """Law: an answer behind the maximum length is skipped with its turn's id, the earlier ones stay."""
    first = len(thinking.encode(thinking.template.render_last(THREE[:2])).tokens)
    examples = load(tmp_path, [{"id": "x", "messages": THREE}], thinking, replace(LAST, max_length=first))
    assert examples.ids() == ["x#turn 1"]
    assert examples.skipped == {f"no target token within the first {first} tokens": ["x#turn 2", "x#turn 3"]}


def test_ids_are_short_with_their_turn() -> None:
    """Law: turns of a conversation have different ids when these are shortened, too."""
    assert short_id("f" * 64 + "#turn 12") == "f" * 16 + "#turn 12"
    assert short_id("g" * 64) == "g" * 16


def test_a_rewriting_template_takes_single_answers_only_under_all(tmp_path: Path) -> None:
    """Law: without the setting a row of several answers is refused with the setting's name; one answer is used."""
    chat = chat_with(tmp_path, THINKING, answers="any")
    (segment,) = tokenize_conversation(chat, ALL, {"messages": PLAIN[:2]})
    assert targets(chat, segment).split() == ["Blue"]
    with pytest.raises(SkippedRow, match="data.multi_turn"):
        tokenize_conversation(chat, ALL, {"messages": PLAIN})


def test_settings_that_contradict_multi_turn_are_refused() -> None:
    """Law: all tokens as targets would repeat earlier turns, and pairs have no use for the setting."""
    with pytest.raises(InputError, match="expected `assistant` with data.multi_turn `last`"):
        replace(LAST, targets="all").check()
    with pytest.raises(InputError, match="data.multi_turn: expected `all`"):
        DpoConfig(data=LAST).check()


# ---- pairs ----


def pair(answer: dict[str, Any], other: dict[str, Any], prompt: list[dict[str, Any]]) -> dict[str, Any]:
    return {"chosen": [*prompt, answer], "rejected": [*prompt, other]}


def test_pairs_of_a_thinking_template_need_no_setting(tmp_path: Path) -> None:
    """Law: the prompt of a pair is context as at inference, and both targets follow its generation prompt."""
    other = {"role": "assistant", "content": "None.", "reasoning_content": "No idea."}
    plain = pair(PLAIN[3], {**PLAIN[3], "content": "No."}, CHAT[:3])
    for args, messages in (({}, pair(CHAT[3], other, CHAT[:3])), ({"enable_thinking": False}, plain)):
        chat = chat_with(tmp_path, THINKING, answers="any", args=args)
        sides = tokenize_preference(chat, DataOptions(), messages)
        prompt = chat.prompt(CHAT[:3])
        for side, dialogue in zip(sides, (messages["chosen"], messages["rejected"]), strict=True):
            assert side.tokens[: len(prompt)].tolist() == prompt.tolist()
            assert int(side.targets.argmax()) == len(prompt)
            expected = [dialogue[-1].get("reasoning_content", ""), dialogue[-1]["content"].strip()]
            assert targets(chat, side).split() == " ".join(expected).split()


def test_pairs_with_several_answers_are_refused_by_a_rewriting_template(tmp_path: Path) -> None:
    """Law: dialogues that part before their last answer have a target that such a template rewrites."""
    other = [PLAIN[0], {"role": "assistant", "content": "Brown"}, *PLAIN[2:]]
    row = {"chosen": PLAIN, "rejected": other}
    with pytest.raises(SkippedRow, match="several answers after the messages that they share"):
        tokenize_preference(chat_with(tmp_path, THINKING, answers="any"), DataOptions(), row)
    sides = tokenize_preference(chat_with(tmp_path, CHATML), DataOptions(), row)
    assert all(side.targets.any() for side in sides)


def test_a_long_prompt_of_a_pair_is_cut_before_its_generation_prompt_ends(tmp_path: Path) -> None:
    """Law: the cut prompt keeps its end, so that the answer still follows the generation prompt."""
    chat = chat_with(tmp_path, THINKING, answers="any")
    row = pair(PLAIN[3], {**PLAIN[3], "content": "No."}, PLAIN[:3])
    whole = tokenize_preference(chat, DataOptions(), row)
    data = DataOptions(max_length=len(whole[0]) - 1, max_prompt_length=12)
    with pytest.raises(OverLengthRow) as caught:
        tokenize_preference(chat, data, row)
    cut = caught.value.truncate()
    for before, after in zip(whole, cut, strict=True):
        assert after.tokens[after.targets].tolist() == before.tokens[before.targets].tolist()
        assert after.tokens[:12].tolist()[1:] == chat.prompt(PLAIN[:3]).tolist()[-11:]
    assert PREFERENCE.split_turns is None
