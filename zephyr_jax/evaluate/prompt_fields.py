"""Prompt templates of judges, with `{field}` placeholders."""

import re


def fill_template(template: str, fields: dict[str, str]) -> str:
    """Replace each `{field}` once; braces in the values, and placeholders without a value, stay."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)
