"""The one reader of rows: any row becomes a Conversation, a Preference or a Prompt. Formats stand in `row_formats`.

What a row holds besides its format's columns is honored (`system`, `history`, `tools`), checked against the messages
(`prompt`, scores), refused by name (images, labels of KTO), or unused, which `unused_columns` lists.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zephyr_jax.chat.message import Message, SkippedRow, text_message
from zephyr_jax.chat.message_formats import (
    MEDIA_FIELDS,
    MESSAGE_FIELDS,
    is_transcript,
    parse_json_column,
    parse_messages,
)
from zephyr_jax.data.row_formats import (
    CONVERSATION_FORMATS,
    PREFERENCE_FORMATS,
    Row,
    RowFormat,
    find_format,
    parse_prompt,
    parse_user_text,
)


@dataclass(frozen=True)
class Conversation:
    """A row for SFT."""

    messages: list[Message]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Preference:
    """A row for DPO: two whole dialogues."""

    chosen: list[Message]
    rejected: list[Message]
    tools: list[Any] | None = None


@dataclass(frozen=True)
class Prompt:
    """A row to generate from: messages that end before an answer."""

    messages: list[Message]
    tools: list[Any] | None = None

    @property
    def first_user_text(self) -> str:
        """Text of the first user message. Raises SkippedRow where the row has none."""
        text = next((message["content"] for message in self.messages if message["role"] == "user"), None)
        if not isinstance(text, str) or not text.strip():
            raise SkippedRow("its first user message has no text")
        return text


def to_conversation(row: Row, allow_contradictions: bool = False) -> Conversation:
    """Convert a row in one of `CONVERSATION_FORMATS`.

    Args:
        row: Column name -> value.
        allow_contradictions: Whether to accept a `prompt` that is not in the messages.

    Raises:
        SkippedRow: The row matches no format, or holds something that can neither be honored nor be ignored.
    """
    _refuse_media(row)
    row_format = find_format(row, CONVERSATION_FORMATS)
    if row_format is None:
        raise SkippedRow("messages is NoneType, not a list, and no other columns hold a conversation")
    _refuse_labels(row, row_format)
    messages = _with_context(row, row_format.parse(row))
    if "prompt" not in row_format.columns and not allow_contradictions:
        _check_prompt(row.get("prompt"), messages)
    return Conversation(messages, _tools(row))


def to_preference(row: Row, allow_contradictions: bool = False) -> Preference:
    """Convert a row in one of `PREFERENCE_FORMATS`; arguments and errors as `to_conversation`."""
    _refuse_media(row)
    row_format = find_format(row, PREFERENCE_FORMATS)
    if row_format is None:
        missing = "rejected" if row.get("chosen") is not None else "chosen"
        raise SkippedRow(f"{missing} does not end with an assistant answer")
    chosen, rejected = row_format.parse(row)
    if not allow_contradictions:
        _check_scores(row)
        _check_prompt(row.get("prompt"), chosen)
    return Preference(_with_context(row, chosen), _with_context(row, rejected), _tools(row))


def to_prompt(row: Row) -> Prompt:
    """Convert a row of any format, or one with a prompt only: everything before its last answer. Raises SkippedRow."""
    if find_format(row, PREFERENCE_FORMATS):
        messages = to_preference(row, allow_contradictions=True).chosen
    elif find_format(row, CONVERSATION_FORMATS):
        messages = to_conversation(row, allow_contradictions=True).messages
    else:
        messages = _with_context(row, parse_prompt(row) or [])
    messages = messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages
    if not messages:
        names = ", or ".join(candidate.name for candidate in CONVERSATION_FORMATS)
        raise SkippedRow(f"no known format; prompts are read from prompt, {names}")
    return Prompt(messages, _tools(row))


def unused_columns[Parsed](fields: Mapping[str, Collection[str]], formats: Iterable[RowFormat[Parsed]]) -> list[str]:
    """Columns, and fields of messages as `column.field`, that rows in these formats do not use.

    Args:
        fields: Every column with the field names of the messages in it.
        formats: The formats that rows of the source have.
    """
    used = _CONTEXT_COLUMNS.union(*((*known.columns, *known.optional) for known in formats))
    dialogues = [name for name in fields if name in used and name in _DIALOGUE_COLUMNS]
    return [name for name in fields if name not in used] + [
        f"{column}.{field}" for column in dialogues for field in sorted(fields[column]) if field not in MESSAGE_FIELDS
    ]


# ---- columns that every format shares ----

_SYSTEM_COLUMNS = ("system", "system_prompt")
_LABEL_COLUMNS = ("label", "kto_tag")
SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
_CONTEXT_COLUMNS = frozenset(
    {"prompt", "history", "tools", "prompt_id", "id", *_SYSTEM_COLUMNS, *_LABEL_COLUMNS, *MEDIA_FIELDS}
    | {name for pair in SCORE_COLUMNS for name in pair}
)
_DIALOGUE_COLUMNS = ("messages", "conversations", "conversation", "chosen", "rejected", "prompt", "completion")
COLUMNS: frozenset[str] = _CONTEXT_COLUMNS.union(
    *((*known.columns, *known.optional) for known in (*CONVERSATION_FORMATS, *PREFERENCE_FORMATS))
)
"""Every column that a format, a check or an id needs."""


def _with_context(row: Row, messages: list[Message]) -> list[Message]:
    """The messages after those of the columns `system` and `history`. Raises SkippedRow when system messages differ."""
    for name in _SYSTEM_COLUMNS:
        if row.get(name) is not None and not isinstance(row[name], str):
            raise SkippedRow(f"`{name}` is {type(row[name]).__name__}, not text")
    system_texts = {row[name] for name in _SYSTEM_COLUMNS if row.get(name) is not None and row[name].strip()}
    has_system = bool(messages) and messages[0]["role"] == "system"
    system, rest = (messages[:1], messages[1:]) if has_system else ([], messages)
    if len(system_texts | {message["content"] for message in system}) > 1:
        raise SkippedRow("the column `system` contradicts the system message")
    return [*(system or [text_message("system", text) for text in system_texts]), *_history(row), *rest]


def _history(row: Row) -> list[Message]:
    """Earlier turns: [question, answer] pairs, or messages."""
    turns = _json_column(row, "history")
    if not turns:
        return []
    if isinstance(turns, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        return [
            text_message(role, text) for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
    return parse_messages(turns, "history")


def _tools(row: Row) -> list[Any] | None:
    tools = _json_column(row, "tools")
    if not tools:
        return None
    if not isinstance(tools, list):
        raise SkippedRow(f"tools is {type(tools).__name__}, not a list")
    return tools


def _json_column(row: Row, name: str) -> Any:
    value = row.get(name)
    return parse_json_column(value, name) if isinstance(value, str) and value.strip() else value


def _refuse_media(row: Row) -> None:
    for name in MEDIA_FIELDS:
        if row.get(name):
            raise SkippedRow(f"it has `{name}`; only text is trained")


def _refuse_labels(row: Row, row_format: RowFormat[Any]) -> None:
    """Raise SkippedRow for rows that label one answer as good or bad: SFT would imitate the bad ones, too."""
    labels = (True, False, "true", "false", "True", "False")
    for name in _LABEL_COLUMNS:
        value = row.get(name)
        if isinstance(value, bool) or value in labels[2:] or (value in labels and "completion" in row_format.columns):
            raise SkippedRow(
                f"it is a row for KTO (an answer with the label `{name}`), which `sft` and `dpo` do not train on"
            )


def _check_prompt(prompt: Any, messages: list[Message]) -> None:
    """Raise SkippedRow when a dialogue does not contain what the column `prompt` holds."""
    if prompt is None or prompt == "":
        return
    if isinstance(prompt, str) and not is_transcript(prompt):
        texts = {message["content"].strip() for message in messages if isinstance(message["content"], str)}
        agrees = prompt.strip() in texts
    else:
        expected = [(turn["role"], turn["content"]) for turn in parse_user_text(prompt, "prompt")]
        actual = [(turn["role"], turn["content"]) for turn in messages]
        agrees = expected in (actual[: len(expected)], actual[1 : len(expected) + 1])
    if not agrees:
        raise SkippedRow("the column `prompt` contradicts the messages")


def _check_scores(row: Row) -> None:
    """Raise SkippedRow when a score ranks the answers the other way."""
    for better, worse in SCORE_COLUMNS:
        high, low = parse_score(row.get(better)), parse_score(row.get(worse))
        if high is not None and low is not None and high < low:
            raise SkippedRow(f"`{better}` is below `{worse}`")


def parse_score(value: Any) -> float | None:
    """A score that is a number or the text of one; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
