"""API keys: settings name the environment variable that holds a key, so that no card, log or record holds it."""

import json
import os
import re
from urllib.parse import quote, quote_plus

from zephyr_jax.errors import InputError

_MIN_LENGTH = 8  # characters; a shorter key may be a word of ordinary text


def read_api_key(variable: str | None, setting: str) -> str | None:
    """Read the key from an environment variable; None for no variable.

    Raises:
        InputError: The variable is not set, or its value cannot be sent in an HTTP header. The message names `setting` and the
            character, and never holds the key.
    """
    if variable is None:
        return None
    if not re.fullmatch(r"[A-Za-z_]\w*", variable):
        raise InputError(
            f"{setting}: expected the name of an environment variable, got other text (not shown, as it may be a key). Put the "
            "key into an environment variable and give its name."
        )
    key = os.environ.get(variable)
    if not key:
        raise InputError(
            f"{setting} is {variable!r}, and that environment variable is unset or empty. Set it to the key: "
            f"`export {variable}=...`."
        )
    bad = next((index for index, character in enumerate(key) if not "!" <= character <= "~"), None)
    if bad is not None:
        raise InputError(
            f"The key in {variable} ({setting}) has a {_describe(key[bad])} at character {bad + 1} of {len(key)}; expected "
            f"printable ASCII without spaces. Set it again without that: `export {variable}=\"$(tr -d '[:space:]' < FILE)\"`."
        )
    return key


def _describe(character: str) -> str:
    if character in "\r\n":
        return "line end"
    if character.isspace():
        return "space"
    return "control character" if character.isascii() else "letter beyond ASCII"


def redact(text: str, key: str | None) -> str:
    """Replace the key in a text: verbatim, and as `repr`, JSON and URLs write it. A short key, which may be a word, stays."""
    if not key or len(key) < _MIN_LENGTH:
        return text
    forms = {key, repr(key)[1:-1], json.dumps(key)[1:-1], quote(key), quote(key, safe=""), quote_plus(key)}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "[key]")
    return text
