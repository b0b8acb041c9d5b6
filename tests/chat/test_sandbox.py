"""Chat templates from elsewhere: equal to transformers' rendering, and never without an end."""

import time
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from zephyr_jax.chat import template_budget
from zephyr_jax.chat.sandbox import render_sandboxed
from zephyr_jax.chat.template_budget import TemplateLimitError
from zephyr_jax.chat.template_source import BUILT_IN, built_in_source
from zephyr_jax.cli import main

CHAT = [
    {"role": "system", "content": "Be <b>good</b>"},
    {"role": "user", "content": " hi\n"},
    {"role": "assistant", "content": "yes {{x}}"},
    {"role": "user", "content": "é"},
    {"role": "assistant", "content": "ok"},
]
PLAIN = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
DIALECT = {
    "plain": PLAIN,
    "markers": "{% for m in messages %}{{ m.role ~ ': ' }}{% generation %}{{ m.content|trim }}{{ eos_token }}{% endgeneration %}"
    "{% endfor %}",
    "namespace": "{% set ns = namespace(n=0, s='') %}{% for m in messages if m.role == 'user' %}{% set ns.n = ns.n + 1 %}"
    "{% set ns.s = ns.s ~ m.content %}{% endfor %}{{ ns.n }} {{ ns.s }}",
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{{ loop.cycle('a', 'b') }}"
    "{% if loop.first %}{% continue %}{% endif %}{% if loop.index0 > 3 %}{% break %}{% endif %}{% else %}none{% endfor %}",
    "macro": "{% macro turn(m, end='.') %}[{{ m.role }}{{ end }}]{% endmacro %}"
    "{% for m in messages[1:] %}{{ turn(m) }}{% endfor %}",
    "json": "{{ messages|tojson }}{{ messages[0]|tojson(indent=2) }}{{ {'a': [1, (2, 3)]}|tojson }}",
    "filters": "{{ messages|map(attribute='role')|join(', ') }}{{ messages|selectattr('role', 'eq', 'user')|list|length }}"
    "{{ '%s-%d' % ('x', 3) }}{{ '{:>4}'.format('y') }}{{ 'a,b'.split(',') }}{{ 'ab' * 3 }}{{ 2 ** 5 }}{{ [1] + [2] }}",
    "set block": "{% set x %}{{ messages[0].content }}!{% endset %}{{ x|upper }}{{ tools is none }}{{ documents is defined }}",
    "recursive": "{% for x in [[1, []], [2, [[3, []]]]] recursive %}{{ x[0] }}{{ loop(x[1]) }}{% endfor %}",
    "refused": "{{ raise_exception('no system message') }}",
    "unsafe": "{{ ''.__class__.__mro__ }}",
    "unsafe call": "{{ raise_exception.__globals__ }}",
    "private": "{% set ns = namespace(_x=1) %}",
    "mutation": "{{ messages.append(1) }}",
    "syntax": "{% for %}",
    "range": "{% for i in range(9999999) %}{% endfor %}",
}


def theirs(source: str, messages: Any, variables: dict[str, Any]) -> Any:
    texts, ranges = render_jinja_template(
        [messages], chat_template=source, return_assistant_tokens_mask=True, **variables
    )
    return texts[0], [tuple(each) for each in ranges[0]]


def ours(source: str, messages: Any, variables: dict[str, Any]) -> Any:
    return render_sandboxed(source, messages, **variables)


def outcome(render: Any, *arguments: Any) -> Any:
    """The result, or that there is none."""
    try:
        return render(*arguments)
    except Exception:
        return "refused"


@pytest.mark.parametrize("source", [*DIALECT.values(), *map(built_in_source, BUILT_IN)], ids=[*DIALECT, *BUILT_IN])
def test_templates_render_as_in_transformers(source: str) -> None:
    """Text and ranges of generation blocks, or a refusal by both."""
    for messages, asks in ((CHAT, False), (CHAT[:4], True), (CHAT[1:], False), (CHAT[1:2], True)):
        variables = {"add_generation_prompt": asks, "bos_token": "<s>", "eos_token": "</s>"}
        assert outcome(ours, source, messages, variables) == outcome(theirs, source, messages, variables)


