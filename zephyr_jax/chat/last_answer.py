"""The span of the last answer of a conversation, for templates that rewrite earlier turns (thinking templates do)."""

from collections.abc import Sequence

from zephyr_jax.chat.answer_spans import Span, joined_spans, sentinel
from zephyr_jax.chat.message import REASONING_FIELDS, Message, SkippedRow, without_field

REWRITES = "the chat template has no generation markers and rewrites earlier turns"
"""Why a conversation has no targets under a template that renders an answer in another way when a turn follows."""
HIDES_REASONING = "the chat template shows the reasoning of some answers only"
"""Why a conversation has no targets under a template that hides the reasoning of an answer when a turn follows."""


def content_end(text: str, start: int, twin: str, content: str) -> int:
    """Where the content of the last answer ends in a text.

    Args:
        text: The rendered conversation.
        start: Where the answer starts: the length of the generation prompt.
        twin: The same with `sentinel(0)` as the content of the last answer.
        content: That content.

    Raises:
        SkippedRow: The text does not show the whole content, apart from whitespace, at its end.
    """
    _, mark, tail = twin.rpartition(sentinel(0))
    end = len(text) - len(tail)
    written, expected = ("".join(part.split()) for part in (text[start:end], content))
    if not mark or end < start or not text.endswith(tail) or not written.endswith(expected):
        raise SkippedRow("the chat template does not show the last answer as it is after the generation prompt")
    return end


def joined_after(text: str, start: int, marked: Sequence[Sequence[int]]) -> tuple[Span, ...]:
    """The one span that a template with generation markers marks after the generation prompt; () where it marks none.

    Args:
        text: The rendered conversation.
        start: Where the answer starts: the length of the generation prompt.
        marked: Ranges of the generation markers.

    Raises:
        SkippedRow: There are several, or one that does not start right after the prompt.
    """
    spans = joined_spans(text, [span for span in marked if span[0] >= start], 1)
    if len(spans) > 1 or any(text[start:begin].strip() for begin, _ in spans):
        raise SkippedRow("the generation markers of the last answer do not start right after the generation prompt")
    return spans


def check_marks(count: int, expected: int) -> None:
    """Raise SkippedRow unless the text shows the reasoning of all targets, by the numbers of their marks."""
    if count <= 0:
        raise SkippedRow(
            "the chat template removes the reasoning from answers; choose one that renders `reasoning_content` "
            "(data.chat_template)"
        )
    if count < expected:
        raise SkippedRow(HIDES_REASONING)


def through_reasoning(messages: list[Message]) -> list[Message]:
    """The messages through the last one with reasoning; [] where none has any."""
    indices = [index for index, message in enumerate(messages) if any(map(message.get, REASONING_FIELDS))]
    return messages[: indices[-1] + 1] if indices else []


def without_reasoning(messages: list[Message]) -> list[Message]:
    """The messages without their reasoning."""
    for name in REASONING_FIELDS:
        messages = without_field(messages, name)
    return messages
