"""Reasoning in the content of an answer: the same targets as in `reasoning_content`, or a reason that names the field."""

from pathlib import Path
from typing import Any

import pytest

from tests.chat.stock_templates import ANSWERS, BLOCK, FIELD, PLAIN, THOUGHTS, chat_of, stock_chat, targets
from tests.chat.thinking import chat_with
from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.segments import tokenize_preference

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}ANSWER{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
SHOWN = "{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}<|im_end|>"
SHOWN_LAST = "{% generation %}" + SHOWN.replace("if m.thinking", "if m.thinking and loop.last") + "{% endgeneration %}"
REMOVED = "{% generation %}{{ m.content.split('</think>')[-1] }}<|im_end|>{% endgeneration %}"


def template(answer: str) -> str:
    return TURNS.replace("ANSWER", answer) + ASKS


def answer(content: str) -> list[dict[str, Any]]:
    return chat_of({"content": content})


def test_an_empty_block_is_no_reasoning() -> None:
    """Law: the block that a model writes without reasoning gives the row without it, and reasoning alone is no answer."""
    chat = stock_chat("qwen3", answers="last")
    assert targets(chat, answer("<think>\n\n</think>\n\nBlue"), "last") == targets(chat, PLAIN[:2], "last")
    assert targets(
        stock_chat("qwen3", answers="last", enable_thinking=False), answer("<think>\n\n</think>\n\nBlue"), "last"
    )
    with pytest.raises(SkippedRow, match="an assistant answer is empty"):
        targets(chat, answer("<think>\nThe sky.\n</think>\n\n"), "last")


def test_a_block_elsewhere_is_skipped_with_the_field_to_use() -> None:
    """Law: reasoning that is not a block at the beginning is not guessed; the reason names `reasoning_content`."""
    chat = stock_chat("qwen3", answers="last")
    for content in ("The sky.</think>Blue", "Well. <think>The sky.</think>Blue"):
        with pytest.raises(SkippedRow, match="changes it; write the reasoning into `reasoning_content`"):
            targets(chat, answer(content), "last")


def test_only_the_tags_of_the_block_are_special() -> None:
    """Law: other special tokens in reasoning, answers and user messages stay plain text, tags included."""
    for name in ("qwen3", "smollm3"):
        chat = stock_chat(name, answers="last")
        backend = chat.saved.backend
        ids = {tag: backend.token_to_id(tag) for tag in ("<think>", "</think>", "<|im_end|>")}
        plain, odd = (
            chat.encode_last(chat.template.render_last(messages)).tokens.tolist()
            for messages in (
                [PLAIN[0], BLOCK[1]],
                [
                    {"role": "user", "content": "What is </think>?<|im_end|>"},
                    {
                        "role": "assistant",
                        "content": "<think>\nIt is <|im_end|>\n</think>\n\n<think> is a tag.<|im_end|>",
                    },
                ],
            )
        )
        for token in ids.values():
            assert plain.count(token) == odd.count(token) > 0


@pytest.mark.parametrize("name", ["qwen3", "r1_file", "smollm3"])
def test_pairs_with_reasoning_in_the_content(name: str) -> None:
    """Law: both answers of a pair have their reasoning in the target, after a context without that of earlier answers."""
    chat = stock_chat(name, answers="any")
    other = {"role": "assistant", "content": "<think>\nA leaf.\n</think>\n\nGreen."}
    sides = tokenize_preference(chat, DataOptions(), {"chosen": BLOCK, "rejected": [*BLOCK[:3], other]})
    texts = [chat.saved.backend.decode(side.tokens[side.targets].tolist(), skip_special_tokens=False) for side in sides]
    opening = "" if name == "r1_file" else "<think>\n"
    (end,) = chat.template.end_tokens
    assert texts == [
        f"{opening}A rose.\n</think>\n\nRed.{end}",
        f"{opening}A leaf.\n</think>\n\nGreen.{end}",
    ]
    prompt = chat.prompt(BLOCK[:3]).tolist()
    assert all(side.tokens[: len(prompt)].tolist() == prompt for side in sides)


@pytest.mark.parametrize("messages", [FIELD, BLOCK], ids=["field", "block"])
def test_reasoning_under_multi_turn_all(tmp_path: Path, messages: list[dict[str, Any]]) -> None:
    """Law: reasoning is a part of each target of a template without markers; one that hides some of it is refused with `last`."""
    chat = chat_with(tmp_path, template(SHOWN))
    assert targets(chat, messages, "all") == [
        f"<think> {thought}</think> {text}<|im_end|>" for thought, text in zip(THOUGHTS, ANSWERS, strict=True)
    ]
    chat = chat_with(tmp_path, template(SHOWN_LAST))
    with pytest.raises(SkippedRow, match="reasoning of some answers only: set data.multi_turn to `last`"):
        targets(chat, messages, "all")
    assert len(targets(chat, messages, "last")) == 2


def test_a_template_that_removes_reasoning_is_not_trained_on_it(tmp_path: Path) -> None:
    """Law: reasoning never disappears from a target without a reason; context may lose it, as at inference."""
    chat = chat_with(tmp_path, template(REMOVED))
    for multi_turn in ("all", "last"):
        with pytest.raises(
            SkippedRow, match="removes the reasoning from answers; choose one that renders `reasoning_content`"
        ):
            targets(chat, BLOCK, multi_turn)
    assert (
        chat.prompt(BLOCK[:3]).tolist()
        == chat.prompt([PLAIN[0], {**PLAIN[1], "content": "\n\nBlue"}, PLAIN[2]]).tolist()
    )
    assert targets(chat, [BLOCK[0], {**BLOCK[1], "weight": 0}, BLOCK[2], PLAIN[3]], "last") == ["Red.<|im_end|>"]
