"""Judge prompts with `{field}` placeholders."""

import re


def fill_fields(template: str, fields: dict[str, str]) -> str:
    """The template with its placeholders replaced; unknown placeholders, and braces in the values, stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), template)
