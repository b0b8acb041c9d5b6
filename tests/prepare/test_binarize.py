"""Which answer is chosen and which rejected, on rows made worked out in full."""

from collections import Counter

import pytest

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.prepare.binarize import PairRule, RejectedChoice, unique_texts
from zephyr_jax.prepare.rated import RatedAnswer, ScoredAnswer, parse_answer, score_answer


def scored(*scores: float) -> list[ScoredAnswer]:
    return [ScoredAnswer(number, f"m{number}", f"answer {number}", score) for number, score in enumerate(scores)]


def picked(rule: PairRule, *scores: float, prompt: str = "?") -> tuple[int, int]:
    chosen, rejected = rule.select_pair(prompt, scored(*scores))
    return chosen.index, rejected.index


def why(rule: PairRule, *scores: float) -> str:
    with pytest.raises(SkippedRow) as refused:
        rule.select_pair("?", scored(*scores))
    return refused.value.reason


@pytest.mark.parametrize(("rejected", "expected"), [("lowest", (2, 1)), ("second", (2, 3))])
def test_the_lowest_and_the_second(rejected: RejectedChoice, expected: tuple[int, int]) -> None:
    assert picked(PairRule(rejected), 3, 1, 9, 7) == expected


def test_the_first_of_the_best_is_chosen() -> None:
    assert picked(PairRule("lowest"), 3, 9, 9, 1) == (1, 3)
    assert picked(PairRule("second"), 3, 9, 9, 1) == (1, 2)


def test_any_of_the_others_may_be_rejected() -> None:
    """Law: over many prompts each of the others is drawn about as often, the chosen one never."""
    drawn = Counter(picked(PairRule(), 3, 1, 9, 7, prompt=f"question {n}")[1] for n in range(3000))
    assert set(drawn) == {0, 1, 3}
    assert min(drawn.values()) > 900


