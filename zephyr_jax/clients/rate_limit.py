"""How long an endpoint wants us to wait, as its headers say."""

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPOCH = 1e9  # a number this large is a date, not a duration


def wait_of(headers: Mapping[str, str], refused: bool) -> float:
    """Seconds to wait before the next request, 0 where nothing is said. `refused`: this one came too early (429, 503)."""
    told = _retry_after(headers) if refused else None
    if told is not None:
        return told
    resets: dict[str, float] = {}
    for kind in ("-requests", "-tokens", ""):
        seconds = _duration(headers.get(f"x-ratelimit-reset{kind}", ""))
        if seconds is not None:
            resets[kind] = seconds
    empty = [
        seconds for kind, seconds in resets.items() if headers.get(f"x-ratelimit-remaining{kind}", "").strip() == "0"
    ]
    if empty:
        return max(empty)
    return min(resets.values(), default=0.0) if refused else 0.0


def _retry_after(headers: Mapping[str, str]) -> float | None:
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,12}(\.\d*)?", value):
            return float(value) * unit
    try:
        return max(parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, ValueError, TypeError, OverflowError, IndexError):
        return None


def _duration(text: str) -> float | None:
    """Seconds of `1m30.5s`, `20ms`, `12`, or until a date that is given as a number."""
    text = text.strip()
    if re.fullmatch(r"\d{1,15}(\.\d*)?", text):
        number = float(text)
        if number >= _EPOCH:
            return max(number / (1000 if number >= 1000 * _EPOCH else 1) - time.time(), 0.0)
        return number
    parts = re.findall(r"(\d{1,9}(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return math.fsum(float(number) * _UNITS[unit] for number, unit in parts)
