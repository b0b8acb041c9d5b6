"""Rated answers as judges leave them: UltraFeedback's rows, or plain ones with a `score` for each answer."""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from zephyr_jax.chat.message import SkippedRow
from zephyr_jax.prepare.dialogue import check_text

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")
_BEST, _LOW, _HIGH = 10, 2, 4
_LARGEST = 1e100


@dataclass(frozen=True)
class Answer:
    """One answer with what the judge said, where it said something."""

    number: int
    """Its place in the row, from 0."""
    model: str
    text: str
    overall: float | None
    """The judge's score of the whole: `overall_score`, or `score` in plain rows."""
    mean: float | None
    """Mean of its ratings by aspect."""

    @property
    def was_one(self) -> bool:
        """Whether a top score must have been a 1 (see `settle`)."""
        return self.overall == _BEST and self.mean is not None and self.mean <= _LOW


@dataclass(frozen=True)
class Scored:
    """An answer with the one score that counts."""

    number: int
    model: str
    text: str
    score: float


def prompt_of(row: dict[str, Any]) -> str:
    """The question of a row. Raises SkippedRow."""
    found = [row[name] for name in ("instruction", "prompt") if row.get(name) is not None]
    if not found:
        raise SkippedRow("it has neither `instruction` nor `prompt`")
    check_text(found[0], "the prompt")
    return found[0]


def source_of(row: dict[str, Any]) -> str:
    """The data set that a row's question comes from; empty where it says none."""
    return str(row.get("source") or row.get("dataset") or "")


def completions_of(row: dict[str, Any]) -> list[Any]:
    """The raw answers of a row. Raises SkippedRow where there is no list of two."""
    if not isinstance(row.get("completions"), list):
        raise SkippedRow("it has no list `completions`")
    if len(row["completions"]) < 2:
        raise SkippedRow("it has fewer than two answers", f"{len(row['completions'])} answers")
    return row["completions"]


def answer_of(number: int, raw: Any) -> Answer:
    """One raw answer. Raises SkippedRow when it holds no text."""
    if not isinstance(raw, dict):
        raise SkippedRow("an answer is no object", repr(raw)[:80])
    check_text(raw.get("response"), "an answer")
    overall = _number(raw.get("overall_score"))
    ratings = list(_ratings(raw.get("annotations")))
    mean = sum(ratings) / len(ratings) if ratings else _number(raw.get("fine-grained_score"))
    score = overall if overall is not None else _number(raw.get("score"))
    return Answer(number, str(raw.get("model") or ""), raw["response"], score, mean)


def settle(answer: Answer, score: Literal["overall", "mean"], repair: bool) -> tuple[Scored, bool]:
    """An answer with its score, and whether that was put right.

    `repair` undoes a bug of UltraFeedback before 2024, where every overall score of 1 was stored as 10: a 10 whose mean
    rating is at most 2 was a 1, above 4 it is a 10, and between them a judge must look again, which nobody does here.
    Raises SkippedRow then, and where there is no score.
    """
    value = answer.overall if score == "overall" else answer.mean
    if value is None:
        raise SkippedRow(f"an answer has no {'overall score' if score == 'overall' else 'ratings'}", answer.text)
    mended = score == "overall" and repair and answer.was_one
    if score == "overall" and repair and value == _BEST and answer.mean is not None and _LOW < answer.mean <= _HIGH:
        raise SkippedRow("an answer's 10 may have been a 1", f"mean rating {answer.mean:g}: {answer.text}")
    return Scored(answer.number, answer.model, answer.text, 1.0 if mended else value), mended


def _ratings(annotations: Any) -> Iterator[float]:
    """The ratings of those aspects that have one."""
    for name in ASPECTS:
        each = annotations.get(name) if isinstance(annotations, dict) else None
        rating = _number(each.get("Rating") if isinstance(each, dict) else None)
        if rating is not None:
            yield rating


def _number(value: Any) -> float | None:
    """A number that can be drawn, written as one or as text; nothing for all else, such as `N/A`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) <= _LARGEST else None
