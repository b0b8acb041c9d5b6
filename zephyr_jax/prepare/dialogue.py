"""Raw dialogues to alternating messages of plain text, as prepared rows hold them."""

from typing import Any

from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.data.rows import to_conversation

type Messages = list[dict[str, str]]


def parse_dialogue(row: dict[str, Any]) -> tuple[Messages, bool]:
    """[system] user assistant ... assistant, and whether a last question without an answer was cut.

    An empty system message is dropped.

    Raises:
        SkippedRow: The row holds no conversation in a format that `sft` reads, or one that alternating texts cannot express.
    """
    conversation = to_conversation(row, allow_contradictions=True)
    if conversation.tools:
        raise SkippedRow("it has `tools`, which prepared rows do not keep")
    messages = [_plain(message) for message in conversation.messages]
    if messages and messages[0]["role"] == "system" and messages[0]["content"] in (None, ""):
        messages = messages[1:]
    for message in messages:
        check_text(message["content"], "a turn")
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [message["role"] for message in turns]
    if roles != [("user", "assistant")[index % 2] for index in range(len(turns))]:
        raise SkippedRow("its roles do not alternate", " ".join(str(message["role"]) for message in messages))
    if len(turns) < 2:
        raise SkippedRow("it has no question with an answer", turns[0]["content"] if turns else "")
    unanswered = len(turns) % 2 == 1
    return messages[:-1] if unanswered else messages, unanswered


def _plain(message: Message) -> Message:
    extra = next((name for name in message if name not in ("role", "content")), None)
    if extra:
        raise SkippedRow(f"a message has `{extra}`, which prepared rows do not keep")
    return message


def first_question(messages: Messages) -> str:
    """Text of the first user message: the `prompt` of a prepared row."""
    return next(message["content"] for message in messages if message["role"] == "user")


def check_text(text: Any, subject: str) -> None:
    """Raise SkippedRow unless `text` is a string of valid Unicode that is not blank; `subject` names it in the reason."""
    if not isinstance(text, str):
        raise SkippedRow(f"{subject} is not text", repr(text)[:80])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SkippedRow(f"{subject} holds half a surrogate pair") from None
    if not text.strip():
        raise SkippedRow(f"{subject} is empty")
