"""Template arguments: written into a template's source, so that it renders with their values everywhere."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils.chat_template_utils import render_jinja_template

from tests.chat.thinking import PLAIN, THINKING, chat_with, thinking_tokenizer
from zephyr_jax.chat.exported_template import exported_template
from zephyr_jax.chat.sandbox import render_sandboxed
from zephyr_jax.chat.template_args import split_args, template_variables, with_args
from zephyr_jax.chat.template_source import own_template
from zephyr_jax.errors import InputError

SCALARS = st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
OFF = {"enable_thinking": False}


def rendered(source: str, **variables: Any) -> str:
    return render_sandboxed(source, PLAIN[:1], add_generation_prompt=True, **variables)[0]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), SCALARS | st.lists(SCALARS), max_size=3))
def test_arguments_are_found_again_and_leave_the_source_as_it_was(args: dict[str, Any]) -> None:
    """Law: `split_args` gives back what `with_args` wrote, for every value."""
    assert split_args(with_args(THINKING, args)) == (args, THINKING)


@given(value=SCALARS | st.lists(SCALARS))
def test_a_template_reads_the_very_value(value: Any) -> None:
    """Law: a value in the source is the value that a caller would pass."""
    source = "{{ value | tojson }} {{ value is true }} {{ value is string }}"
    assert rendered(with_args(source, {"value": value})) == rendered(source, value=value)


@pytest.mark.parametrize(
    "source", ["\n{% if x %}a{% endif %}", "  {% if x %}a{% endif %}\n", "\n\n x {{ x }}", "{{ x }}"]
)
def test_text_at_the_start_of_a_template_stays(source: str) -> None:
    """Law: whitespace at the start is rendered as without arguments in the source."""
    assert rendered(with_args(source, {"x": 1})) == rendered(source, x=1)


def test_a_caller_and_a_later_argument_override_an_argument() -> None:
    """Law: what a caller passes comes first, then the newest argument."""
    source = with_args(THINKING, OFF)
    assert rendered(source) == rendered(THINKING, enable_thinking=False) != rendered(THINKING)
    assert rendered(source, enable_thinking=True) == rendered(THINKING)
    assert with_args(source, {"enable_thinking": True}) == with_args(THINKING, {"enable_thinking": True})


def test_variables_are_those_that_a_caller_may_set() -> None:
    """Law: the renderer's own names and what the template assigns without a test are not variables."""
    assert template_variables(THINKING) == ["enable_thinking"]
    assert template_variables("{% if a is not defined %}{% set a = 1 %}{% endif %}{{ a }}{{ b }}") == ["a", "b"]
    assert template_variables("{% for m in messages %}{% if m %}{% set c = m %}{% endif %}{{ c }}{% endfor %}") == []
    assert (
        template_variables("{{ bos_token }}{{ image_token }}{{ tools }}{{ range(2) }}{{ raise_exception('x') }}") == []
    )


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"enable_thinkin": False}, "it reads `enable_thinking`. Did you mean `data.template_args.enable_thinking`"),
        ({"tools": "x"}, "one that the renderer sets"),
        ({"add_generation_prompt": True}, "one that the renderer sets"),
        ({"bos_token": "x"}, "one that the renderer sets"),
        ({"enable_thinking": float("nan")}, "finite number"),
        ({"enable_thinking": {"a": 1}}, "expected a boolean"),
    ],
)
def test_an_argument_that_has_no_effect_is_an_error(tmp_path: Path, args: dict[str, Any], error: str) -> None:
    """Law: names that the template never reads and names of the renderer are refused, and values of other types."""
    with pytest.raises(InputError, match=error):
        chat_with(tmp_path, THINKING, args=args, answers="last")


def test_template_args_are_a_part_of_the_fingerprint(tmp_path: Path) -> None:
    """Law: the cache of tokens has separate entries for what two values of an argument render."""
    prints = {
        chat_with(tmp_path, THINKING, args=args, answers="last").fingerprint
        for args in ({}, OFF, {"enable_thinking": True})
    }
    assert len(prints) == 3


@pytest.mark.parametrize("args", [{}, OFF])
@pytest.mark.parametrize("start", ["", "\n  "])
def test_an_exported_template_renders_equal_text_without_arguments(
    tmp_path: Path, args: dict[str, Any], start: str
) -> None:
    """Law: transformers and plain Jinja render the exported template, without arguments, to the text of training."""
    chat = chat_with(tmp_path, start + THINKING, args=args, answers="last")
    exported = exported_template(chat)
    specials = dict(chat.template.special_tokens)
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for messages, asks in ((PLAIN, False), (PLAIN[:3], True), (PLAIN[:1], True)):
        ours = chat.template.text(messages, asks).text
        theirs = render_jinja_template([messages], chat_template=exported, add_generation_prompt=asks, **specials)[0][0]
        plain = environment.from_string(exported).render(messages=messages, add_generation_prompt=asks, **specials)
        assert theirs == plain
        assert theirs.removeprefix(specials["bos_token"]) == ours
    tokenizer = thinking_tokenizer()
    tokenizer.chat_template = exported
    assert split_args(own_template(tokenizer) or "")[0] == args
