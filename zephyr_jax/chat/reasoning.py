"""Reasoning that an assistant writes before its answer: a `<think>...</think>` block in the content, or a field of the message.

Templates that show the field rewrite contents with such a block, so the block is moved into the field. Templates without the
field read the block in the content: its tags are then special tokens, as they were when the model wrote them.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from zephyr_jax.chat.message import REASONING_FIELDS, Message, without_matches

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"
MARK = "\ue000"
"""A private-use character, which shows whether a template renders a text."""


class _Block(NamedTuple):
    """Where the reasoning at the beginning of a content starts and ends, without its tags."""

    start: int
    end: int


def split_block(content: str, opened: bool = False) -> tuple[str, str] | None:
    """The reasoning at the beginning of a content and the answer after it, without whitespace between; None without reasoning.

    Args:
        content: What an assistant wrote.
        opened: Whether the generation prompt ends with `<think>`, so that the content may begin inside the block.
    """
    block = _find_block(content, opened)
    if block is None:
        return None
    return content[block.start : block.end].strip(), content[block.end + len(CLOSE_TAG) :].lstrip()


def close_block(content: str, opened: bool) -> str:
    """The content, with the tag that closes its reasoning where the answer was cut before it; `opened` as in `split_block`."""
    begins = opened or content.lstrip().startswith(OPEN_TAG)
    return content + CLOSE_TAG if begins and CLOSE_TAG not in content else content


def ends_open(prompt: str) -> bool:
    """Whether a generation prompt opens the block, so that the model begins inside it."""
    return prompt.rstrip().endswith(OPEN_TAG)


def split_blocks(messages: list[Message], opened: bool) -> list[Message]:
    """The messages with the block of each answer in `reasoning_content`; answers that have reasoning in a field stay."""
    return [_split(message, opened) if _may_hold_block(message) else message for message in messages]


def join_blocks(messages: list[Message]) -> list[Message]:
    """The messages with `reasoning_content` of answers as the block of their contents, for templates without the field."""
    return [
        _join(message) if _is_answer(message) and message.get("reasoning_content") else message for message in messages
    ]


def with_marks(messages: list[Message], opened: bool) -> tuple[list[Message], int]:
    """The messages with `MARK` at the end of the reasoning of each answer that is a target, and the number of marks."""
    marked = [_with_mark(message, opened) if message.get("weight") != 0 else message for message in messages]
    return marked, sum(one is not other for one, other in zip(marked, messages, strict=True))


def without_specials(pattern: re.Pattern[str], messages: Sequence[Message], opened: bool) -> list[Message]:
    """As `without_matches`, but for the tags of reasoning in answers that begin with a block.

    Args:
        pattern: Special tokens.
        messages: A conversation.
        opened: As in `split_block`.
    """
    return [_without_specials(pattern, message, opened) for message in messages]


def changed_reason(messages: list[Message]) -> str:
    """Why special tokens cannot be located: the template changes a text that spells one."""
    if any(message["role"] == "assistant" and CLOSE_TAG in message["content"] for message in messages):
        return (
            f"an answer holds `{CLOSE_TAG}` and the chat template changes it; write the reasoning into `reasoning_content`, or "
            f"begin the content with `<think>...{CLOSE_TAG}`"
        )
    return "a message holds a special token's text and the template changes it; remove that text"


def _find_block(content: str, opened: bool) -> _Block | None:
    first = len(content) - len(content.lstrip())
    has_tag = content.startswith(OPEN_TAG, first)
    if not (has_tag or opened):
        return None
    start = first + len(OPEN_TAG) if has_tag else 0
    end = content.find(CLOSE_TAG, start)
    return None if end < 0 else _Block(start, end)


def _is_answer(message: Message) -> bool:
    return message.get("role") == "assistant" and isinstance(message.get("content"), str)


def _may_hold_block(message: Message) -> bool:
    return _is_answer(message) and not any(map(message.get, REASONING_FIELDS))


def _split(message: Message, opened: bool) -> Message:
    parts = split_block(message["content"], opened)
    if parts is None:
        return message
    reasoning, answer = parts
    return {**message, "content": answer, **({"reasoning_content": reasoning} if reasoning else {})}


def _join(message: Message) -> Message:
    block = f"{OPEN_TAG}\n{message['reasoning_content']}\n{CLOSE_TAG}\n\n"
    others = {name: value for name, value in message.items() if name != "reasoning_content"}
    return {**others, "content": block + message["content"]}


def _with_mark(message: Message, opened: bool) -> Message:
    if not _is_answer(message):
        return message
    field = next((name for name in REASONING_FIELDS if message.get(name)), None)
    if field is not None:
        return {**message, field: f"{message[field]}{MARK}"}
    content = message["content"]
    block = _find_block(content, opened)
    return message if block is None else {**message, "content": content[: block.end] + MARK + content[block.end :]}


def _without_specials(pattern: re.Pattern[str], message: Message, opened: bool) -> Message:
    disarmed: Message = without_matches(pattern, message)
    block = _find_block(message["content"], opened) if _may_hold_block(message) else None
    if block is None:
        return disarmed
    content = message["content"]
    parts = [without_matches(pattern, part) for part in content[block.start :].split(CLOSE_TAG)]
    return {**disarmed, "content": content[: block.start] + CLOSE_TAG.join(parts)}
