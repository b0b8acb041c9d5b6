"""What a judge wrote -> ratings, or the reason why there are none. Nothing is guessed."""

import json
import re
from dataclasses import dataclass
from typing import Any

from zephyr_jax.clients.reasoning import strip_reasoning
from zephyr_jax.errors import truncate_repr
from zephyr_jax.feedback.aspects import Aspect
from zephyr_jax.feedback.plain_text import plain
from zephyr_jax.storage.strict_json import parse_json

_LONGEST_RATIONALE = 4000
_FENCE = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL)


class BadJudgment(ValueError):
    """A judgment that cannot be used; the message tells the judge why."""


@dataclass(frozen=True)
class Rating:
    """One answer's."""

    rating: float
    rationale: str


def ratings_in(text: str, count: int, aspect: Aspect) -> list[Rating]:
    """Ratings of answers 1 to `count`, in this order. Raises BadJudgment unless the text is the JSON that was asked for, about
    each answer once, and nothing else (thoughts before it and a fence around it apart)."""
    body = strip_reasoning(text).strip()
    fenced = _FENCE.match(body)
    try:
        content = parse_json(fenced[1] if fenced else body)
    except json.JSONDecodeError as error:
        raise BadJudgment(f"it is no single JSON object ({error.msg} at character {error.pos + 1})") from error
    except ValueError as error:
        raise BadJudgment(f"it cannot be read: {error}") from error
    if not isinstance(content, dict) or content.keys() != {"ratings"} or not isinstance(content["ratings"], list):
        raise BadJudgment('it is not an object with the one field "ratings", a list')
    found: dict[int, Rating] = {}
    for entry in content["ratings"]:
        number, rating = _entry(entry, count, aspect)
        if number in found:
            raise BadJudgment(f"it rates answer {number} twice")
        found[number] = rating
    missing = [number for number in range(1, count + 1) if number not in found]
    if missing:
        raise BadJudgment(f"it does not rate answer {', '.join(map(str, missing))}")
    return [found[number] for number in range(1, count + 1)]


def _entry(entry: Any, count: int, aspect: Aspect) -> tuple[int, Rating]:
    if not isinstance(entry, dict) or entry.keys() != {"answer", "rationale", "rating"}:
        raise BadJudgment('an entry is not an object with exactly "answer", "rationale" and "rating"')
    number, rationale, rating = entry["answer"], entry["rationale"], entry["rating"]
    if type(number) is not int or not 1 <= number <= count:
        raise BadJudgment(f"an entry has the answer {truncate_repr(number)}; they go from 1 to {count}")
    if not isinstance(rationale, str) or not rationale.strip():
        raise BadJudgment(f"answer {number} has no rationale")
    if type(rating) not in (int, float) or rating % 1 or not 1 <= rating <= aspect.highest:
        raise BadJudgment(
            f"answer {number} has the rating {truncate_repr(rating)}; it must be a whole number from 1 to {aspect.highest}"
        )
    return number, Rating(float(rating), plain(rationale.strip()[:_LONGEST_RATIONALE]))
