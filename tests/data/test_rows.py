"""Rows in the formats that data sets come in: what becomes of each, what is honored, and what is refused by name."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from rich.console import Console

from tests.conftest import write_rows
from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.template import ChatTemplate
from zephyr_jax.chat.template_loader import load_template
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.config.inspect import PreviewConfig
from zephyr_jax.config.sections import DataOptions, ModelOptions
from zephyr_jax.data.examples import load_examples
from zephyr_jax.data.row_formats import CONVERSATION_FORMATS, PREFERENCE_FORMATS, find_format
from zephyr_jax.data.rows import Conversation, Preference, to_conversation, to_preference, to_prompt, unused_columns
from zephyr_jax.data.segments import CONVERSATION, PREFERENCE
from zephyr_jax.errors import InputError
from zephyr_jax.report.preview import preview

type Row = dict[str, Any]
ASK, BLUE, RED = (
    {"role": r, "content": c} for r, c in (("user", "A colour?"), ("assistant", "Blue."), ("assistant", "Red."))
)
CHAT = [ASK, BLUE]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOLS = """{%- for tool in tools or [] %}{{ tool.function.name }};{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}{{ '<|assistant|>\n' }}{% generation %}
{%- if m.reasoning_content %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}{{ m.content }}
{%- for call in m.tool_calls or [] %}{{ 'call ' + call.function.name + (call.function.arguments | tojson) }}{% endfor %}
{{- eos_token }}{% endgeneration %}{{ '\n' }}
{%- else %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache for every test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def zephyr(tiny_model: Path) -> ChatTokenizer:
    tokenizer = load_tokenizer(str(tiny_model))
    return ChatTokenizer(tokenizer, load_template("zephyr-no-system", tokenizer))


@pytest.fixture(scope="module")
def with_tools(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """A template that renders tools, calls and reasoning."""
    path = tmp_path_factory.mktemp("template") / "tools.jinja"
    path.write_text(TOOLS)
    tokenizer = load_tokenizer(str(tiny_model))
    return ChatTokenizer(tokenizer, load_template(str(path), tokenizer))


def targets(template: ChatTemplate, row: Row) -> list[str]:
    """The texts that count."""
    chat = to_conversation(row)
    rendered = template.render(chat.messages, tools=chat.tools)
    return [rendered.text[start:end] for start, end in rendered.spans]


# ---- conversations ----

CONVERSATION_ROWS: dict[str, Row] = {
    "messages": {"messages": CHAT},
    "JSON text": {"messages": json.dumps(CHAT)},
    "struct of lists": {"messages": {"role": ["user", "assistant"], "content": ["A colour?", "Blue."]}},
    "other roles": {"messages": [{"role": "human", "content": "A colour?"}, {"role": "gpt", "content": "Blue."}]},
    "nulls": {"messages": [{**message, "name": None, "tool_calls": None, "weight": None} for message in CHAT]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": t} for t in ("A ", "colour?")]}, BLUE]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "A colour?"}, {"from": "gpt", "value": "Blue."}]},
    "conversations with roles": {"conversations": CHAT},
    "conversation": {"conversation": CHAT},
    "completion": {"prompt": "A colour?", "completion": "Blue."},
    "completion in messages": {"prompt": [ASK], "completion": [BLUE]},
    "response": {"prompt": "A colour?", "response": "Blue."},
    "question": {"question": "A colour?", "answer": "Blue."},
    "Alpaca": {"instruction": "A colour?", "input": "", "output": "Blue."},
    "a class label": {"prompt": "A colour?", "completion": "Blue.", "label": "colours"},
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATION_ROWS)
def test_every_format_of_conversations_gives_the_same_messages(name: str) -> None:
    assert to_conversation(CONVERSATION_ROWS[name]) == Conversation(CHAT)


PREFERENCE_ROWS: dict[str, Row] = {
    "dialogues": {"chosen": CHAT, "rejected": [ASK, RED]},
    "dialogues with their prompt": {"prompt": "A colour?", "chosen": CHAT, "rejected": [ASK, RED]},
    "dialogues with a list": {"prompt": [ASK], "chosen": CHAT, "rejected": [ASK, RED]},
    "texts": {"prompt": "A colour?", "chosen": "Blue.", "rejected": "Red."},
    "prompt and answers": {"prompt": [ASK], "chosen": [BLUE], "rejected": [RED]},
    "Orca": {"question": "A colour?", "chosen": "Blue.", "rejected": "Red."},
    "instruction": {"instruction": "A colour?", "input": "", "chosen": "Blue.", "rejected": "Red."},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "A colour?"}],
        "chosen": {"from": "gpt", "value": "Blue."},
        "rejected": {"from": "gpt", "value": "Red."},
    },
    "messages before": {"messages": [ASK], "chosen": BLUE, "rejected": RED},
    "HH": {
        "chosen": "\n\nHuman: A colour?\n\nAssistant: Blue.",
        "rejected": "\n\nHuman: A colour?\n\nAssistant: Red.",
    },
    "HH prompt": {"prompt": "\n\nHuman: A colour?\n\nAssistant:", "chosen": "Blue.", "rejected": "Red."},
}


