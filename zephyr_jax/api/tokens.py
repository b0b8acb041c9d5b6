"""Rows to tokens and target masks, as training sees them: `render` and `tokenize`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from zephyr_jax.api.loading import RowTokenizer
from zephyr_jax.chat.message import Message, OverLengthRow, SkippedRow
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.data.segments import ExampleKind
from zephyr_jax.errors import InputError
from zephyr_jax.methods.registry import method_of_columns


@dataclass(frozen=True)
class TokenizedSegment:
    """One sequence of a row with its target mask; `tokenize` makes it."""

    name: str
    """`conversation`, or `chosen` and `rejected` of a pair."""
    tokens: np.ndarray
    """int32 [L]: token ids."""
    targets: np.ndarray
    """bool [L]: whether a token counts in the loss; `targets[0]` is always false."""
    pieces: tuple[tuple[str, bool], ...]
    """The text in pieces from left to right, each with whether its tokens are targets."""

    def marked(self, start: str = "[", end: str = "]") -> str:
        """The text with each piece of targets between `start` and `end`."""
        return "".join(f"{start}{text}{end}" if is_target else text for text, is_target in self.pieces)


def render(tokenizer: RowTokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """Render messages with the chat template.

    Args:
        tokenizer: Of `load_tokenizer` or `load_model(...).tokenizer`.
        messages: `{"role": ..., "content": ...}` each: [system,] user, assistant, user, ...
        add_generation_prompt: Whether the header that asks for an answer comes last.

    Returns:
        The text; BOS is added as a token where the template does not write it.

    Raises:
        InputError: The messages are malformed, or the template refuses them.
    """
    try:
        return tokenizer.chat.template.text(list(messages), add_generation_prompt).text
    except SkippedRow as error:
        raise InputError(f"The messages cannot be rendered: {error}. Fix the messages.") from error


def tokenize(tokenizer: RowTokenizer, row: Mapping[str, Any]) -> tuple[TokenizedSegment, ...]:
    """Turn a row into the tokens and targets that training sees.

    Args:
        tokenizer: Of `load_tokenizer` or `load_model(...).tokenizer`.
        row: A conversation or a preference pair in any row format, such as `{"messages": [...]}` or
            `{"prompt": ..., "chosen": ..., "rejected": ...}`.

    Returns:
        One segment for a conversation, two (chosen, rejected) for a pair.

    Raises:
        InputError: The row cannot be used, or is over-long where `data.on_bad_row` is not `truncate`.
    """
    kind = kind_of_row(row)
    segments, _ = segments_of_row(tokenizer, kind, row, "The row")
    return tuple(
        TokenizedSegment(name, segment.tokens, segment.targets, tuple(_pieces(tokenizer, segment)))
        for name, segment in zip(kind.segments, segments, strict=True)
    )


def kind_of_row(row: Mapping[str, Any]) -> ExampleKind:
    """Conversation or preference pair, by the columns of a row."""
    return method_of_columns(row.keys()).examples


def segments_of_row(
    tokenizer: RowTokenizer, kind: ExampleKind, row: Mapping[str, Any], location: str
) -> tuple[list[Segment], bool]:
    """The segments of a row, and whether they are truncated. Raises InputError, which names the row by `location`."""
    data = tokenizer.data
    try:
        try:
            return kind.tokenize(tokenizer.chat, data, row), False
        except OverLengthRow as error:
            if data.on_bad_row != "truncate":
                raise
            return error.truncate(), True
    except SkippedRow as error:
        raise InputError(f"{location} cannot be used: {error}; it has {sorted(row)}. Fix or remove it.") from error


def _pieces(tokenizer: RowTokenizer, segment: Segment) -> Iterator[tuple[str, bool]]:
    """Text and target flag of consecutive tokens with one flag.

    A piece is what its tokens add to the text before them: decoded alone, the first word of a piece would lose its space.
    """
    end, before = 0, ""
    for is_target, run in groupby(segment.targets.tolist()):
        start, end = end, end + sum(1 for _ in run)
        text = _decode(tokenizer, segment.tokens[:end])
        added = text.removeprefix(before) if text.startswith(before) else _decode(tokenizer, segment.tokens[start:end])
        yield added, is_target
        before = text


def _decode(tokenizer: RowTokenizer, tokens: np.ndarray) -> str:
    return str(tokenizer.chat.saved.backend.decode(tokens.tolist(), skip_special_tokens=False))
