"""Reasoning and answer of a text in pieces: what is emitted does not depend on where the pieces end."""

import random

import pytest

from zephyr_jax.chat.reasoning import close_block, split_block
from zephyr_jax.generate.reasoning_stream import AnswerText, ReasoningStream

TEXTS = {
    "<think>\nThe sky.\n\nIt is blue. \n</think>\n\nBlue\n": ("The sky.\n\nIt is blue.", "Blue\n"),
    "\n <think></think>\n\nBlue": ("", "Blue"),
    "<think>a < b </ c</think>d</think>": ("a < b </ c", "d</think>"),
    "<think>\nThe s": ("The s", ""),
    "<think>The s</thi": ("The s</thi", ""),
    "  Blue <think>no</think>": ("", "  Blue <think>no</think>"),
    "<thin": ("", "<thin"),
    "": ("", ""),
    " \n": ("", " \n"),
}
OPENED = {
    "The sky.\n</think>\n\nBlue": ("The sky.", "Blue"),
    "\n<think>\nThe sky.</think>Blue": ("The sky.", "Blue"),
    "</think> Blue": ("", "Blue"),
    " The sky. ": ("The sky.", ""),
}


def streamed(pieces: list[str], opened: bool) -> tuple[str, str]:
    stream = ReasoningStream(opened)
    parts = [stream.feed(piece, last=number == len(pieces)) for number, piece in enumerate(pieces, 1)]
    texts = AnswerText(*("".join(column) for column in zip(*parts, strict=True)))
    return texts.reasoning, texts.content


@pytest.mark.parametrize(("opened", "texts"), [(False, TEXTS), (True, OPENED)])
def test_any_pieces_give_the_parts_of_the_whole(opened: bool, texts: dict[str, tuple[str, str]]) -> None:
    """Law: reasoning and answer are those of the whole text; a block that is closed is split as `split_block` does."""
    rng = random.Random(0)
    for text, expected in texts.items():
        assert streamed([text], opened) == expected
        assert streamed([*text, ""], opened) == expected
        for _ in range(20):
            cuts = sorted(rng.choices(range(len(text) + 1), k=3))
            pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
            assert streamed(pieces, opened) == expected
        if split_block(text, opened):
            assert split_block(text, opened) == expected


def test_text_is_emitted_as_soon_as_it_is_known() -> None:
    """Law: only whitespace, and what may be the beginning of a tag, waits for more text."""
    stream = ReasoningStream()
    assert [stream.feed(piece) for piece in ("<think>", "The", " sky.", "</", "think>\n", "Blue")] == [
        *(("", ""), ("The", ""), (" sky.", ""), ("", ""), ("", ""), ("", "Blue")),
    ]
    assert ReasoningStream().feed("Blue") == ("", "Blue")


def test_a_cut_block_is_closed() -> None:
    """Law: an answer that was cut inside its reasoning gets the closing tag; others stay."""
    assert split_block(close_block("<think>\nThe s", opened=False)) == ("The s", "")
    assert split_block(close_block("The s", opened=True), opened=True) == ("The s", "")
    for text in ("<think>a</think>b", "Blue"):
        assert close_block(text, opened=False) == text
