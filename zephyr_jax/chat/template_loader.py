"""The chat template that a setting names, checked before a row is rendered with it."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from typing import Literal

from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.message import Message, SkippedRow
from zephyr_jax.chat.template import ChatTemplate, RenderedChat
from zephyr_jax.chat.template_args import check_args, with_args
from zephyr_jax.chat.template_date import check_nothing_random, freeze_date, now, prints_date
from zephyr_jax.chat.template_probe import PROBES, probe_conversations, prompts_of
from zephyr_jax.chat.template_source import BUILT_IN, built_in_source, own_template, reserved_tokens, template_source
from zephyr_jax.config.sections import TemplateValue
from zephyr_jax.errors import InputError, truncate_repr

_REPEATS = 4
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")


type Answers = Literal["all", "last", "any"]
"""Answers of a conversation that are targets: all, the last one, or all where the template allows that and else the last."""


def load_template(
    choice: str | None,
    tokenizer: PreTrainedTokenizerBase,
    day: date | None = None,
    training: bool = True,
    args: Mapping[str, TemplateValue] | None = None,
    answers: Answers = "all",
) -> ChatTemplate:
    """The template that `data.chat_template` names, with the date frozen where it prints one.

    Args:
        choice: `zephyr`, `zephyr-no-system`, `tokenizer`, the path of a Jinja file, or None: the tokenizer's own template
            where it has one, else `zephyr`.
        tokenizer: The tokenizer whose special tokens the template may write.
        day: The day to print; default: today.
        training: Whether the template must show where answers are. A template that only writes prompts need not.
        args: Values of variables that the template reads; they become a part of its source.
        answers: Which answers the template must show for training.

    Raises:
        InputError: If the tokenizer has no such template, the file cannot be read, the template renders differently each
            time, does not read an argument, or probe conversations show no clear start and end of answers.
    """
    specials = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    if "eos_token" not in specials:
        raise InputError(
            f"The tokenizer {tokenizer.name_or_path} has no end token. A chat model must learn to stop: set eos_token "
            "in its tokenizer_config.json."
        )
    name = choice or ("tokenizer" if own_template(tokenizer) else "zephyr")
    source = template_source(name, tokenizer)
    if name == "tokenizer":
        name = next((built for built in BUILT_IN if built_in_source(built) == source), name)
    day = (day or now().date()) if prints_date(source) else None
    frozen = freeze_date(source, day, name) if day else source
    check_nothing_random(frozen, name)
    if args:
        check_args(args, frozen, name, specials)
        frozen = with_args(frozen, args)
    template = ChatTemplate(frozen, tuple(specials.items()), reserved_tokens(tokenizer, frozen), name, day)
    _check_repeatable(template)
    return _probed(template, name, answers) if training else template


def _check_repeatable(template: ChatTemplate) -> None:
    """Raise InputError where a template renders the same prompt differently, or cannot render any."""
    try:
        texts = {template.render(PROBES[0][:1], add_generation_prompt=True).text for _ in range(_REPEATS)}
    except SkippedRow as error:
        raise InputError(
            f"The chat template `{template.name}` cannot be used: {error}. Expected a template that renders one user "
            "message with a generation prompt. Mark what the assistant writes with {% generation %} and "
            "{% endgeneration %}, end token included, or use `zephyr`."
        ) from error
    if len(texts) > 1 or _ADDRESS.search(min(texts)):
        raise InputError(
            f"The chat template `{template.name}` is random: expected the same text for the same conversation each time, got "
            f"{truncate_repr(min(texts))} and {truncate_repr(max(texts))}. Take out what changes, or choose another with "
            "`data.chat_template`."
        )


def _probed(template: ChatTemplate, choice: str, answers: Answers) -> ChatTemplate:
    """The template, with `last_answer_only` set where it must be. Raises InputError where it cannot be used for training."""
    if answers == "last":
        try:
            _probe_last(template, choice)
        except InputError as error:
            raise _refused(template, error) from error.__cause__
        return replace(template, last_answer_only=True)
    try:
        _probe(template, choice)
    except InputError as error:
        try:
            _probe_last(template, choice)
        except InputError:
            raise _refused(template, error) from error.__cause__
        if answers == "any":
            return replace(template, last_answer_only=True)
        raise InputError(
            f"{error} Or train on each answer as the last of its conversation, as the model is asked: set data.multi_turn to "
            "`last`."
        ) from error
    return template


def _probe(template: ChatTemplate, choice: str) -> None:
    """Raise InputError unless each answer of the probe conversations is found and stands right after its prompt."""
    for probe in probe_conversations():
        try:
            rendered = template.render(probe)
        except SkippedRow as error:
            if probe[0]["role"] == "system":
                continue  # some templates refuse system messages; their rows are then refused one by one
            raise _unusable(choice, error) from error
        _check_spans(template, choice, rendered, [m["content"] for m in probe if m["role"] == "assistant"])
        for prompt, (start, _) in zip(prompts_of(probe), rendered.spans, strict=True):
            _check_prompt(choice, template.render(prompt, add_generation_prompt=True).text, rendered.text, start)


def _probe_last(template: ChatTemplate, choice: str) -> None:
    """As `_probe`, of the last answer only: with reasoning where the template cannot render it without."""
    for probe in probe_conversations():
        try:
            rendered = _rendered_last(template, probe)
        except SkippedRow as error:
            if probe[0]["role"] == "system":
                continue
            raise _unusable(choice, error) from error
        _check_spans(template, choice, rendered, [probe[-1]["content"]])


def _rendered_last(template: ChatTemplate, probe: list[Message]) -> RenderedChat:
    try:
        return template.render_last(probe)
    except SkippedRow as error:
        try:
            return template.render_last([*probe[:-1], {**probe[-1], "reasoning_content": "reasoning"}])
        except SkippedRow:
            raise error from None


def _unusable(choice: str, error: SkippedRow) -> InputError:
    return InputError(
        f"The chat template `{choice}` cannot be used for training: {error}. Mark what the assistant writes with "
        "{% generation %} and {% endgeneration %}, end token included, or use `zephyr`."
    )


def _refused(template: ChatTemplate, error: InputError) -> InputError:
    """The error of a template that neither setting of `data.multi_turn` accepts, with what else to use."""
    if not template.opens_reasoning:
        return error
    return InputError(
        f"{error} Or, as its generation prompt opens `<think>`, use a template that renders `reasoning_content` of the last "
        "answer after it, and set data.multi_turn to `last`; for DeepSeek-R1-Distill: "
        "configs/deepseek-r1-distill/chat_template.jinja."
    )


def _check_spans(template: ChatTemplate, choice: str, rendered: RenderedChat, answers: list[str]) -> None:
    marked = [rendered.text[start:end] for start, end in rendered.spans]
    stops = [any(text.endswith(token) for token in template.reserved) for text in marked]
    shows = [answer in text for answer, text in zip(answers, marked, strict=False)]
    if len(marked) != len(answers) or not all(stops + shows):
        count = "one answer" if len(answers) == 1 else "two answers"
        raise InputError(
            f"The chat template `{choice}` marks {marked!r} as what the assistant wrote in a probe conversation of {count}. "
            "Each span must hold one answer and the special token that ends it: move the generation markers."
        )


def _check_prompt(choice: str, prompt: str, text: str, start: int) -> None:
    """Raise InputError unless the prompt begins the training text and reaches the answer, which starts at `start`."""
    if not text.startswith(prompt):
        at = next(i for i, (one, other) in enumerate(zip(prompt, f"{text}\0", strict=False)) if one != other)
    elif text[len(prompt) : start].strip():
        at = len(prompt)
    else:
        return
    raise InputError(
        f"The chat template `{choice}` cannot be used for training: the model would be asked with a prompt that it never "
        f"saw. Expected the generation prompt to begin the training text up to the answer, got a prompt that ends in "
        f"{truncate_repr(prompt[-40:])} and a text that goes on with {truncate_repr(text[at : at + 40])} where the prompt has "
        f"{truncate_repr(prompt[at : at + 40])}. Write the same header in both places of the template."
    )
