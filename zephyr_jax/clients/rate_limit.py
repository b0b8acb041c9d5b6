"""How long an endpoint asks clients to wait, from its response headers."""

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MIN_TIMESTAMP = 1e9
"""A number this large is a Unix time, not a duration."""


def retry_delay(headers: Mapping[str, str], rejected: bool) -> float:
    """Seconds to wait before the next request; 0 without a limit.

    Args:
        headers: Response headers: `retry-after(-ms)` and `x-ratelimit-{remaining,reset}(-requests,-tokens)`.
        rejected: Whether this request was rate limited (status 429 or 503). Otherwise only exhausted limits count.
    """
    retry_after = _retry_after(headers) if rejected else None
    if retry_after is not None:
        return retry_after
    kinds = ("-requests", "-tokens", "")
    resets = {kind: _duration(headers.get(f"x-ratelimit-reset{kind}", "")) for kind in kinds}
    known = {kind: seconds for kind, seconds in resets.items() if seconds is not None}
    exhausted = [
        seconds for kind, seconds in known.items() if headers.get(f"x-ratelimit-remaining{kind}", "").strip() == "0"
    ]
    if exhausted:
        return max(exhausted)
    return min(known.values(), default=0.0) if rejected else 0.0


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
    """Seconds of `1m30.5s`, `20ms`, `12`, or until a Unix time in seconds or milliseconds."""
    text = text.strip()
    if re.fullmatch(r"\d{1,15}(\.\d*)?", text):
        number = float(text)
        if number >= _MIN_TIMESTAMP:
            return max(number / (1000 if number >= 1000 * _MIN_TIMESTAMP else 1) - time.time(), 0.0)
        return number
    parts = re.findall(r"(\d{1,9}(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(map("".join, parts)) != text:
        return None
    return math.fsum(float(number) * _UNITS[unit] for number, unit in parts)
