"""Rated answers as judges write them: UltraFeedback's rows, or plain ones with a `score` for each answer."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.prepare.dialogue import check_text

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_TOP_SCORE, _MAX_MEAN_OF_ONE, _MIN_MEAN_OF_TEN = 10, 2, 4
_MAX_ABS_SCORE = 1e100  # larger numbers have no histogram


@dataclass(frozen=True)
class RatedAnswer:
    """One answer with its scores, if any."""

    index: int
    """Its place in the row, from 0."""
    model: str
    text: str
    overall: float | None
    """The judge's overall score: `overall_score`, or `score` in plain rows."""
    mean: float | None
    """Mean of its ratings by aspect."""

    @property
    def was_one(self) -> bool:
        """Whether a top score must have been a 1 (see `score_answer`)."""
        return self.overall == _TOP_SCORE and self.mean is not None and self.mean <= _MAX_MEAN_OF_ONE


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with the one score that decides the pair."""

    index: int
    model: str
    text: str
    score: float


def parse_prompt(row: dict[str, Any]) -> str:
    """The question of a row. Raises SkippedRow."""
    prompt = row["instruction"] if row.get("instruction") is not None else row.get("prompt")
    if prompt is None:
        raise SkippedRow("it has neither `instruction` nor `prompt`")
    check_text(prompt, "the prompt")
    return str(prompt)


def row_source(row: dict[str, Any]) -> str:
    """The data set that a row's question comes from; empty if unknown."""
    return str(row.get("source") or row.get("dataset") or "")


def parse_completions(row: dict[str, Any]) -> list[Any]:
    """The raw answers of a row. Raises SkippedRow for fewer than two."""
    completions = row.get("completions")
    if not isinstance(completions, list):
        raise SkippedRow("it has no list `completions`")
    if len(completions) < 2:
        raise SkippedRow("it has fewer than two answers", f"{len(completions)} answers")
    return completions


def parse_answer(index: int, completion: Any) -> RatedAnswer:
    """Convert a raw answer. Raises SkippedRow for one without text."""
    if not isinstance(completion, dict):
        raise SkippedRow("an answer is not an object", repr(completion)[:80])
    text = completion.get("response")
    check_text(text, "an answer")
    overall, score = _parse_number(completion.get("overall_score")), _parse_number(completion.get("score"))
    ratings = _aspect_ratings(completion.get("annotations"))
    mean = sum(ratings) / len(ratings) if ratings else _parse_number(completion.get("fine-grained_score"))
    model = str(completion.get("model") or "")
    return RatedAnswer(index, model, str(text), overall=overall if overall is not None else score, mean=mean)


def score_answer(answer: RatedAnswer, score: Literal["overall", "mean"], repair: bool) -> tuple[ScoredAnswer, bool]:
    """The answer with its deciding score, and whether the score was repaired.

    Args:
        answer: A rated answer.
        score: Which score decides.
        repair: Undo a bug of UltraFeedback before 2024, which stored every overall score of 1 as 10: a 10 with a mean rating of
            at most 2 was a 1, above 4 it is a 10; between them only a judge could decide.

    Raises:
        SkippedRow: The answer has no such score, or one that cannot be repaired.
    """
    value = answer.overall if score == "overall" else answer.mean
    if value is None:
        raise SkippedRow(f"an answer has no {'overall score' if score == 'overall' else 'ratings'}", answer.text)
    repair = repair and score == "overall" and value == _TOP_SCORE and answer.mean is not None
    if repair and answer.mean is not None and _MAX_MEAN_OF_ONE < answer.mean <= _MIN_MEAN_OF_TEN:
        raise SkippedRow("an answer's 10 may have been a 1", f"mean rating {answer.mean:g}: {answer.text}")
    repaired = repair and answer.was_one
    return ScoredAnswer(answer.index, answer.model, answer.text, 1.0 if repaired else value), repaired


def _aspect_ratings(annotations: Any) -> list[float]:
    """The ratings of those aspects that have one."""
    aspects = [annotations.get(name) for name in ASPECTS] if isinstance(annotations, dict) else []
    ratings = [_parse_number(aspect.get("Rating")) for aspect in aspects if isinstance(aspect, dict)]
    return [rating for rating in ratings if rating is not None]


def _parse_number(value: Any) -> float | None:
    """A finite number or the text of one; None for all else, such as `N/A`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= _MAX_ABS_SCORE else None
