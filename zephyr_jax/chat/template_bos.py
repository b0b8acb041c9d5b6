"""Forms of a chat template that write BOS in front of what the template itself writes.

Training puts BOS there where the tokenizer has one; programs that render a template and encode its text add none.
"""

_MARK = "{# BOS as in training #}"
_FIRST = f"{_MARK}{{{{ bos_token }}}}"
_SPACED = f"{_MARK}{{{{ bos_token + ' ' }}}}"
_LINE = "{% if true %}{% endif %}\n"
"""Writes nothing and puts what follows at the beginning of a line, where whitespace before a block is dropped."""
_CAPTURE, _CAPTURED = f"{_MARK}{{% set chat_text %}}\n", "{% endset %}"
_MISSING = "{{ '' if chat_text.startswith(bos_token) else bos_token }}{{ chat_text }}"
_MISSING_SPACED = (
    "{{ '' if chat_text.startswith(bos_token) else bos_token }}{{ '' if chat_text.startswith((bos_token, ' ')) else ' ' }}"
    "{{ chat_text }}"
)


def forms_with_bos(source: str, unmarked: str) -> list[str]:
    """Jinja sources that write BOS: always, or where the template writes none.

    Each comes a second time with a space after BOS, for tokenizers that put one before the first word of a text only.

    Args:
        source: The template.
        unmarked: The same without generation markers, which do not work in a block that is captured.
    """
    start = _LINE if source[:1].isspace() else ""
    captured = _CAPTURE + unmarked.removesuffix("\n") + _CAPTURED  # as at the end of a template
    return [_FIRST + start + source, _SPACED + start + source, captured + _MISSING, captured + _MISSING_SPACED]


def without_bos(source: str) -> str:
    """The template inside a source that `forms_with_bos` returned; any other source as it is."""
    for start in (_FIRST, _SPACED):
        if source.startswith(start):
            return source.removeprefix(start).removeprefix(_LINE)
    for end in (_CAPTURED + _MISSING, _CAPTURED + _MISSING_SPACED):
        if source.startswith(_CAPTURE) and source.endswith(end):
            return source.removeprefix(_CAPTURE).removesuffix(end)
    return source
