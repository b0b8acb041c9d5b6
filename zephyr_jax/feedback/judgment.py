"""Parses a judge's reply into ratings. Nothing is guessed: any other form is an error that the judge gets to read."""

import json
import re
from dataclasses import dataclass
from typing import Any

from zephyr_jax.clients.reasoning import strip_reasoning
from zephyr_jax.errors import truncate_repr
from zephyr_jax.feedback.aspects import Aspect
from zephyr_jax.feedback.sanitize import sanitize
from zephyr_jax.storage.strict_json import parse_json

_MAX_RATIONALE_CHARS = 4000
_CODE_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL)


class BadJudgment(ValueError):
    """A judgment that cannot be used; the judge gets the message."""


@dataclass(frozen=True)
class Rating:
    """The rating of one answer."""

    rating: float
    rationale: str


def parse_ratings(text: str, count: int, aspect: Aspect) -> list[Rating]:
    """The ratings of answers 1 to `count`, in this order.

    Args:
        text: The reply: one JSON object in the requested form; reasoning before it and a code fence around it are removed.
        count: Number of answers.
        aspect: Its scale bounds the ratings.

    Raises:
        BadJudgment: Any other text, and answers that are missing or rated twice.
    """
    body = strip_reasoning(text).strip()
    fenced = _CODE_FENCE.match(body)
    try:
        content = parse_json(fenced[1] if fenced else body)
    except json.JSONDecodeError as error:
        raise BadJudgment(f"it is not a single JSON object ({error.msg} at character {error.pos + 1})") from error
    except ValueError as error:
        raise BadJudgment(f"it cannot be read: {error}") from error
    if not isinstance(content, dict) or content.keys() != {"ratings"} or not isinstance(content["ratings"], list):
        raise BadJudgment('it is not an object with the one field "ratings", a list')
    ratings: dict[int, Rating] = {}
    for entry in content["ratings"]:
        number, rating = _parse_entry(entry, count, aspect)
        if number in ratings:
            raise BadJudgment(f"it rates answer {number} twice")
        ratings[number] = rating
    if missing := [number for number in range(1, count + 1) if number not in ratings]:
        raise BadJudgment(f"it does not rate answer {', '.join(map(str, missing))}")
    return [ratings[number] for number in range(1, count + 1)]


def _parse_entry(entry: Any, count: int, aspect: Aspect) -> tuple[int, Rating]:
    if not isinstance(entry, dict) or entry.keys() != {"answer", "rationale", "rating"}:
        raise BadJudgment('an entry is not an object with exactly "answer", "rationale" and "rating"')
    number, rationale, rating = entry["answer"], entry["rationale"], entry["rating"]
    if type(number) is not int or not 1 <= number <= count:
        raise BadJudgment(f"an entry has the answer {truncate_repr(number)}; they go from 1 to {count}")
    if not isinstance(rationale, str) or not rationale.strip():
        raise BadJudgment(f"answer {number} has no rationale")
    if type(rating) not in (int, float) or rating % 1 or not 1 <= rating <= aspect.max_rating:
        raise BadJudgment(
            f"answer {number} has the rating {truncate_repr(rating)}; it must be a whole number from 1 to {aspect.max_rating}"
        )
    return number, Rating(float(rating), sanitize(rationale.strip()[:_MAX_RATIONALE_CHARS]))
