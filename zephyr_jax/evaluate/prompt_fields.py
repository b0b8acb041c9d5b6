"""Judges' prompts with `{blanks}`."""

import re


def filled(template: str, fields: dict[str, str]) -> str:
    """The template with its fields; braces in what is filled in, and blanks that nobody fills, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: fields.get(found[1], found[0]), template)
