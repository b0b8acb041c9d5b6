"""Formats of rows: which columns hold a conversation or a preference, and how they become messages.

To support another format, add an entry to `CONVERSATION_FORMATS` or `PREFERENCE_FORMATS`: every command then reads it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zephyr_jax.chat.message import Message, SkippedRow, text_message
from zephyr_jax.chat.message_formats import is_transcript, parse_messages, parse_transcript

type Row = Mapping[str, Any]
"""Column -> value, as a file of rows has them."""


@dataclass(frozen=True)
class RowFormat[Parsed]:
    """One way to write a row; `parse` raises SkippedRow."""

    name: str
    """What `preview` prints."""
    columns: tuple[str, ...]
    """Columns that a row of this format has."""
    parse: Callable[[Row], Parsed]
    optional: tuple[str, ...] = ()
    """Further columns that it uses."""

    def matches(self, row: Row) -> bool:
        """Whether a row has the columns."""
        return all(row.get(name) is not None for name in self.columns)


type ConversationFormat = RowFormat[list[Message]]
type PreferenceFormat = RowFormat[tuple[list[Message], list[Message]]]
"""Parses to the chosen and the rejected dialogue."""


def find_format[Parsed](row: Row, formats: Iterable[RowFormat[Parsed]]) -> RowFormat[Parsed] | None:
    """The first format that a row matches."""
    return next((candidate for candidate in formats if candidate.matches(row)), None)


# ---- conversations ----


def _messages_column(column: str, title: str) -> ConversationFormat:
    return RowFormat(f"{title} (`{column}`)", (column,), lambda row: parse_messages(row[column], column))


def _question_and_answer(question: str, answer: str, context: tuple[str, ...] = ()) -> ConversationFormat:
    """One question and its answer in two columns; `context` columns follow the question."""

    def parse(row: Row) -> list[Message]:
        return [*_question(row, question, context), *_turns(row[answer], "assistant", answer)]

    return RowFormat(f"`{question}` + `{answer}`", (question, answer), parse, context)


def _alternating_texts(row: Row) -> list[Message]:
    if not isinstance(row["data"], list):
        raise SkippedRow(f"data is {type(row['data']).__name__}, not a list of texts")
    return [text_message(("user", "assistant")[index % 2], text) for index, text in enumerate(row["data"])]


def _question(row: Row, column: str, context: tuple[str, ...]) -> list[Message]:
    additions = [row[name] for name in context if row.get(name)]
    if any(not isinstance(text, str) for text in additions) or (additions and not isinstance(row[column], str)):
        raise SkippedRow(f"{column} and {' and '.join(context)} are not text")
    return _turns("\n".join([row[column], *additions]) if additions else row[column], "user", column)


def _turns(value: Any, role: str, column: str) -> list[Message]:
    """Messages from plain text, which `role` writes, from an hh-rlhf transcript or from messages."""
    if is_transcript(value):
        return parse_transcript(value)
    return [text_message(role, value)] if isinstance(value, str) else parse_messages(value, column)


CONVERSATION_FORMATS: tuple[ConversationFormat, ...] = (
    _messages_column("messages", "messages"),
    _messages_column("conversations", "ShareGPT"),
    _messages_column("conversation", "messages"),
    _question_and_answer("prompt", "completion"),
    _question_and_answer("prompt", "response"),
    _question_and_answer("instruction", "output", ("input",)),
    _question_and_answer("instruction", "response", ("input", "context")),
    _question_and_answer("question", "answer"),
    _question_and_answer("question", "response"),
    _question_and_answer("query", "response"),
    RowFormat("UltraChat (`data`: alternating texts)", ("data",), _alternating_texts),
)
"""Formats of rows for SFT; the first that matches is used."""

# ---- prompts and preferences ----

_PROMPT_COLUMNS = ("prompt", "question", "instruction", "query", "conversations", "conversation")


def parse_prompt(row: Row) -> list[Message] | None:
    """The messages before the answers of a pair, from the first prompt column with a value; None without one."""
    column = next((name for name in _PROMPT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        return None
    value = row[column]
    if isinstance(value, str) and column not in ("conversations", "conversation"):
        return _question(row, column, ("input",) if column == "instruction" else ())
    if not isinstance(value, list | dict | str):
        raise SkippedRow(f"the prompt column `{column}` is {type(value).__name__}, neither text nor messages")
    return parse_messages(value, column)


def parse_user_text(value: Any, column: str) -> list[Message]:
    """Messages of a prompt column: text is a user message, transcripts and lists of messages are parsed."""
    return _turns(value, "user", column)


def _pair(row: Row) -> tuple[list[Message], list[Message]]:
    chosen, rejected = _answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected")
    has_prompt = [messages[0]["role"] != "assistant" for messages in (chosen, rejected)]
    if all(has_prompt):
        return chosen, rejected
    if any(has_prompt):
        raise SkippedRow("one of chosen and rejected is a whole dialogue, the other only an answer")
    prompt = parse_prompt(row)
    if prompt is None and row.get("messages") is not None:
        prompt = parse_messages(row["messages"], "messages")
    if not prompt:
        raise SkippedRow("chosen and rejected are answers without a question: expected a column `prompt`")
    return [*prompt, *chosen], [*prompt, *rejected]


def _answer(value: Any, column: str) -> list[Message]:
    messages = _turns(value, "assistant", column) if value != [] else []
    if not messages or messages[-1]["role"] != "assistant":
        raise SkippedRow(f"{column} does not end with an assistant answer")
    return messages


def _pair_with(prompt: str, *optional: str) -> PreferenceFormat:
    columns = (prompt, "chosen", "rejected")
    return RowFormat(f"`{prompt}` + `chosen` + `rejected`", columns, _pair, (*optional, "messages"))


PREFERENCE_FORMATS: tuple[PreferenceFormat, ...] = (
    _pair_with("conversations"),
    _pair_with("prompt"),
    _pair_with("question"),
    _pair_with("instruction", "input"),
    _pair_with("query"),
    RowFormat(
        "`chosen` + `rejected` (messages or hh-rlhf transcripts)",
        columns=("chosen", "rejected"),
        parse=_pair,
        optional=("conversation", "messages"),
    ),
)
"""Formats of preferences; the first that matches is used."""
