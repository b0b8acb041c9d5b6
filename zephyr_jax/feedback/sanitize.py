"""Control characters out of model output, before a terminal or another model reads it."""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def sanitize(text: str) -> str:
    """Text with control characters, bidirectional overrides and lone surrogates replaced by U+FFFD."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))
