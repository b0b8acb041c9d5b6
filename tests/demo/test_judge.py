"""The demo's judge: what it counts, and that it is not the rater."""

import random

import pytest

from zephyr_jax.demo.corpus import rate, story
from zephyr_jax.demo.judge import score, win_rate

PROMPT = "Tell a story about a fox and a kite."
GOOD = story(random.Random(0), ["fox", "kite"])


def test_a_story_of_the_teacher_s_language_about_what_was_asked_is_perfect() -> None:
    for seed in range(50):
        assert score(PROMPT, story(random.Random(seed), ["fox", "kite"])) == 10.0


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ("", 1.0),
        (story(random.Random(0), ["bear", "drum"]), 10.0 - 3 - 1),  # nothing that was asked for, and other nouns
        (GOOD.rsplit(".", 2)[0] + ".", 10.0 - 1),  # without its closing sentence
        (GOOD + " " + GOOD, 10.0 - 1),  # closes twice
        (GOOD.replace("fox", "fox fox", 1), 10.0 - 1),  # one broken pair
        ("kite kite kite fox fox fox of of of of", 1.0 + 3 + 1),  # words that were asked for, in no language
    ],
)
def test_points(answer: str, points: float) -> None:
    assert score(PROMPT, answer) == points


def test_the_rater_is_another_rule() -> None:
    """It is content with the words and an ending, however broken the rest is."""
    broken = "fox kite the the the the " + GOOD[GOOD.rstrip(".").rindex(".") + 2 :]
    assert rate(["fox", "kite"], broken) == 5.0
    assert score(PROMPT, broken) < 4


def test_win_rates_of_known_scores() -> None:
    result = win_rate([1, 2, 3, 4], [2, 2, 2, 2])
    assert result.value == pytest.approx(62.5)
    assert result.error == pytest.approx(100 * 0.4787136 / 2)
