"""Raw dialogues to messages: UltraChat's `data` of alternating texts, or chat `messages`."""

from typing import Any

from zephyr_jax.chat.message import EXTRA_FIELDS, SkippedRow
from zephyr_jax.chat.message_formats import WEIGHTS
from zephyr_jax.data.formats import CONVERSATIONS, conversation, recognized
from zephyr_jax.prepare.raw import SetAside

type Messages = list[dict[str, str]]

_TURNS = ("user", "assistant")


def messages_of(row: dict[str, Any]) -> tuple[Messages, bool]:
    """[system] user assistant ... assistant, and whether a last question that has no answer was cut off.

    A system message that says nothing is left out. Raises SetAside for a row that holds no such dialogue.
    """
    if isinstance(row.get("data"), list):
        messages = [{"role": _TURNS[place % 2], "content": text} for place, text in enumerate(row["data"])]
    elif isinstance(row.get("messages"), list):
        messages = [_message(each) for each in row["messages"]]
    elif recognized(row, CONVERSATIONS):
        messages = _conversation(row)
    else:
        raise SetAside("it has neither a list `data` nor a list `messages`")
    if messages and messages[0]["role"] == "system" and messages[0]["content"] in (None, ""):
        messages = messages[1:]
    for each in messages:
        check_text(each["content"], "a turn")
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if [each["role"] for each in turns] != [_TURNS[place % 2] for place in range(len(turns))]:
        raise SetAside("its roles do not alternate", " ".join(str(each["role"]) for each in messages))
    unanswered = len(turns) % 2 == 1
    messages = messages[:-1] if unanswered else messages
    if len(turns) < 2:
        raise SetAside("it has no question with an answer", turns[0]["content"] if turns else "")
    return messages, unanswered


def first_question(messages: Messages) -> str:
    """What a dialogue is known by."""
    return next(each["content"] for each in messages if each["role"] == "user")


def check_text(text: Any, what: str) -> None:
    """Raise SetAside unless `text` is text that can be stored and says something."""
    if not isinstance(text, str):
        raise SetAside(f"{what} is no text", repr(text)[:80])
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SetAside(f"{what} holds half a surrogate pair") from None
    if not text.strip():
        raise SetAside(f"{what} is empty")


def _conversation(row: dict[str, Any]) -> Messages:
    """Messages of a row in one of the formats that `sft` reads, such as ShareGPT. Raises SetAside."""
    try:
        found = conversation(row)
    except SkippedRow as error:
        raise SetAside(str(error)) from error
    if found["tools"]:
        raise SetAside("it has tools, which prepared rows do not keep")
    return [_message(each) for each in found["messages"]]


def _message(each: Any) -> dict[str, Any]:
    if not isinstance(each, dict) or not {"role", "content"} <= each.keys():
        raise SetAside("a message has no role or no content", repr(each)[:80])
    lost = [name for name in (*EXTRA_FIELDS, *WEIGHTS) if each.get(name) not in (None, "", [], 1)]
    if lost:
        raise SetAside(f"a message has `{lost[0]}`, which prepared rows do not keep")
    return {"role": each["role"], "content": each["content"]}
