"""Odd judgments: each is understood exactly or refused with a reason."""

import json
from typing import Any

import pytest

from zephyr_jax.feedback.aspects import ASPECTS, OVERALL
from zephyr_jax.feedback.judgment import BadJudgment, parse_ratings


def of(*ratings: Any, **more: Any) -> str:
    entries = [{"answer": place, "rationale": "because", "rating": rating} for place, rating in enumerate(ratings, 1)]
    return json.dumps({"ratings": entries, **more})


SOUND = {
    "plain": (of(3, 5), [3, 5]),
    "another order": (json.dumps({"ratings": json.loads(of(3, 5))["ratings"][::-1]}), [3, 5]),
    "a fence": (f"```json\n{of(1, 2)}\n```", [1, 2]),
    "a bare fence": (f"```\n{of(1, 2)}\n```\n", [1, 2]),
    "thoughts": (f"<think>Is {of(5, 5)} right?</think>\n\n{of(1, 2)}", [1, 2]),
    "spread out": (json.dumps(json.loads(of(4, 2)), indent=4), [4, 2]),
    "a whole number with a point": (of(4.0, 2), [4, 2]),
    "a rationale that quotes the form": (of(4, 2).replace("because", 'it says \\"rating\\": 5}]}'), [4, 2]),
    "a rationale that closes a mark": (of(4, 2).replace("because", "</answer 1> Rating: 5"), [4, 2]),
}
ODD = {
    "nothing": ("", "not a single JSON object"),
    "prose": ("Both are fine.", "not a single JSON object"),
    "prose before": (f"Here you are: {of(3, 5)}", "not a single JSON object"),
    "prose after": (f"{of(3, 5)} I hope this helps!", "not a single JSON object"),
    "two of them": (of(3, 5) + of(1, 1), "not a single JSON object"),
    "cut off": (of(3, 5)[:-9], "not a single JSON object"),
    "single quotes": (of(3, 5).replace('"', "'"), "not a single JSON object"),
    "lines of another form": ("Answer 1\nRating: 5\nAnswer 2\nRating: 5", "not a single JSON object"),
    "a list": ("[]", "one field"),
    "a number": ("5", "one field"),
    "null": ("null", "one field"),
    "another field besides": (of(3, 5, note="x"), "one field"),
    "ratings by name": ('{"ratings": {"1": 3, "2": 5}}', "one field"),
    "ratings twice": ('{"ratings": [], "ratings": [1]}', "two values"),
    "a rating twice": (of(3, 5).replace('"rating": 3', '"rating": 3, "rating": 5'), "two values"),
    "one too few": (of(3), "does not rate answer 2"),
    "none": ('{"ratings": []}', "does not rate answer 1, 2"),
    "one too many": (of(3, 5, 4), "has the answer 3; they go from 1 to 2"),
    "one twice": (of(3, 5).replace('"answer": 2', '"answer": 1'), "rates answer 1 twice"),
    "zero": (of(0, 5), "has the rating 0"),
    "six": (of(6, 5), "has the rating 6"),
    "a half": (of(3.5, 5), "has the rating 3.5"),
    "a word": (of("good", 5), "has the rating 'good'"),
    "a digit in quotes": (of("4", 5), "has the rating '4'"),
    "out of five": (of("4/5", 5), "has the rating '4/5'"),
    "nothing as a rating": (of(None, 5), "has the rating None"),
    "true": (of(True, 5), "has the rating True"),
    "not a number": (of(float("nan"), 5), "has the rating nan"),
    "endless": (of(float("inf"), 5), "has the rating inf"),
    "negative": (of(-3, 5), "has the rating -3"),
    "answers by letters": (of(3, 5).replace('"answer": 1', '"answer": "A"'), "has the answer 'A'"),
    "answers from zero": (of(3, 5).replace('"answer": 1', '"answer": 0'), "has the answer 0"),
    "no rationale": (of(3, 5).replace("because", " "), "has no rationale"),
    "rationale left out": ('{"ratings": [{"answer": 1, "rating": 3}]}', "an entry is not"),
    "an entry that is none": ('{"ratings": [3, 5]}', "an entry is not"),
    "deep": ("[" * 100_000, "nested too deep"),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_judgments(name: str) -> None:
    text, ratings = SOUND[name]
    assert [each.rating for each in parse_ratings(text, 2, ASPECTS[0])] == ratings


@pytest.mark.parametrize("name", ODD)
def test_odd_judgments(name: str) -> None:
    text, words = ODD[name]
    with pytest.raises(BadJudgment, match=words):
        parse_ratings(text, 2, ASPECTS[0])


def test_the_overall_scale_is_ten() -> None:
    assert [each.rating for each in parse_ratings(of(10, 7), 2, OVERALL)] == [10, 7]
    with pytest.raises(BadJudgment, match="from 1 to 10"):
        parse_ratings(of(11, 7), 2, OVERALL)
    assert {len(each.scale) for each in ASPECTS} == {5}


def test_rationales_are_fit_to_be_read() -> None:
    """Control characters and turned directions are marked, and it does not go on for ever."""
    rating = parse_ratings(of(3, 5).replace("because", "a\\u001b[31m\\u202e" + "x" * 9000), 2, ASPECTS[0])[0]
    assert rating.rationale.startswith("a\ufffd[31m\ufffdx")
    assert len(rating.rationale) == 4000
