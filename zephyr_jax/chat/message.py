"""What a conversation must be before a template renders it, and the reason when it is not."""

import re
from collections.abc import Callable
from typing import Any

from zephyr_jax.errors import join_items

type Message = dict[str, Any]
"""`role` and `content`; `weight` 0 for an answer that is not a target, and the fields `EXTRA_FIELDS`."""

ROLES = ("system", "user", "assistant", "tool")
_PRIVATE_USE = "\ue000"
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names of the field with what an assistant thinks before its answer; templates read one of them."""
EXTRA_FIELDS = ("tool_calls", *REASONING_FIELDS, "name")
"""Fields of messages that a template must render where a message has them; else the row is refused."""
_MAY_FOLLOW = {
    "": "system user",
    "system": "user",
    "user": "assistant",
    "assistant": "user tool",
    "tool": "tool assistant",
}
"""Role -> roles that may come after it."""


class SkippedRow(ValueError):
    """One row cannot be used; it is counted by its reason and reported with its id.

    Args:
        reason: The same text for all rows that share the fault.
        excerpt: The part of the row that shows the fault.
    """

    def __init__(self, reason: str, excerpt: str = ""):
        super().__init__(reason)
        self.reason, self.excerpt = reason, excerpt


class OverLengthRow(SkippedRow):
    """A row that truncation can fit.

    Args:
        reason: As in `SkippedRow`.
        tokens: Length of the whole row.
        truncate: Gives the truncated row's segments; raises SkippedRow where nothing to learn is left of it.
    """

    def __init__(self, reason: str, tokens: int, truncate: Callable[[], list[Any]]):
        super().__init__(reason)
        self.tokens, self.truncate = tokens, truncate


def text_message(role: str, text: str) -> Message:
    """A message of plain text."""
    return {"role": role, "content": text}


def check_messages(messages: Any, learnt: bool = True) -> None:
    """Raise SkippedRow unless `messages` is [system,] user, assistant, user, assistant, ... with text everywhere.

    Tool messages may follow an answer; an answer follows them.

    `learnt`: whether the answers are; then none may be empty, which a model's own answers may be.
    """
    if not isinstance(messages, list) or not messages:
        raise SkippedRow(f"messages is {type(messages).__name__}, not a list with at least one message")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise SkippedRow(f"a message has the role {str(role)[:40]!r}; roles are {join_items(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise SkippedRow(f"a {message['role']} message holds {type(message.get('content')).__name__}, not text")
        texts = [message["content"], *map(message.get, REASONING_FIELDS)]
        if not all(_is_unicode(text) for text in texts if isinstance(text, str)):
            raise SkippedRow(f"a {message['role']} message has a lone surrogate, expected Unicode text")
    roles = [message["role"] for message in messages]
    follows = [after in _MAY_FOLLOW[role].split() for role, after in zip(["", *roles], roles, strict=False)]
    if not all(follows) or roles == ["system"]:
        raise SkippedRow(f"roles go {' '.join(roles)[:80]}; they must go [system] user assistant user assistant ...")
    if learnt and any(_is_empty_answer(message) for message in messages):
        raise SkippedRow("an assistant answer is empty")


def _is_empty_answer(message: Message) -> bool:
    return message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def extra_fields(messages: list[Message]) -> list[str]:
    """The extra fields that messages have; the name of a tool does not count, as its call has it, too."""
    return [
        name for name in EXTRA_FIELDS if any(message.get(name) for message in messages if message["role"] != "tool")
    ]


def without_field(messages: list[Message], field: str) -> list[Message]:
    """The messages without one of their fields."""
    if not any(field in message for message in messages):
        return messages
    return [{name: value for name, value in message.items() if name != field} for message in messages]


def ablations(messages: list[Message], tools: list[Any] | None) -> dict[str, tuple[list[Message], list[Any] | None]]:
    """What a template might ignore -> the conversation and the tools without it."""
    candidates = {f"`{name}` of messages": (without_field(messages, name), tools) for name in extra_fields(messages)}
    if tools:
        candidates["the column `tools`"] = (messages, None)
    if any(message["role"] == "tool" for message in messages):
        others = [
            {**message, "content": message["content"] + _PRIVATE_USE} if message["role"] == "tool" else message
            for message in messages
        ]
        candidates["messages of the role tool"] = (others, tools)
    return candidates


def holds_match(pattern: re.Pattern[str], value: Any) -> bool:
    """Whether a pattern occurs in a text anywhere in a value."""
    if isinstance(value, str):
        return bool(pattern.search(value))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(holds_match(pattern, item) for item in inner)


def without_matches(pattern: re.Pattern[str], value: Any) -> Any:
    """The same value, in whose texts private-use characters, equally many, stand for what a pattern matches."""
    if isinstance(value, str):
        return pattern.sub(lambda match: _PRIVATE_USE * len(match[0]), value)
    if isinstance(value, dict):
        return {name: without_matches(pattern, item) for name, item in value.items()}
    return [without_matches(pattern, item) for item in value] if isinstance(value, list) else value
