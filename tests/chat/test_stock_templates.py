"""Stock chat templates of model families: the target tokens are the answers with their end token, and nothing else."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tests.chat.stock_templates import (
    ANSWERS,
    BLOCK,
    FIELD,
    FOLDER,
    PLAIN,
    THOUGHTS,
    chat_of,
    stock_chat,
    stock_path,
    target_runs,
    targets,
)
from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.errors import InputError

EMPTY = "<think>\n\n</think>\n\n"
ENDS = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_training": "<|im_end|>",
    "smollm3": "<|im_end|>",
    "granite3_3": "<|end_of_text|>",
    "r1_file": "<｜end▁of▁sentence｜>",
}
"""Template -> the only token that ends its answers."""
ALL = ("qwen2_5", "qwen3_training", "smollm3", "granite3_3")
"""Templates that train every answer of a conversation."""
BEFORE = {"qwen3": EMPTY, "qwen3_training": EMPTY, "r1_file": "</think>\n\n"}
"""What a target holds before an answer without reasoning."""
OPENED = {"r1_file": ""}
"""How a target with reasoning begins, where not with `<think>`."""


def stops(chat: ChatTokenizer) -> list[str | None]:
    return [chat.saved.backend.id_to_token(token) for token in chat.stop_ids]


def test_every_committed_template_is_tested() -> None:
    """Law: a file in the folder has expectations here."""
    assert {path.stem for path in FOLDER.glob("*.jinja")} == {*ENDS, "deepseek_r1_distill"} - {"r1_file"}


@pytest.mark.parametrize("name", ALL)
def test_targets_of_all_answers(name: str) -> None:
    """Law: with `multi_turn: all` each answer with its end token is a run of targets."""
    chat = stock_chat(name)
    assert stops(chat) == [ENDS[name]]
    assert targets(chat, PLAIN, "all") == [BEFORE.get(name, "") + text + ENDS[name] for text in ANSWERS]


@pytest.mark.parametrize("name", ENDS)
def test_targets_of_last_answers(name: str) -> None:
    """Law: with `multi_turn: last` each answer is the only run of targets of its example."""
    chat = stock_chat(name, answers="last")
    assert stops(chat) == [ENDS[name]]
    assert targets(chat, PLAIN, "last") == [BEFORE.get(name, "") + text + ENDS[name] for text in ANSWERS]


@pytest.mark.parametrize(
    ("name", "multi_turn"),
    [("qwen3", "last"), ("qwen3_training", "all"), ("qwen3_training", "last"), ("smollm3", "all"), ("r1_file", "last")],
)
@pytest.mark.parametrize("messages", [FIELD, BLOCK], ids=["field", "block"])
def test_targets_with_reasoning(name: str, multi_turn: Any, messages: list[dict[str, Any]]) -> None:
    """Law: reasoning in `reasoning_content` or in the content is in the target as the template writes it, tags as one token."""
    chat = stock_chat(name, answers=multi_turn)
    if name == "smollm3" and messages is FIELD:
        with pytest.raises(SkippedRow, match="does not render `reasoning_content`"):
            targets(chat, messages, multi_turn)
        return
    opening = OPENED.get(name, "<think>\n")
    assert targets(chat, messages, multi_turn) == [
        f"{opening}{thought}\n</think>\n\n{answer}{ENDS[name]}"
        for thought, answer in zip(THOUGHTS, ANSWERS, strict=True)
    ]
    closing = chat.saved.backend.token_to_id("</think>")
    assert [run.count(closing) for run in target_runs(chat, messages, multi_turn)] == [1, 1]


@pytest.mark.parametrize("name", [*ENDS, "deepseek_r1_distill"])
@pytest.mark.parametrize("messages", [PLAIN, BLOCK], ids=["plain", "block"])
def test_prompts_are_those_of_transformers(name: str, messages: list[dict[str, Any]]) -> None:
    """Law: the second turn is asked with the text that transformers renders, and tags of reasoning are special tokens in it."""
    chat = stock_chat(name, training=False)
    prompt = messages[:3]
    texts: Any = render_jinja_template(
        [prompt],
        chat_template=stock_path(name).read_text(),
        add_generation_prompt=True,
        **dict(chat.template.special_tokens),
    )
    expected = chat.saved.backend.encode(texts[0][0], add_special_tokens=False).ids
    if name == "r1_file" and messages is BLOCK:  # `reasoning_content` is the field that it reads
        expected = chat.prompt(PLAIN[:3]).tolist()
    assert chat.prompt(prompt).tolist() == expected


def test_the_stock_template_of_r1_is_refused_with_the_file_to_use() -> None:
    """Law: both settings are refused, and the message names a template that can be used."""
    for answers in ("all", "last"):
        with pytest.raises(InputError, match="configs/deepseek-r1-distill/chat_template.jinja"):
            stock_chat("deepseek_r1_distill", answers=answers)
    with pytest.raises(InputError) as refused:
        stock_chat("qwen3")
    assert "deepseek" not in str(refused.value)


def test_the_file_for_r1_asks_as_the_stock_template() -> None:
    """Law: a model trained with the file gets the same prompts from the stock template."""
    own, stock = stock_chat("r1_file", answers="last"), stock_chat("deepseek_r1_distill", training=False)
    for prompt in (PLAIN[:1], PLAIN[:3], [{"role": "system", "content": "Be brief."}, *PLAIN[:3]]):
        assert own.prompt(prompt).tolist() == stock.prompt(prompt).tolist()
    answer = chat_of({"content": "The sky.\n</think>\n\nBlue"})  # as the model writes it after its prompt
    assert targets(own, answer, "last") == targets(own, FIELD[:2], "last")
