"""How the rows of a source become examples: one segment of a conversation, two (chosen and rejected) of a preference pair."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from zephyr_jax.chat.last_answer import HIDES_REASONING, REWRITES
from zephyr_jax.chat.message import Message, OverLengthRow, SkippedRow, check_messages
from zephyr_jax.chat.template import RenderedChat
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.config.sections import DataOptions
from zephyr_jax.data.row_formats import CONVERSATION_FORMATS, PREFERENCE_FORMATS, RowFormat
from zephyr_jax.data.rows import SCORE_COLUMNS, Conversation, parse_score, to_conversation, to_preference
from zephyr_jax.data.sources import Rows

TURN_MARK = "#turn "
"""In the id of an example: between that of its conversation and the number of the answer."""


def no_columns(rows: Rows, row_indices: np.ndarray) -> dict[str, np.ndarray]:
    """For examples that are tokens and nothing else."""
    return {}


@dataclass(frozen=True)
class ExampleKind:
    """What an example is: the formats of its rows, its segments, and columns beside its tokens."""

    name: str
    """In the plural: errors name it, and cached tokens of two kinds with one name would be mixed up."""
    segments: tuple[str, ...]
    """Names of an example's segments in their order."""
    formats: Sequence[RowFormat[Any]]
    """A row is read by the first of these that fits it."""
    required: tuple[str, ...]
    """Columns of the usual format, for the error where no format fits."""
    tokenize: Callable[[ChatTokenizer, DataOptions, Mapping[str, Any]], list[Segment]]
    """(tokenizer, settings, row) -> segments. Raises SkippedRow, and OverLengthRow, which can truncate them. Worker processes
    import it by name."""
    split_turns: (
        Callable[[ChatTokenizer, DataOptions, Mapping[str, Any]], list[tuple[str, Mapping[str, Any]]]] | None
    ) = None
    """(tokenizer, settings, row) -> under `data.multi_turn: last` the row of each example, with what is added to the id; None
    where a row is one example in any case. Worker processes import it by name."""
    columns: Callable[[Rows, np.ndarray], dict[str, np.ndarray]] = no_columns
    """(rows of the source, int64 [N] indices of the rows that became examples) -> columns by name, [N] or [N, values]."""

    used_by: str = ""
    """Commands that read such rows, for errors about rows of another kind."""
    column_types: Mapping[str, tuple[type[np.generic], int]] = field(default_factory=dict)
    """dtype and values per example of the columns that a batch type may name, for plans without data."""

    @property
    def segments_per_example(self) -> int:
        """Number of segments."""
        return len(self.segments)


def tokenize_conversation(tokenizer: ChatTokenizer, data: DataOptions, row: Mapping[str, Any]) -> list[Segment]:
    """The one segment of a conversation: its assistant answers are targets, or under `data.targets: all` every token but BOS.

    Under `data.multi_turn: last` only the last answer is a target.
    """
    chat = to_conversation(row, data.allow_contradictions)
    rendered, segment = _encode_conversation(tokenizer, data, chat)
    if not segment.targets.any():
        raise SkippedRow("no assistant answer to learn from")
    if data.targets == "all":
        segment = Segment(segment.tokens, np.arange(len(segment)) > 0)
        if rendered.muted:
            segment.targets[tokenizer.encode(replace(rendered, spans=rendered.muted)).targets] = False
    if len(segment) > data.max_length:
        reason = f"over-length: more than max_length {data.max_length} tokens"
        raise OverLengthRow(reason, len(segment), partial(_head_of_conversation, segment, data.max_length))
    return _head_of_conversation(segment, data.max_length)


def _head_of_conversation(segment: Segment, max_length: int) -> list[Segment]:
    head = segment.head(max_length)
    if not head.targets.any():
        raise SkippedRow(f"no target token within the first {max_length} tokens")
    return [head]


def _encode_conversation(
    tokenizer: ChatTokenizer, data: DataOptions, chat: Conversation
) -> tuple[RenderedChat, Segment]:
    template = tokenizer.template
    is_answer = [message["role"] == "assistant" for message in chat.messages]
    if data.multi_turn == "last" or (template.last_answer_only and sum(is_answer) == 1):
        through = len(is_answer) - is_answer[::-1].index(True) if any(is_answer) else len(is_answer)
        rendered = template.render_last(chat.messages[:through], chat.tools)
        return rendered, tokenizer.encode_last(rendered)
    try:
        rendered = template.render(chat.messages, tools=chat.tools)
        return rendered, tokenizer.encode(rendered)
    except SkippedRow as error:
        if error.reason in (HIDES_REASONING, REWRITES) or template.last_answer_only:
            raise SkippedRow(f"{error.reason}: set data.multi_turn to `last`") from error
        raise


