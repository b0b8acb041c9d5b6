"""Text that is given out is whole, in order, and the same however tokens come."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.generate.text_stream import TextStream

TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=60) | st.sampled_from(
    ["naïve café 東京 🎉🎉 end", "  two  spaces  ", "\n\nlines\n", "👩‍👩‍👧 family"]
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(str(tiny_model))


def stream(tokenizer: PreTrainedTokenizerBase, ids: list[int], cuts: list[int], stops: list[str]) -> list[str]:
    """The pieces of text when tokens come in groups."""
    text, pieces, at = TextStream(tokenizer, (2,), stops), [], 0
    for size in [*cuts, len(ids)]:
        pieces.append(text.feed(ids[at : at + size], last=at + size >= len(ids)))
        at += size
        if at >= len(ids):
            break
    return pieces


@settings(deadline=None, max_examples=200)
@given(text=TEXTS, cuts=st.lists(st.integers(1, 5), max_size=80))
def test_pieces_join_to_the_whole(tokenizer: PreTrainedTokenizerBase, text: str, cuts: list[int]) -> None:
    """Law: whatever the groups, the pieces are the text that decoding all tokens at once gives; the end token is not in it."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    whole = str(tokenizer.decode(ids)) if ids else ""
    assert "".join(stream(tokenizer, [*ids, 2], cuts, [])) == whole


@settings(deadline=None, max_examples=200)
@given(
    text=TEXTS,
    stop=st.sampled_from(["end", "é", "\n", "  ", "🎉", "ab"]),
    cuts=st.lists(st.integers(1, 5), max_size=80),
)
def test_a_stop_string_cuts_wherever_it_falls(
    tokenizer: PreTrainedTokenizerBase, text: str, stop: str, cuts: list[int]
) -> None:
    """Law: everything before the first stop string, and nothing of it, comes out; also where it spans pieces."""
    ids = tokenizer(f"x{text}end", add_special_tokens=False).input_ids
    whole = str(tokenizer.decode(ids))
    found = whole.find(stop)
    assert "".join(stream(tokenizer, ids, cuts, [stop])) == (whole[:found] if found >= 0 else whole)


def test_no_half_character_is_shown(tokenizer: PreTrainedTokenizerBase) -> None:
    """A character of several tokens waits for the last of them."""
    ids = tokenizer("日本 🎉", add_special_tokens=False).input_ids
    pieces = stream(tokenizer, ids, [1] * len(ids), [])
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == str(tokenizer.decode(ids))
