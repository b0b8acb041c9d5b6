"""Windows of a text that can be tokenized apart: from one special token to the next, both included.

A tokenizer cuts its text at added tokens before it does anything else, so the tokens between two of them depend on the window
alone. Windows that texts share, such as the prompt of a pair, are then tokenized once.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

from tokenizers import Tokenizer

from zephyr_jax.chat.answer_spans import Span


def windows(specials: Sequence[Span], length: int) -> list[Span]:
    """Ranges of a text of `length` characters, from the start of a special token (or the text) to the end of the next one."""
    bounds = [(0, 0), *specials, (length, length)]
    return [(start, end) for (start, _), (_, end) in pairwise(bounds)]


def is_separable(tokenizer: Tokenizer, reserved: Collection[str]) -> bool:
    """Whether windows between reserved tokens have the tokens of the whole text.

    Not if a reserved token is found by its neighbors (`single_word`), or shares characters with another added token that may
    stand across the edge of a window.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    by_text = {token.content: token for token in added}
    if not set(reserved) <= by_text.keys() or any(by_text[text].single_word for text in reserved):
        return False
    others = by_text.keys() - set(reserved)
    return not any(_overlap(one, other) for one in reserved for other in others)


def _overlap(one: str, other: str) -> bool:
    """Whether one text is in the other, or begins as the other ends."""
    if one in other or other in one:
        return True
    sizes = range(1, min(len(one), len(other)))
    return any(one[:size] == other[-size:] or other[:size] == one[-size:] for size in sizes)
