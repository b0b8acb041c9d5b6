"""The formats of rows that data sets come in. To support another one, add an entry to `CONVERSATIONS` or `PAIRS`.

Every reader gives the same: a conversation has `messages`, a preference has `chosen` and `rejected`, which are whole
dialogues; both may have `tools`. What a row holds besides is honored (`system`, `history`, `tools`), checked against the
messages (`prompt`, scores), refused by name (images, labels of KTO), or unused, which `unused_columns` lists.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.message_formats import (
    FIELDS,
    MEDIA,
    is_transcript,
    json_of,
    messages_of,
    text_message,
    transcript_messages,
)

type Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One way to write a row."""

    name: str
    """What `preview` prints."""
    columns: tuple[str, ...]
    """Columns that a row of this format has."""
    read: Callable[[Row], Any]
    """Its messages, or for preferences both dialogues. Raises SkippedRow."""
    optional: tuple[str, ...] = ()
    """Further columns that it uses."""

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns."""
        return all(row.get(name) is not None for name in self.columns)


def conversation(row: Row, contradictions: bool = False) -> dict[str, Any]:
    """`messages` and `tools` of a row for SFT.

    Args:
        row: A row in any of the formats `CONVERSATIONS`.
        contradictions: Whether a `prompt` that is not in the messages is accepted.

    Raises:
        SkippedRow: The row has no such format, or something in it that can neither be honored nor be ignored.
    """
    _refuse_media(row)
    chosen = recognized(row, CONVERSATIONS)
    if chosen is None:
        raise SkippedRow("messages is NoneType, not a list, and no other columns hold a conversation")
    _refuse_labels(row, chosen)
    messages = _with_context(row, chosen.read(row))
    if "prompt" not in chosen.columns and not contradictions:
        _check_prompt(row.get("prompt"), messages)
    return {"messages": messages, "tools": _tools(row)}


def preference(row: Row, contradictions: bool = False) -> dict[str, Any]:
    """`chosen` and `rejected`, two whole dialogues, and `tools` of a row for DPO. See `conversation`."""
    _refuse_media(row)
    chosen = recognized(row, PAIRS)
    if chosen is None:
        missing = "rejected" if row.get("chosen") is not None else "chosen"
        raise SkippedRow(f"{missing} does not end with an assistant answer")
    sides = chosen.read(row)
    if not contradictions:
        _check_scores(row)
        _check_prompt(row.get("prompt"), sides["chosen"])
    return {**{side: _with_context(row, dialogue) for side, dialogue in sides.items()}, "tools": _tools(row)}


def question(row: Row) -> list[Message]:
    """The messages of a row that ask for an answer: everything before the last answer. Raises SkippedRow."""
    if recognized(row, PAIRS):
        messages = preference(row, contradictions=True)["chosen"]
    elif recognized(row, CONVERSATIONS):
        messages = conversation(row, contradictions=True)["messages"]
    else:
        messages = _with_context(row, _asked(row) or [])
    messages = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    if not messages:
        raise SkippedRow(f"no known format; prompts are read from prompt, {_wanted(CONVERSATIONS)}")
    return messages


def recognized(row: Row, formats: Iterable[Format]) -> Format | None:
    """The first format that fits a row."""
    return next((each for each in formats if each.fits(row)), None)


def unused_columns(fields: Mapping[str, Collection[str]], formats: Iterable[Format]) -> list[str]:
    """Columns, and fields of messages as `column.field`, that no reader of rows in these formats looks at.

    Args:
        fields: Every column with the field names of the messages in it.
        formats: The formats that rows of the source have.
    """
    used = {*_SHARED, *MEDIA, *(name for pair in SCORES for name in pair)}
    used.update(name for each in formats for name in (*each.columns, *each.optional))
    unused = [name for name in fields if name not in used]
    read = [name for name in fields if name in used and name in _DIALOGUES]
    return unused + [f"{name}.{each}" for name in read for each in sorted(fields[name]) if each not in FIELDS]


# ---- conversations ----


def _dialogue(column: str, title: str) -> Format:
    return Format(f"{title} (`{column}`)", (column,), lambda row: messages_of(row[column], column))


def _exchange(asked: str, answered: str, context: tuple[str, ...] = ()) -> Format:
    """One question and its answer in two columns; `context` columns follow the question."""

    def read(row: Row) -> list[Message]:
        return [*_question_of(row, asked, context), *_turns(row[answered], "assistant", answered)]

    return Format(" + ".join(f"`{name}`" for name in (asked, answered)), (asked, answered), read, context)


def _question_of(row: Row, asked: str, context: tuple[str, ...]) -> list[Message]:
    more = [row[name] for name in context if row.get(name)]
    if any(not isinstance(each, str) for each in more) or (more and not isinstance(row[asked], str)):
        raise SkippedRow(f"{asked} and {' and '.join(context)} are not text")
    return _turns("\n".join([row[asked], *more]) if more else row[asked], "user", asked)


def _turns(value: Any, role: str, column: str) -> list[Message]:
    """Messages from plain text, which `role` writes, from an hh-rlhf transcript or from messages."""
    if is_transcript(value):
        return transcript_messages(value)
    return [text_message(role, value)] if isinstance(value, str) else messages_of(value, column)


CONVERSATIONS: tuple[Format, ...] = (
    _dialogue("messages", "messages"),
    _dialogue("conversations", "ShareGPT"),
    _dialogue("conversation", "messages"),
    _exchange("prompt", "completion"),
    _exchange("prompt", "response"),
    _exchange("instruction", "output", ("input",)),
    _exchange("instruction", "response", ("input", "context")),
    _exchange("question", "answer"),
    _exchange("question", "response"),
    _exchange("query", "response"),
)
"""Formats of rows for SFT; the first that fits is used."""

# ---- preferences ----

_QUESTIONS = ("prompt", "question", "instruction", "query", "conversations", "conversation")


def _asked(row: Row) -> list[Message] | None:
    """The messages before the answers of a pair, from whichever column has them; None where none has."""
    for name in _QUESTIONS:
        value = row.get(name)
        if value is not None:
            context = ("input",) if name == "instruction" else ()
            return (
                _question_of(row, name, context)
                if isinstance(value, str) and name[:4] != "conv"
                else _prompt(value, name)
            )
    return None


def _prompt(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list | dict | str):
        raise SkippedRow(
            f"the answers are without a question and `{name}` is {type(value).__name__}, neither text nor messages"
        )
    return messages_of(value, name)


def _pair(row: Row) -> dict[str, list[Message]]:
    answers = {side: _answer(row[side], side) for side in ("chosen", "rejected")}
    whole = {side: messages[0]["role"] != "assistant" for side, messages in answers.items()}
    if all(whole.values()):
        return answers
    if any(whole.values()):
        raise SkippedRow("one of chosen and rejected is a whole dialogue, the other only an answer")
    before = _asked(row)
    if before is None and row.get("messages") is not None:
        before = messages_of(row["messages"], "messages")
    if not before:
        raise SkippedRow("chosen and rejected are answers without a question: there is no `prompt`")
    return {side: [*before, *messages] for side, messages in answers.items()}


def _answer(value: Any, side: str) -> list[Message]:
    messages = _turns(value, "assistant", side) if value != [] else []
    if not messages or messages[-1]["role"] != "assistant":
        raise SkippedRow(f"{side} does not end with an assistant answer")
    return messages


PAIRS: tuple[Format, ...] = tuple(
    Format(f"`{asked}` + `chosen` + `rejected`", (asked, "chosen", "rejected"), _pair, (*more, "messages"))
    for asked, more in (
        ("conversations", ()),
        ("prompt", ()),
        ("question", ()),
        ("instruction", ("input",)),
        ("query", ()),
    )
) + (
    Format("`chosen` + `rejected` (messages or hh-rlhf transcripts)", ("chosen", "rejected"), _pair, ("conversation",)),
)
"""Formats of preferences; the first that fits is used."""

# ---- what belongs to every format ----

_SYSTEM = ("system", "system_prompt")
_LABELS = ("label", "kto_tag")
SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
_IDS = ("prompt_id", "id")
_SHARED = ("prompt", *_SYSTEM, "history", "tools", *_LABELS, *_IDS)
_DIALOGUES = ("messages", "conversations", "conversation", "chosen", "rejected", "prompt", "completion")
COLUMNS: frozenset[str] = frozenset(
    {*_SHARED, *MEDIA, *(name for pair in SCORES for name in pair)}
    | {name for each in (*CONVERSATIONS, *PAIRS) for name in (*each.columns, *each.optional)}
)
"""Every column that a format, a check or an id needs."""


def _wanted(formats: Iterable[Format]) -> str:
    return ", or ".join(each.name for each in formats)


def _with_context(row: Row, messages: list[Message]) -> list[Message]:
    """The messages with those of the columns `system` and `history` before them. Raises SkippedRow when systems differ."""
    given = {row[name] for name in _SYSTEM if isinstance(row.get(name), str) and row[name].strip()}
    odd = [name for name in _SYSTEM if row.get(name) is not None and not isinstance(row[name], str)]
    own, rest = (messages[:1], messages[1:]) if messages and messages[0]["role"] == "system" else ([], messages)
    if odd:
        raise SkippedRow(f"`{odd[0]}` is {type(row[odd[0]]).__name__}, not text")
    if len(given | {message["content"] for message in own}) > 1:
        raise SkippedRow("the column `system` contradicts the system message")
    return [*(own or [text_message("system", text) for text in given]), *_history(row), *rest]


def _history(row: Row) -> list[Message]:
    """Earlier turns: [question, answer] pairs, or messages."""
    value = row.get("history")
    value = json_of(value, "history") if isinstance(value, str) and value.strip() else value
    if not value:
        return []
    if isinstance(value, list) and all(isinstance(each, list) and len(each) == 2 for each in value):
        return [
            text_message(role, text) for each in value for role, text in zip(("user", "assistant"), each, strict=True)
        ]
    return messages_of(value, "history")


def _tools(row: Row) -> list[Any] | None:
    value = row.get("tools")
    value = json_of(value, "tools") if isinstance(value, str) and value.strip() else value
    if not value:
        return None
    if not isinstance(value, list):
        raise SkippedRow(f"tools is {type(value).__name__}, not a list")
    return value


def _refuse_media(row: Row) -> None:
    for name in MEDIA:
        if row.get(name):
            raise SkippedRow(f"it has `{name}`; only text is trained")


def _refuse_labels(row: Row, chosen: Format) -> None:
    """Raise SkippedRow for rows that state whether one answer is good: not every answer in them is to be imitated."""
    labels = (True, False, "true", "false", "True", "False")
    for name in _LABELS:
        value = row.get(name)
        if isinstance(value, bool) or (value in labels and "completion" in chosen.columns) or (value in labels[2:]):
            raise SkippedRow(f"it is a row for KTO (an answer with the label `{name}`), and no command trains on these")


def _check_prompt(prompt: Any, messages: list[Message]) -> None:
    """Raise SkippedRow when a dialogue does not contain what the column `prompt` holds."""
    if prompt is None or prompt == "":
        return
    if isinstance(prompt, str) and not is_transcript(prompt):
        asked = {message["content"].strip() for message in messages if isinstance(message["content"], str)}
        agrees = prompt.strip() in asked
    else:
        expected = [_core(message) for message in _turns(prompt, "user", "prompt")]
        actual = [_core(message) for message in messages]
        agrees = expected in (actual[: len(expected)], actual[1 : len(expected) + 1])
    if not agrees:
        raise SkippedRow("the column `prompt` contradicts the messages")


def _core(message: Message) -> tuple[Any, Any]:
    return message["role"], message["content"]


def _check_scores(row: Row) -> None:
    """Raise SkippedRow when a score ranks the answers the other way."""
    for better, worse in SCORES:
        high, low = number(row.get(better)), number(row.get(worse))
        if high is not None and low is not None and high < low:
            raise SkippedRow(f"`{better}` is below `{worse}`")


def number(value: Any) -> float | None:
    """A score as a number, written as one or as text; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
