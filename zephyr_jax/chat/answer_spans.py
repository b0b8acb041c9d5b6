"""Spans of answers in the text of a template without generation markers, in time linear in the conversation.

A twin of the conversation has a sentinel in place of each content; it shows where the template puts which message and
what it writes between them. The text must be that frame filled with the contents, each as it is or stripped.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

_OPEN, _CLOSE = "\ue001", "\ue002"
_SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")

type Span = tuple[int, int]


def sentinel(index: int) -> str:
    """Text of private-use characters that stands for the content of message `index`."""
    return f"{_OPEN}{index}{_CLOSE}"


def content_spans(text: str, twin: str, contents: Sequence[str]) -> dict[int, Span] | None:
    """Message -> the range of its content in `text`, for messages that are shown once.

    Args:
        text: The rendered conversation.
        twin: The same conversation rendered with `sentinel(index)` as the content of each message.
        contents: The contents, by message.

    Returns:
        None where `text` is not the frame of `twin` with the contents, each as it is or stripped.
    """
    sentinels = list(_SENTINEL.finditer(twin))
    frame = [
        twin[start:end]
        for start, end in pairwise([0, *(edge for match in sentinels for edge in match.span()), len(twin)])
    ]
    spans: dict[int, list[Span]] = {}
    cursor = 0
    for number, match in enumerate(sentinels):
        literal, index = frame[2 * number], int(match[1])
        start = cursor + len(literal)
        if not text.startswith(literal, cursor) or index >= len(contents):
            return None
        after = frame[2 * number + 2]
        content = _rendered_content(text, start, contents[index], after)
        if content is None:
            return None
        cursor = start + len(content)
        spans.setdefault(index, []).append((start, cursor))
    if text[cursor:] != frame[-1]:
        return None
    return {index: matches[0] for index, matches in spans.items() if len(matches) == 1}


def _rendered_content(text: str, start: int, content: str, after: str) -> str | None:
    """The content as rendered at `start` (as it is or stripped), followed by the literal `after`; None if it is not there."""
    for rendered in (content, content.strip(), content.lstrip(), content.rstrip()):
        if text.startswith(rendered, start) and text.startswith(after, start + len(rendered)):
            return rendered
    return None


def prefix_counts(answers: Sequence[int]) -> list[int]:
    """The last of `answers` (indices of messages), and the first, second, fourth, eighth, ...

    The messages before each of these are a prefix at which a template is checked; together they are at most three times
    as many as there are in the conversation.
    """
    counts = {len(answers)} | {1 << power for power in range(len(answers).bit_length())}
    return [answers[count - 1] for count in sorted(counts) if 0 < count <= len(answers)]


def consecutive_end(text: str, specials: Sequence[Span]) -> int:
    """End of the first special token and of those that follow it with nothing but whitespace between."""
    end = specials[0][1]
    for start, stop in specials[1:]:
        if text[end:start].strip():
            break
        end = stop
    return end


def joined_spans(text: str, spans: Sequence[Sequence[int]], answers: int) -> tuple[Span, ...]:
    """Spans in order; where there are more than answers, those with nothing but whitespace between them are one.

    Some templates mark an answer and its end token in two pieces.
    """
    if len(spans) <= answers:
        return tuple((start, end) for start, end in spans)
    joined: list[Span] = []
    for start, end in spans:
        if joined and not text[joined[-1][1] : start].strip():
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)