@pytest.mark.parametrize("name", PREFERENCE_ROWS)
def test_every_format_of_preferences_gives_the_same_dialogues(name: str) -> None:
    assert to_preference(PREFERENCE_ROWS[name]) == Preference(CHAT, [ASK, RED])


def test_the_input_of_an_instruction_follows_it() -> None:
    row = {"instruction": "Name it.", "input": "Sky.", "output": "Blue."}
    assert to_conversation(row).messages[0]["content"] == "Name it.\nSky."


def test_a_long_transcript_keeps_its_turns() -> None:
    text = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\nD\n\nAssistant: "
    pair = to_preference({"chosen": f"{text}E", "rejected": f"{text}F"})
    assert [message["content"] for message in pair.chosen] == ["A", "B", "C\nD", "E"]


def test_answers_of_several_turns_are_all_targets(zephyr: ChatTokenizer) -> None:
    """Law: after the messages that both sides share, every answer counts."""
    more = {"role": "user", "content": "More."}
    row = {"prompt": [ASK], "chosen": [BLUE, more, RED], "rejected": [RED, more, BLUE]}
    chosen, rejected = PREFERENCE.tokenize(zephyr, DataOptions(max_length=256, max_prompt_length=128), row)
    single = CONVERSATION.tokenize(zephyr, DataOptions(max_length=256), {"messages": [ASK, BLUE, more, RED]})[0]
    assert chosen.tokens.tolist() == single.tokens.tolist()
    assert chosen.targets.tolist() == single.targets.tolist()
    assert rejected.targets.sum() == chosen.targets.sum()


def test_a_row_for_generation_ends_before_its_last_answer() -> None:
    rows = [*CONVERSATION_ROWS.values(), *PREFERENCE_ROWS.values(), {"prompt": "A colour?"}, {"messages": [ASK]}]
    assert [row for row in rows if to_prompt(row).messages != [ASK]] == []


# ---- context columns ----


@pytest.mark.parametrize("column", ["system", "system_prompt"])
def test_a_system_column_is_the_system_message(column: str) -> None:
    assert to_conversation({column: "Be brief.", "messages": CHAT}).messages == [SYSTEM, *CHAT]
    assert to_conversation({column: "Be brief.", "messages": [SYSTEM, *CHAT]}).messages == [SYSTEM, *CHAT]
    assert to_conversation({column: "", "messages": CHAT}).messages == CHAT
    row = {column: "Be brief.", "prompt": "A colour?", "chosen": "Blue.", "rejected": "Red."}
    assert to_preference(row).rejected == [SYSTEM, ASK, RED]
    assert to_conversation({"messages": [{**SYSTEM, "role": "developer"}, *CHAT]}).messages == [SYSTEM, *CHAT]


@pytest.mark.parametrize("history", [[["Hi", "Hello"]], json.dumps([["Hi", "Hello"]]), [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]])  # fmt: skip
def test_a_history_comes_before_the_question(history: Any) -> None:
    earlier = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = {"instruction": "A colour?", "output": "Blue.", "history": history, "system": "Be brief."}
    assert to_conversation(row).messages == [SYSTEM, *earlier, *CHAT]
    assert to_preference({**PREFERENCE_ROWS["texts"], "history": history}).chosen == [*earlier, *CHAT]


# ---- message fields ----


@pytest.mark.parametrize(
    ("field", "off", "on"),
    [("weight", 0, 1), ("train", False, True), ("trainable", False, None), ("loss", 0.0, 1.0)],
)
def test_weights_choose_the_answers_that_count(zephyr: ChatTokenizer, field: str, off: Any, on: Any) -> None:
    """Law: an answer with weight 0 is context: under `assistant` and under `all` none of its tokens is a target."""
    row = {"messages": [ASK, {**RED, field: off}, ASK, {**BLUE, field: on}]}
    assert targets(zephyr.template, row) == ["Blue.</s>"]
    plain = {"messages": [ASK, RED, ASK, BLUE]}
    for data in (DataOptions(max_length=256, targets="assistant"), DataOptions(max_length=256, targets="all")):
        weighted, full = (CONVERSATION.tokenize(zephyr, data, each)[0] for each in (row, plain))
        assert weighted.tokens.tolist() == full.tokens.tolist()
        muted = CONVERSATION.tokenize(
            zephyr,
            DataOptions(max_length=256),
            {"messages": [ASK, RED, ASK, {**BLUE, "weight": 0}]},
        )[0]
        assert weighted.targets.tolist() == (full.targets & ~muted.targets).tolist()


