"""The last answer of a conversation as the only target, under templates that rewrite earlier turns."""

from pathlib import Path
from typing import Any

import pytest

from tests.chat.thinking import ALWAYS_THINKS, CHAT, GEMMA_LIKE, PLAIN, THINKING, chat_with
from tests.tokenizers import CHATML
from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.errors import InputError

OFF = {"enable_thinking": False}
MARKED = THINKING.replace("{% if loop.index0 >", "{% generation %}{% if loop.index0 >").replace(
    "<|im_end|>\n{% elif", "<|im_end|>{% endgeneration %}\n{% elif"
)


def target(chat: ChatTokenizer, messages: list[Message], **settings: Any) -> str:
    """The text of the one target, which follows the generation prompt, in characters and in token ids."""
    rendered = chat.template.render_last(messages, **settings)
    ((start, end),) = rendered.spans
    tools = settings.get("tools")
    prompt = chat.template.render(messages[:-1], add_generation_prompt=True, tools=tools)
    assert rendered.text[:start] == prompt.text
    segment, prompt_ids = chat.encode_last(rendered), chat.encode(prompt).tokens
    assert segment.tokens[: len(prompt_ids)].tolist() == prompt_ids.tolist()
    assert segment.targets.tolist()[: len(prompt_ids)] == [False] * len(prompt_ids)
    assert segment.targets[len(prompt_ids)]
    return rendered.text[start:end]


@pytest.mark.parametrize(
    ("source", "args", "messages", "expected"),
    [
        (THINKING, {}, CHAT, "<think>\nA rose.\n</think>\n\nRed.<|im_end|>"),
        (THINKING, {}, PLAIN, "<think>\n\n</think>\n\nRed.<|im_end|>"),
        (THINKING, OFF, PLAIN, "Red.<|im_end|>"),
        (MARKED, {}, CHAT, "<think>\nA rose.\n</think>\n\nRed.<|im_end|>"),
        (ALWAYS_THINKS, {}, CHAT, "A rose.\n</think>\n\nRed.<|im_end|>"),
        (GEMMA_LIKE, {}, PLAIN, "Red.<end_of_turn>"),
        (CHATML, {}, PLAIN, " Red. <|im_end|>"),
    ],
)
def test_the_target_is_what_follows_the_generation_prompt(
    tmp_path: Path, source: str, args: dict[str, Any], messages: list[Message], expected: str
) -> None:
    """Law: the target is all that a model has to write after the generation prompt of the same arguments, end token included."""
    chat = chat_with(tmp_path, source, answers="last", args=args)
    assert target(chat, messages) == expected
    stop = chat.saved.backend.id_to_token(chat.stop_ids[0])
    assert len(chat.stop_ids) == 1
    assert expected.endswith(stop)


def test_earlier_reasoning_is_not_rendered(tmp_path: Path) -> None:
    """Law: the context of the last answer is what the template shows at inference, without the reasoning of earlier turns."""
    text = chat_with(tmp_path, THINKING, answers="last").template.render_last(CHAT).text
    assert "The sky." not in text
    assert "<|im_start|>assistant\nBlue<|im_end|>" in text


def test_templates_without_rewriting_have_the_span_that_all_answers_have(tmp_path: Path) -> None:
    """Law: where a template shows every answer, the last one has the same target alone as among all."""
    for source in (CHATML, GEMMA_LIKE):
        chat = chat_with(tmp_path, source)
        assert chat.template.render_last(PLAIN).spans == chat.template.render(PLAIN).spans[-1:]


@pytest.mark.parametrize(
    ("source", "args", "messages", "reason"),
    [
        (THINKING, OFF, CHAT, "does not begin with the generation prompt"),
        (CHATML, {}, CHAT, "does not render `reasoning_content`"),
        (CHATML, {}, [*PLAIN[:1], {**PLAIN[1], "reasoning_content": "Why?"}, *PLAIN[2:]], "does not render `reasoning"),
        (THINKING, {}, PLAIN[:3], "expected an assistant answer"),
    ],
)
def test_what_a_model_is_not_asked_for_is_refused(
    tmp_path: Path, source: str, args: dict[str, Any], messages: list[Message], reason: str
) -> None:
    """Law: an answer that does not follow the generation prompt, or reasoning that a template never shows, is refused."""
    chat = chat_with(tmp_path, source, answers="last", args=args)
    with pytest.raises(SkippedRow, match=reason):
        chat.template.render_last(messages)


def test_an_answer_with_weight_0_is_muted(tmp_path: Path) -> None:
    """Law: the span of an answer that is not a target is reported as muted."""
    rendered = chat_with(tmp_path, CHATML).template.render_last([*PLAIN[:-1], {**PLAIN[-1], "weight": 0}])
    assert rendered.spans == ()
    assert len(rendered.muted) == 1


@pytest.mark.parametrize("args", [{}, OFF])
def test_the_refusal_of_a_rewriting_template_names_the_setting(tmp_path: Path, args: dict[str, Any]) -> None:
    """Law: a template that fits the last answers only is refused for all answers, with the setting that fixes it."""
    with pytest.raises(InputError, match="set data.multi_turn to `last`"):
        chat_with(tmp_path, THINKING, args=args)
    assert chat_with(tmp_path, THINKING, args=args, answers="any").template.last_answer_only
    assert not chat_with(tmp_path, CHATML, answers="any").template.last_answer_only


def test_a_template_whose_prompt_never_fits_is_refused(tmp_path: Path) -> None:
    """Law: a template that counts the messages is refused for the last answer, too, and no setting is named."""
    source = "{{ messages | length }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    with pytest.raises(InputError) as error:
        chat_with(tmp_path, source)
    assert "data.multi_turn" not in str(error.value)
    with pytest.raises(InputError, match="does not begin with the generation prompt"):
        chat_with(tmp_path, source, answers="last")


# ---- tools ----

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
CALLED: list[Message] = [
    {"role": "user", "content": "Find it."},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": {"x": 1}}}],
    },
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
]


def test_calls_and_results_of_tools_are_context(tmp_path: Path) -> None:
    """Law: tools, calls and results are in the text before the target, and no part of it."""
    chat = chat_with(tmp_path, THINKING, answers="last")
    assert target(chat, CALLED, tools=TOOLS) == "<think>\n\n</think>\n\nIt is 42.<|im_end|>"
    text = chat.template.render_last(CALLED, TOOLS).text
    for part in ("tools: [{", '<|call|>find {"x": 1}<|im_end|>', "<result>42</result>"):
        assert part in text
    assert chat.template.render_last(CALLED[:2], TOOLS).spans == ()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            THINKING.replace("<|call|>{{ call.function.name }} {{ call.function.arguments | tojson }}", ""),
            "`tool_calls`",
        ),
        (THINKING.replace("{{ tools | tojson }}", "").replace("{% if tools %}", "{% if false %}"), "column `tools`"),
        (THINKING.replace("<result>{{ message.content }}", ""), "role tool"),
    ],
)
def test_tools_that_a_template_ignores_are_refused(tmp_path: Path, source: str, reason: str) -> None:
    """Law: no part of a conversation with tools is dropped silently when only its last answer is the target."""
    chat = chat_with(tmp_path, source, answers="last")
    with pytest.raises(SkippedRow, match=f"does not render.*{reason}"):
        chat.template.render_last(CALLED, TOOLS)
