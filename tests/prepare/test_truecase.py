"""The case of sentences: what is repaired, what stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zephyr_jax.prepare.truecase import first_change, truecase


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Hello. how are you?", "Hello. How are you?"),
        ("hello there. how are you? i am fine. i'm glad!", "Hello there. How are you? I am fine. I'm glad!"),
        ("What is it? a cat, i think.", "What is it? A cat, I think."),
        ("Born in 2019. the end.", "Born in 2019. The end."),
        ("thanks! that helps.  what's next?", "Thanks! That helps.  What's next?"),
        ("When i don't know, i’ll ask.", "When I don't know, I’ll ask."),
    ],
)
def test_sentences_begin_with_a_capital(before: str, after: str) -> None:
    assert truecase(before) == after


@pytest.mark.parametrize(
    "text",
    [
        "Use e.g. apples, i.e. fruit, etc. and so on.",
        "Dr. who, Mr. smith vs. jones et al. and Fig. two.",
        "Wait... and then it fell.",
        '"Who is it?" she asked. "Me!" he said.',
        "1. apples 2. pears\n3. plums",
        "Select: i. yes; ii. no; iii. perhaps",
        "Run `x = 1. y` and then:\n```\nfoo. bar? baz. qux\n```",
        "See https://example.org/a. b or www.example.org. c",
        "J. s. bach and J. r. r. tolkien",
        "My iPhone. iPhone users like foo.bar. foo_bar is a name.",
        "All n! permutations and 27! steps.",
        "for i in range(3): print(i)",
        "import numpy as np\nnp.zeros(3)",
        "i = 0; while i < 3 { i++ }",
        "entails",
        "Do you watch Jeopardy! host and guests?",
        "",
        " \n",
    ],
)
def test_what_has_a_case_of_its_own_stays(text: str) -> None:
    """Law: code, addresses, abbreviations, lists, labels, quotations and ellipses are no starts of sentences."""
    assert truecase(text) == text


@given(st.text(alphabet=st.sampled_from("ab iI.?! \n`'\"x9(<>"), max_size=60))
def test_only_the_case_changes_and_once_is_enough(text: str) -> None:
    """Law: letters, length and everything but case stay; a second time changes nothing."""
    after = truecase(text)
    assert len(after) == len(text)
    assert after.casefold() == text.casefold()
    assert truecase(after) == after


def test_the_first_change_is_shown_with_its_surroundings() -> None:
    assert first_change("One. two. Six.", "One. Two. Six.", 4) == "ne. two.\n-> ne. Two."


def test_long_texts_take_no_more_than_their_length() -> None:
    """Law: no pattern looks at a long text again and again."""
    again = (".", "a", "`", "<", "i ", "(", "http://", "`a` well. you ", "a. ", "$$ ")
    for text in (piece * 100_000 for piece in again):
        assert len(truecase(text)) == len(text)