def test_the_draw_is_the_seeds_and_the_prompts() -> None:
    """Law: the same prompt and seed draw the same answer; another seed draws again."""
    prompts = [f"question {n}" for n in range(200)]
    one, again, other = (
        [picked(PairRule(seed=seed), 3, 1, 9, 7, prompt=prompt) for prompt in prompts] for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_the_draw_is_that_of_the_prompts_words() -> None:
    """Law: case, width and spacing of a prompt change nothing, as they do not make another prompt."""
    for n in range(50):
        one, other = (picked(PairRule(), 3, 1, 9, 7, prompt=prompt) for prompt in (f"question {n}", f" QUESTION\n {n}"))
        assert one == other


def test_ties() -> None:
    """Law: kept by default; else only lower answers, or lower by the margin, can be rejected."""
    assert picked(PairRule("second"), 9, 9, 1) == (0, 1)
    assert picked(PairRule("second", min_margin=0), 9, 9, 1) == (0, 2)
    assert picked(PairRule("second", min_margin=3), 9, 7, 6, 1) == (0, 2)
    assert {picked(PairRule(min_margin=0), 9, 9, 9, 8, prompt=str(n))[1] for n in range(50)} == {3}
    assert "low enough" in why(PairRule(min_margin=0), 5, 5, 5)
    assert "low enough" in why(PairRule(min_margin=3), 5, 4, 3)
    assert picked(PairRule("lowest"), 5, 5) == (0, 1)


def test_fewer_than_two_answers_make_no_pair() -> None:
    assert "fewer than two" in why(PairRule())
    assert "fewer than two" in why(PairRule(), 5)


def test_each_text_is_there_once_with_its_best_score() -> None:
    """Law: of equal texts the best rated stays (the first of equals), and the others are given back."""
    answers = [
        ScoredAnswer(0, "a", "x", 1),
        ScoredAnswer(1, "b", "y", 5),
        ScoredAnswer(2, "c", "x", 4),
        ScoredAnswer(3, "d", "x", 4),
    ]
    kept, copies = unique_texts(answers)
    assert [each.index for each in kept] == [1, 2]
    assert [each.index for each in copies] == [0, 3]


# ---- the revision of 2023 ----


def test_the_draw_of_2023() -> None:
    """Law: a generator that starts from 42 in each row draws the first answer, or the third where the first is chosen."""
    rule = PairRule("revision-2023")
    assert picked(rule, 1, 2, 9, 4) == (2, 0)
    assert picked(rule, 1, 2, 3, 9) == (3, 0)
    assert picked(rule, 9, 2, 3, 4) == (0, 2)
    assert picked(PairRule("revision-2023", seed=7), 9, 2, 3, 4) == (0, 2)


def test_2023_knows_answers_by_score_text_and_model() -> None:
    """Law: a copy of the chosen answer is passed over; when every answer is one, there is no pair, and no endless search."""
    rule = PairRule("revision-2023")
    copy = ScoredAnswer(2, "m0", "answer 0", 9)
    assert rule.select_pair("?", [*scored(9, 2), copy, ScoredAnswer(3, "m3", "answer 3", 1)])[1].index == 1
    with pytest.raises(SkippedRow, match="same text"):
        rule.select_pair("?", [ScoredAnswer(n, "m", "x", 9) for n in range(4)])
    with pytest.raises(SkippedRow, match="same text"):
        rule.select_pair("?", [ScoredAnswer(0, "a", "x", 1), ScoredAnswer(1, "b", "x", 9)])


# ---- scores ----


def answer(overall: float | None, mean: float | None) -> RatedAnswer:
    return RatedAnswer(0, "m", "text", overall, mean)


@pytest.mark.parametrize(
    ("overall", "mean", "score", "mended"),
    [(10, 1.5, 1, True), (10, 2, 1, True), (10, 4.25, 10, False), (9, 1, 9, False), (10, None, 10, False)],
)
def test_the_published_repair(overall: float, mean: float | None, score: float, mended: bool) -> None:
    """Law: a 10 with a mean rating of at most 2 was a 1, above 4 it is a 10, and no other score is touched."""
    found, was_mended = score_answer(answer(overall, mean), "overall", repair=True)
    assert (found.score, was_mended) == (score, mended)
    assert score_answer(answer(overall, mean), "overall", repair=False)[0].score == overall


@pytest.mark.parametrize("mean", [2.25, 3, 4])
def test_what_a_judge_must_see_again_is_skipped(mean: float) -> None:
    with pytest.raises(SkippedRow, match="may have been a 1"):
        score_answer(answer(10, mean), "overall", repair=True)
    assert score_answer(answer(10, mean), "mean", repair=True)[0].score == mean


def test_scores_are_numbers_however_they_are_written() -> None:
    """Law: the mean is that of the ratings there are; N/A, NaN and truth values are none."""
    annotations = {
        "instruction_following": {"Rating": "4"},
        "honesty": {"Rating": "N/A"},
        "truthfulness": {"Rating": 1},
        "helpfulness": {},
        "length": {"Rating": "5"},
    }
    found = parse_answer(0, {"response": "x", "overall_score": "7.5", "annotations": annotations})
    assert (found.overall, found.mean) == (7.5, 2.5)
    for nothing in (None, "N/A", float("nan"), float("inf"), -1e308, True, [], {}, "1" * 400):
        bare = parse_answer(0, {"response": "x", "overall_score": nothing, "annotations": nothing})
        assert (bare.overall, bare.mean) == (None, None)
        with pytest.raises(SkippedRow, match="no overall score"):
            score_answer(bare, "overall", repair=True)
        with pytest.raises(SkippedRow, match="no ratings"):
            score_answer(bare, "mean", repair=True)
    assert parse_answer(0, {"response": "x", "score": 0, "fine-grained_score": 3.5}) == RatedAnswer(
        0, "", "x", 0.0, 3.5
    )
