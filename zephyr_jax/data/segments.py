"""Rows to token segments: one segment of a conversation, two (chosen and rejected) of a preference pair."""

from dataclasses import replace
from typing import Any

import numpy as np

from zephyr_jax.chat.message import Message, OverLengthRow, SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer, Segment
from zephyr_jax.data.rows import to_conversation, to_preference


def conversation(
    tokenizer: ChatTokenizer,
    row: dict[str, Any],
    targets: str,
    max_length: int,
    cut: bool,
    contradictions: bool = False,
) -> list[Segment]:
    """One segment of a row in one of `CONVERSATION_FORMATS`. Raises SkippedRow with the reason when it cannot be used."""
    chat = to_conversation(row, contradictions)
    rendered = tokenizer.template.render(chat.messages, tools=chat.tools)
    segment = tokenizer.encode(rendered)
    if not segment.targets.any():
        raise SkippedRow("no assistant answer to learn from")
    if targets == "all":
        segment = Segment(segment.tokens, np.arange(len(segment)) > 0)
        if rendered.muted:
            segment.targets[tokenizer.encode(replace(rendered, spans=rendered.muted)).targets] = False
    if len(segment) > max_length:
        if not cut:
            raise OverLengthRow(f"over-length: more than max_length {max_length} tokens", len(segment))
        segment = segment.head(max_length)
    if not segment.targets.any():
        raise SkippedRow(f"no target token within the first {max_length} tokens")
    return [segment]


def preference(
    tokenizer: ChatTokenizer,
    row: dict[str, Any],
    max_length: int,
    max_prompt: int,
    cut: bool,
    contradictions: bool = False,
) -> list[Segment]:
    """Chosen and rejected segments of a row; only answers after the messages that both sides share count.

    An over-long pair is cut as the reference DPO code does: first the prompt to its last `max_prompt` tokens (BOS
    stays), then each answer to the tokens that still fit, from its start. Raises SkippedRow.
    """
    pair = to_preference(row, contradictions)
    dialogues = (pair.chosen, pair.rejected)
    shared = _shared_messages(*dialogues)
    sides = [_answers_after(tokenizer, dialogue, shared, pair.tools) for dialogue in dialogues]
    if not all(side.targets.any() for side in sides):
        raise SkippedRow("no assistant answer to learn from")
    starts = [int(side.targets.argmax()) for side in sides]
    prompt = sides[0].tokens[: starts[0]]
    if not np.array_equal(prompt, sides[1].tokens[: starts[1]]):
        raise SkippedRow("the prompt becomes different tokens before the chosen and the rejected answer")
    if np.array_equal(sides[0].tokens, sides[1].tokens):
        raise SkippedRow("chosen and rejected are identical")
    longest = max(len(side) for side in sides)
    if longest <= max_length:
        return sides
    if not cut:
        raise OverLengthRow(f"over-length: more than max_length {max_length} tokens", sum(map(len, sides)))
    sides = [_cut(side, len(prompt), max_length, max_prompt, tokenizer.bos is not None) for side in sides]
    if not all(side.targets.any() for side in sides):
        raise SkippedRow(f"max_prompt_length {max_prompt} leaves no room for an answer within max_length {max_length}")
    if np.array_equal(sides[0].tokens, sides[1].tokens):
        raise SkippedRow(f"chosen and rejected are identical within max_length {max_length} tokens")
    return sides


def _cut(side: Segment, prompt: int, max_length: int, max_prompt: int, has_bos: bool) -> Segment:
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
    return tokenizer.encode(tokenizer.template.render([*before, *dialogue[shared:]], tools=tools))