def doubling(operation: str, start: str = "'aa'") -> str:
    """Sixty rounds that each double a value."""
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{operation}{{% endfor %}}{{{{ ns.x }}}}"


BOMBS = {
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "three loops": "{% for i in range(9999) %}{% for j in range(9999) %}"
    "{% for k in range(9999) %}{{ i }}{% endfor %}{% endfor %}{% endfor %}",
    "huge range": "{% for i in range(10**9) %}{% endfor %}",
    "exponential macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "product": "{{ 'a' * 10**11 }}",
    "list product": "{{ [1] * 10**11 }}",
    "power": "{{ 9**(9**9) }}",
    "squares": doubling("{% set ns.x = ns.x * ns.x %}", "7"),
    "sum": doubling("{% set ns.x = ns.x + ns.x %}"),
    "join": doubling("{% set ns.x = ns.x ~ ns.x %}"),
    "block": doubling("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
    "list sum": doubling("{% set ns.x = ns.x + ns.x %}", "[1]"),
    "shared list": doubling("{% set ns.x = [ns.x, ns.x] %}", "[1]"),
    "shared tuple": doubling("{% set ns.x = (ns.x, ns.x) %}", "(1,)"),
    "shared dict": doubling("{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "[1]"),
    "shared call": doubling("{% set ns.x = dict(a=ns.x, b=ns.x) %}", "[1]"),
    "replace": "{{ ('a' * 10**6).replace('a', 'b' * 10**6) }}",
    "replace filter": "{{ ('a' * 10**6)|replace('a', 'b' * 10**6) }}",
    "center": "{{ 'a'|center(10**11) }}",
    "ljust": "{{ 'a'.ljust(10**11) }}",
    "format": "{{ '{:>1000000000000}'.format(1) }}",
    "percent": "{{ '%1000000000000d' % 1 }}",
    "width": "{{ '{:>{w}}'.format(1, w=10**11) }}",
    "slices": "{{ [1]|slice(10**9)|list }}",
    "joined": "{{ (['a' * 10**6] * 10**6)|join }}",
    "indent": "{{ ('\n' * 10**6)|indent(10**6) }}",
    "text": "{% for i in range(99999) %}{% for j in range(99999) %}" + "A" * 1000 + "{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("source", BOMBS.values(), ids=BOMBS)
def test_templates_without_an_end_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their time, or before they take the memory."""
    monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(template_budget, "MAX_CHARACTERS", 2**24)
    begun = time.monotonic()
    with pytest.raises((TemplateLimitError, RecursionError, OverflowError)):
        render_sandboxed(PLAIN + source, CHAT, eos_token="</s>", add_generation_prompt=False)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("name", ["nested loops", "exponential macro", "sum", "product"])
def test_commands_end_on_such_a_template(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Exit 2 and one clear sentence."""
    monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.2)
    path = tmp_path / "bomb.jinja"
    path.write_text(PLAIN + BOMBS[name])
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", str(tiny_model), "--prompts", "Hi", "--chat_template", str(path)])
    assert ended.value.code == 2
    output = capsys.readouterr().err
    assert "bomb.jinja` cannot be used" in output
    assert "it " in output
    assert "Traceback" not in output


def test_long_conversations_have_room() -> None:
    """A thousand long turns stay far below the limits."""
    messages = [{"role": ("user", "assistant")[turn % 2], "content": "word " * 800} for turn in range(1000)]
    begun = time.monotonic()
    text, _ = render_sandboxed(PLAIN, messages, eos_token="</s>", add_generation_prompt=True)
    assert len(text) > 4_000_000
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_and_tools_are_passed_as_in_transformers(name: str) -> None:
    source = "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}|{{ m.reasoning }}{% endfor %}{{ tools|tojson }}"
    messages, tools = (
        [{"role": "assistant", "content": "a", name: "hm"}],
        [{"type": "function", "function": {"name": "f"}}],
    )
    texts, _ = render_jinja_template([messages], tools=tools, chat_template=source)
    assert render_sandboxed(source, messages, tools, add_generation_prompt=False)[0] == texts[0]
