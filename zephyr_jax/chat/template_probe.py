"""Short conversations on which chat templates are tried before rows are rendered."""

from zephyr_jax.chat.message import Message

_PROBE: list[Message] = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
]
PROBES = (_PROBE[:2], _PROBE)
"""Conversations of one and of two answers, without a system message."""
_SYSTEM: Message = {"role": "system", "content": "system message"}


def prompts_of(messages: list[Message]) -> list[list[Message]]:
    """The messages before each answer of a conversation."""
    return [messages[:index] for index, message in enumerate(messages) if message["role"] == "assistant"]


def probe_conversations() -> list[list[Message]]:
    """Short conversations on which templates are tried: of one and two answers, without and with a system message."""
    return [list(messages) for messages in (*PROBES, *([_SYSTEM, *probe] for probe in PROBES))]
