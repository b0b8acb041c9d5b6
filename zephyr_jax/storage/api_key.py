"""Keys: named by the environment variable that holds them, so that no card, log or record ever does."""

import json
import os
import re
from urllib.parse import quote, quote_plus

from zephyr_jax.errors import InputError

_SHORTEST = 8  # letters; a shorter key is a word that ordinary text may hold


def read_api_key(variable: str | None, setting: str) -> str | None:
    """The key in a variable, None where none is named.

    Raises:
        InputError: The variable is not set, or holds what no HTTP header can carry; the message names `setting` and the place
            in the key, and never holds the key.
    """
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):
        raise InputError(
            f"{setting} is no name of a variable, and may be a key, so it is not repeated here. Put the key into an environment "
            "variable and give that variable's name."
        )
    key = os.environ.get(variable)
    if not key:
        raise InputError(
            f"{setting} is {variable!r}, and the environment has no variable of that name, or an empty one. Set it to the "
            f"key: `export {variable}=...`."
        )
    odd = next((place for place, letter in enumerate(key) if not "!" <= letter <= "~"), None)
    if odd is not None:
        raise InputError(
            f"The key in {variable} ({setting}) has a {_kind(key[odd])} at character {odd + 1} of {len(key)}; expected printable "
            f"ASCII without spaces. Set it again without that: `export {variable}=\"$(tr -d '[:space:]' < FILE)\"`."
        )
    return key


def _kind(letter: str) -> str:
    if letter in "\r\n":
        return "line end"
    if letter.isspace():
        return "space"
    return "control character" if letter.isascii() else "letter beyond ASCII"


def redact(text: str, key: str | None) -> str:
    """Text without the key: as it is, and as `repr`, JSON and URLs write it. A key of few letters is left alone: it is a word."""
    if not key or len(key) < _SHORTEST:
        return text
    forms = {key, repr(key)[1:-1], json.dumps(key)[1:-1], quote(key), quote(key, safe=""), quote_plus(key)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "[key]")
    return text