REFUSED: dict[str, tuple[Row, str]] = {
    "a half weight": ({"messages": [ASK, {**BLUE, "weight": 0.5}]}, "`weight` other than 0 and 1"),
    "a text as weight": ({"messages": [ASK, {**BLUE, "train": "no"}]}, "`train` other than 0 and 1"),
    "two weights": ({"messages": [ASK, {**BLUE, "weight": 1, "train": False}]}, "contradicting `weight` and `train`"),
    "a weight of a question": ({"messages": [{**ASK, "weight": 1}, BLUE]}, "a user message has `weight` 1"),
    "no answer that counts": ({"messages": [ASK, {**BLUE, "weight": 0}]}, "no assistant answer to learn from"),
    "calls": ({"messages": [ASK, {**BLUE, "tool_calls": [{"function": {"name": "f"}}]}]}, "does not render `tool_calls`"),
    "reasoning": ({"messages": [ASK, {**BLUE, "reasoning_content": "Sky."}]}, "does not render `reasoning_content`"),
    "thinking": ({"messages": [ASK, {**BLUE, "thinking": "Sky."}]}, "does not render `thinking`"),
    "a name": ({"messages": [{**ASK, "name": "Ann"}, BLUE]}, "does not render `name`"),
    "a function call": ({"messages": [ASK, {**BLUE, "function_call": {"name": "f"}}]}, "`function_call`"),
    "tools": ({"messages": CHAT, "tools": [{"type": "function"}]}, "does not render the column `tools`"),
    "images": ({"messages": CHAT, "images": ["a.png"]}, "it has `images`"),
    "audio": ({"prompt": "A colour?", "completion": "Blue.", "audio": "a.wav"}, "it has `audio`"),
    "an image part": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, BLUE]}, "type 'image_url'"),
    "two systems": ({"system": "Be long.", "messages": [SYSTEM, *CHAT]}, "`system` contradicts"),
    "another prompt": ({"prompt": "A fruit?", "messages": CHAT}, "`prompt` contradicts"),
    "KTO": ({"prompt": "A colour?", "completion": "Blue.", "label": True}, "row for KTO"),
    "KTO with messages": ({"messages": CHAT, "label": False}, "row for KTO"),
    "two answers": ({"messages": [ASK, BLUE, RED]}, "roles go"),
    "a tool without a call": ({"messages": [ASK, {"role": "tool", "content": "x"}, BLUE]}, "roles go user tool"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honored_is_refused_by_name(zephyr: ChatTokenizer, name: str) -> None:
    row, reason = REFUSED[name]
    with pytest.raises(SkippedRow, match=reason):
        CONVERSATION.tokenize(zephyr, DataOptions(max_length=256), row)


CONTRADICTIONS: dict[str, tuple[Row, str]] = {
    "text": ({**PREFERENCE_ROWS["dialogues"], "prompt": "A fruit?"}, "`prompt` contradicts"),
    "messages": ({**PREFERENCE_ROWS["dialogues"], "prompt": [{"role": "user", "content": "A fruit?"}]}, "`prompt` contradicts"),
    "scores": ({**PREFERENCE_ROWS["texts"], "score_chosen": 1, "score_rejected": 9.0}, "`score_chosen` is below"),
    "scores as text": ({**PREFERENCE_ROWS["texts"], "chosen_score": "1", "rejected_score": "2"}, "`chosen_score` is below"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_a_bad_row_unless_it_is_allowed(zephyr: ChatTokenizer, tmp_path: Path, name: str) -> None:
    """Law: `data.allow_contradictions` uses what is otherwise left out, and its change is not hidden by a cache."""
    row, reason = CONTRADICTIONS[name]
    path = str(write_rows(tmp_path / "rows.jsonl", [row, PREFERENCE_ROWS["texts"]]))
    data = DataOptions(max_length=256, max_prompt_length=64, row_length=512)
    strict = load_examples(PREFERENCE, data, zephyr, path, "train")
    assert (len(strict), list(strict.skipped.values())) == (1, [["row 0"]])
    assert reason in next(iter(strict.skipped))
    assert len(load_examples(PREFERENCE, replace(data, allow_contradictions=True), zephyr, path, "train")) == 2


def test_equal_scores_do_not_contradict() -> None:
    assert to_preference({**PREFERENCE_ROWS["texts"], "score_chosen": 5, "score_rejected": 5}).chosen == CHAT


def test_tools_calls_and_reasoning_go_through_a_template_that_renders_them(with_tools: ChatTokenizer) -> None:
    """Law: what the template writes inside its markers is a target, and what others say is context."""
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": "sky"}'}}
    row = {
        "messages": [
            ASK,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "blue", "tool_call_id": "1"},
            {**BLUE, "reasoning_content": "It is blue."},
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "look"}}]),
    }
    assert targets(with_tools.template, row) == ['call look{"at": "sky"}</s>', "<think>It is blue.</think>Blue.</s>"]
    assert with_tools.template.render(row["messages"][:1], tools=json.loads(row["tools"])).text.startswith("look;")
    for fields in ({"thinking": "x"}, {"reasoning": "x"}, {"thinking": "x", "reasoning_content": "x"}):
        assert targets(with_tools.template, {"messages": [ASK, {**BLUE, **fields}]}) == ["<think>x</think>Blue.</s>"]
    with pytest.raises(SkippedRow, match="contradicting `reasoning_content` and `thinking`"):
        targets(with_tools.template, {"messages": [ASK, {**BLUE, "thinking": "x", "reasoning_content": "y"}]})
    with pytest.raises(SkippedRow, match="does not render `name`"):
        targets(with_tools.template, {"messages": [ASK, {**BLUE, "name": "x"}]})


