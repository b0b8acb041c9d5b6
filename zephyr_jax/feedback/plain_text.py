"""Text of models, fit to be read: by a person on a screen, or by another model."""

import re

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The same with a mark for each control character, for letters that turn the direction, and for what is no Unicode."""
    return _OBEYED.sub("\ufffd", text.replace("\r\n", "\n"))