def split_turns(
    tokenizer: ChatTokenizer, data: DataOptions, row: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    """The row of each answer of a conversation: the messages through it, and `#turn N` for the id.

    N counts the conversation's answers from 1. Answers with weight 0, and calls of tools where the template has no generation
    markers, are context only. A row that cannot be split stays whole, so that tokenization reports why.
    """
    try:
        chat = to_conversation(row, data.allow_contradictions)
        check_messages(chat.messages)
    except SkippedRow:
        return [("", row)]
    answers = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
    if len(answers) < 2:
        return [("", row)]
    calls_count = tokenizer.template.marks_generation
    return [
        (f"{TURN_MARK}{number}", {"messages": chat.messages[: index + 1], "tools": chat.tools})
        for number, index in enumerate(answers, 1)
        if chat.messages[index].get("weight") != 0 and (calls_count or not chat.messages[index].get("tool_calls"))
    ] or [("", row)]


def tokenize_preference(tokenizer: ChatTokenizer, data: DataOptions, row: Mapping[str, Any]) -> list[Segment]:
    """Chosen and rejected segments of a pair; targets are the answers after the messages that both sides share.

    An over-long pair is cut as the reference DPO code does: first the prompt to its last `data.max_prompt_length` tokens (BOS
    stays), then each answer to the tokens that still fit, from its start.
    """
    pair = to_preference(row, data.allow_contradictions)
    dialogues = (pair.chosen, pair.rejected)
    num_shared = _shared_messages(*dialogues)
    sides = [_answers_after(tokenizer, dialogue, num_shared, pair.tools) for dialogue in dialogues]
    if not all(side.targets.any() for side in sides):
        raise SkippedRow("no assistant answer to learn from")
    starts = [int(side.targets.argmax()) for side in sides]
    prompt = sides[0].tokens[: starts[0]]
    if not np.array_equal(prompt, sides[1].tokens[: starts[1]]):
        raise SkippedRow("the prompt becomes different tokens before the chosen and the rejected answer")
    if np.array_equal(sides[0].tokens, sides[1].tokens):
        raise SkippedRow("chosen and rejected are identical")
    if max(len(side) for side in sides) <= data.max_length:
        return sides
    reason = f"over-length: more than max_length {data.max_length} tokens"
    truncate = partial(_truncate_pair, sides, len(prompt), data, tokenizer.bos is not None)
    raise OverLengthRow(reason, sum(map(len, sides)), truncate)


def _truncate_pair(sides: list[Segment], prompt: int, data: DataOptions, has_bos: bool) -> list[Segment]:
    max_length, max_prompt = data.max_length, data.max_prompt_length
    sides = [_truncate(side, prompt, max_length, max_prompt, has_bos) for side in sides]
    if not all(side.targets.any() for side in sides):
        raise SkippedRow(f"max_prompt_length {max_prompt} leaves no room for an answer within max_length {max_length}")
    if np.array_equal(sides[0].tokens, sides[1].tokens):
        raise SkippedRow(f"chosen and rejected are identical within max_length {max_length} tokens")
    return sides


def _truncate(side: Segment, prompt: int, max_length: int, max_prompt: int, has_bos: bool) -> Segment:
    kept = np.arange(len(side))
    if prompt > max_prompt:
        first = min(int(has_bos), max_prompt - 1)  # BOS stays, unless it would be the whole prompt
        kept = np.r_[kept[:first], kept[prompt - max_prompt + first :]]
    kept = kept[:max_length]
    return Segment(side.tokens[kept], side.targets[kept])


def _shared_messages(chosen: list[Message], rejected: list[Message]) -> int:
    """How many messages both dialogues begin with; their last messages are not among them.

    Raises:
        SkippedRow: After these, one of them does not go on with an answer.
    """
    last = len(chosen) - 1
    shared = next((index for index in range(last) if chosen[index : index + 1] != rejected[index : index + 1]), last)
    if len(chosen) != len(rejected) or any(dialogue[shared]["role"] != "assistant" for dialogue in (chosen, rejected)):
        raise SkippedRow(
            "chosen and rejected do not share one prompt: expected dialogues of one length, equal up to an assistant answer"
        )
    return shared


def _answers_after(tokenizer: ChatTokenizer, dialogue: list[Message], shared: int, tools: list[Any] | None) -> Segment:
    """A dialogue whose answers after the first `shared` messages are targets."""
    before = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in dialogue[:shared]]
    messages, template = [*before, *dialogue[shared:]], tokenizer.template
    only_last = shared == len(dialogue) - 1
    if template.last_answer_only and not only_last:
        raise SkippedRow(
            "the chat template rewrites earlier turns, and chosen and rejected have several answers after the messages that "
            "they share"
        )
    if template.last_answer_only:
        return tokenizer.encode_last(template.render_last(messages, tools))
    return tokenizer.encode(template.render(messages, tools=tools))


def _score_columns(rows: Rows, row_indices: np.ndarray) -> dict[str, np.ndarray]:
    """`scores`, float64 [N, 2] of chosen and rejected, NaN where a row has none; nothing where no row has such numbers."""
    names = next((pair for pair in SCORE_COLUMNS if set(pair) <= rows.fields.keys()), ())
    columns = [[parse_score(value) for value in rows.values(name)] for name in names]
    scores = np.array(columns, np.float64).T[row_indices] if columns else np.array([])  # None becomes NaN
    return {} if np.isnan(scores).all() else {"scores": scores}


CONVERSATION = ExampleKind(
    name="Conversations",
    segments=("conversation",),
    formats=CONVERSATION_FORMATS,
    required=("messages",),
    tokenize=tokenize_conversation,
    split_turns=split_turns,
    used_by="`sft`",
)
PREFERENCE = ExampleKind(
    name="Preferences",
    segments=("chosen", "rejected"),
    formats=PREFERENCE_FORMATS,
    required=("chosen", "rejected"),
    tokenize=tokenize_preference,
    columns=_score_columns,
    column_types={"scores": (np.float64, 2)},
    used_by="`reference` and `dpo`",
)