def test_special_tokens_in_a_call_are_text(with_tools: ChatTokenizer) -> None:
    """Law: what a call spells is never read as a special token."""
    call = {"function": {"name": "look", "arguments": {"at": "</s>"}}}
    row = {"messages": [ASK, {**BLUE, "tool_calls": [call]}]}
    segment = CONVERSATION.tokenize(with_tools, DataOptions(max_length=256), row)[0]
    assert (segment.tokens == 2).sum() == 2, "two ends of turns, and none in the call"


# ---- columns ----


def test_unused_columns_and_fields_are_listed(zephyr: ChatTokenizer, tmp_path: Path) -> None:
    rows = [{"id": 1, "source": "x", "messages": [{**ASK, "mood": "glad"}, BLUE], "meta": {"a": 1}}]
    path = str(write_rows(tmp_path / "rows.jsonl", rows))
    examples = load_examples(CONVERSATION, DataOptions(max_length=256), zephyr, path, "train")
    assert examples.notes == ("unused columns: source, meta, messages.mood",)
    assert "  unused columns: source, meta, messages.mood" in examples.summary("x").splitlines()
    fields = {name: () for row in (*CONVERSATION_ROWS.values(), *PREFERENCE_ROWS.values()) for name in row}
    assert unused_columns(fields, [*CONVERSATION_FORMATS, *PREFERENCE_FORMATS]) == []


def test_the_first_format_that_fits_is_taken() -> None:
    for row in CONVERSATION_ROWS.values():
        assert find_format(row, CONVERSATION_FORMATS)
    assert (
        find_format({"messages": None, "prompt": "x", "completion": "y"}, CONVERSATION_FORMATS)
        == CONVERSATION_FORMATS[3]
    )


@pytest.mark.parametrize(("row", "name"), [
    (CONVERSATION_ROWS["ShareGPT"], "ShareGPT"), (CONVERSATION_ROWS["Alpaca"], "`instruction` + `output`"),
    (PREFERENCE_ROWS["HH"], "hh-rlhf"), (PREFERENCE_ROWS["Orca"], "`question` + `chosen`")])  # fmt: skip
def test_preview_prints_the_format(row: Row, name: str, tiny_model: Path, tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "rows.jsonl", [row]))
    console = Console(record=True, width=200, force_terminal=False)
    preview(PreviewConfig(ModelOptions(path=str(tiny_model)), DataOptions(path=path)), console)
    line = next(line for line in console.export_text().splitlines() if line.startswith("  format: "))
    assert name in line


def test_rows_for_kto_are_named(zephyr: ChatTokenizer, tmp_path: Path) -> None:
    path = str(write_rows(tmp_path / "rows.jsonl", [{"prompt": "A?", "completion": "B", "label": True}]))
    for kind in (CONVERSATION, PREFERENCE):
        with pytest.raises(InputError, match="KTO"):
            load_examples(kind, DataOptions(), zephyr, path, "train")
