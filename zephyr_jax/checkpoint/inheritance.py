"""Settings that a command inherits from the run or checkpoint it continues or evaluates, resolved once at its start.

The chat template, with its rule for system messages, its date and its end tokens, and the tokenizer, which decides BOS, are
files of the model's folder. Settings are in the run's record; `PROPERTIES` lists the inherited ones.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.template_args import split_args
from zephyr_jax.chat.template_date import now
from zephyr_jax.chat.template_loader import Answers
from zephyr_jax.chat.tokenizer import ChatTokenizer, load_chat_tokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.opened import OpenedModel
from zephyr_jax.checkpoint.provenance import Record, chain
from zephyr_jax.checkpoint.resolve import check_vocabulary
from zephyr_jax.checkpoint.template_choice import TemplateChoice, explain_template, log_on_host0
from zephyr_jax.config.models import EvaluateConfig
from zephyr_jax.config.sections import DataOptions, ForwardOptions, TemplateValue, is_unset, settled
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.validation import validate
from zephyr_jax.errors import InputError
from zephyr_jax.methods.registry import METHODS
from zephyr_jax.parallel.hosts import broadcast_from_host0

logger = logging.getLogger(__name__)

EVALUATION = frozenset({"evaluate", "evaluate preferences"})


@dataclass(frozen=True)
class Property:
    """A setting that later commands inherit from an earlier run where it is unset."""

    section: str
    """`model` or `data`."""
    name: str
    methods: frozenset[str] | None = None
    """Training methods whose runs pass it on; None: all."""
    commands: frozenset[str] | None = EVALUATION
    """Commands that take the run's value; None: every command."""


PROPERTIES = (
    Property("model", "compute_dtype", commands=None),
    Property("data", "max_length"),
    Property("data", "on_bad_row"),
)
"""Besides the chat template, its date, BOS and the rule for system messages, which come with the model's files."""


@dataclass(frozen=True)
class Resolved[M: ForwardOptions]:
    """The settings of a command with every inherited value filled in, and the tokenizer with its chat template."""

    model: M
    data: DataOptions
    chat: ChatTokenizer


def resolve[M: ForwardOptions](
    command: str,
    source: ModelSource,
    model: M,
    data: DataOptions,
    resumed: Mapping[str, Any] | None = None,
    tables: Sequence[tuple[date, str]] = (),
) -> Resolved[M]:
    """Fill in what `command` inherits and load the tokenizer with its chat template.

    Args:
        command: `sft`, `reference`, `dpo`, `evaluate` or `evaluate preferences`.
        source: The model that the command starts from or looks at.
        model: Model settings; those that are unset take the run's value.
        data: Data settings; those that are unset take the run's value.
        resumed: The settings of the run that is resumed; they come first.
        tables: Day and fingerprint of reference tables whose template prints a date.

    Raises:
        InputError: If the template cannot be used, or differs from the one that the run was trained with.
    """
    earlier = run_of(source.record)
    model, notes = _inherit(command, "model", model, earlier, resumed)
    given = data
    data, more = _inherit(command, "data", data, earlier, resumed)
    if command in EVALUATION:
        data = _fit_lengths(data, unset_prompt=is_unset(given.max_prompt_length))
    tokenizer = load_tokenizer(str(source.folder))
    saved = _section(resumed, "data")
    template = data.chat_template or saved.get("chat_template")
    data = replace(data, template_args=data.template_args or dict(saved.get("template_args") or {}))
    data = replace(data, allow_template_change=data.allow_template_change or bool(saved.get("allow_template_change")))
    day = _day(data.template_date, saved, _section(earlier.get("config"), "data"))
    chat = _chat(command, source, tokenizer, replace(data, chat_template=template), day, tables)
    check_vocabulary(source.model_config, tokenizer, source.asked, chat.template)
    _warn(source.asked, [*notes, *more])
    printed = chat.template.day.isoformat() if chat.template.day else None
    data = replace(
        data,
        chat_template=template or chat.template.name,
        template_date=printed,
        template_args=split_args(chat.template.source)[0],
    )
    return Resolved(model, data, chat)


def resolve_settings[C: SftConfig | EvaluateConfig](
    command: str,
    config: C,
    opened: OpenedModel,
    resumed: Mapping[str, Any] | None = None,
    tables: Sequence[tuple[date, str]] = (),
) -> tuple[C, OpenedModel, ChatTokenizer]:
    """The settings with every inherited value, checked; the model under these; and the tokenizer. Errors as `resolve`.

    Args:
        command: Name of the command.
        config: Its settings.
        opened: The model that the settings name.
        resumed: Settings of the run that is resumed.
        tables: Dates that reference tables recorded, as in `resolve`.
    """
    resolved = resolve(command, opened.source, config.model, config.data, resumed, tables)
    sections: dict[str, Any] = {"model": resolved.model, "data": resolved.data}
    config = replace(config, **sections)
    validate(config)
    return config, replace(opened, options=resolved.model), resolved.chat


def open_tokenizer(source: ModelSource, data: DataOptions) -> ChatTokenizer:
    """The model's tokenizer with the chat template for training that `data.chat_template` names. Raises InputError."""
    tokenizer = load_tokenizer(str(source.folder))
    chat = training_tokenizer(source.asked, tokenizer, data)
    check_vocabulary(source.model_config, tokenizer, source.asked, chat.template)
    return chat


def inherit_model[M: ForwardOptions](command: str, model: M, source: ModelSource) -> M:
    """Model settings whose unset values are those of the model's run; prints the given ones that differ."""
    model, notes = _inherit(command, "model", model, run_of(source.record))
    _warn(source.asked, notes)
    return model


def run_of(record: Record) -> Record:
    """The record of the run that trained the weights: their own, or that of the exported run; {} without a run."""
    return next((link for link in reversed(chain(record)) if link.get("made_by") in METHODS), {})


def prompt_tokenizer(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    args: Mapping[str, TemplateValue] | None = None,
) -> ChatTokenizer:
    """The tokenizer with the chat template for prompts: the one named, else the checkpoint's own, else `zephyr`.

    `args` are values of variables that the template reads. Raises InputError where the template cannot be used.
    """
    day = _day(None, {}, _section(run_of(source.record).get("config"), "data")) or _today()
    chat = load_chat_tokenizer(template, tokenizer, day, training=False, args=args)
    check_vocabulary(source.model_config, tokenizer, source.asked, chat.template)
    explain_template(source.asked, tokenizer, chat, TemplateChoice(template, bool(args)), day)
    return chat


def training_tokenizer(asked: str, tokenizer: PreTrainedTokenizerBase, data: DataOptions) -> ChatTokenizer:
    """The tokenizer with the chat template that training on the checkpoint `asked` would use. Raises InputError.

    The rows may be of any kind: a template that shows only the last answer of a conversation is refused row by row.
    """
    day = _day(data.template_date, {}, {}) or _today()
    chat = load_chat_tokenizer(data.chat_template, tokenizer, day, args=data.template_args, answers=_answers("", data))
    explain_template(asked, tokenizer, chat, TemplateChoice.of(data), day)
    return chat


def _answers(command: str, data: DataOptions) -> Answers:
    """The answers of a conversation that the template must show: those of the rows that a command reads."""
    if data.multi_turn == "last":
        return "last"
    method = METHODS.get(command)
    return "all" if method and method.examples.split_turns else "any"


def _inherit[O: ForwardOptions | DataOptions](
    command: str, section: str, options: O, earlier: Record, resumed: Mapping[str, Any] | None = None
) -> tuple[O, list[str]]:
    """The options with inherited values, and a note for each given value that differs from the run's."""
    inherited, saved = _section(earlier.get("config"), section), _section(resumed, section)
    values: dict[str, Any] = {name: settled(getattr(options, name)) for name in vars(options) if name != "row_length"}
    notes = []
    for item in properties():
        if item.section != section:
            continue
        name = item.name
        inherits = (item.commands is None or command in item.commands) and (
            item.methods is None or earlier.get("made_by") in item.methods
        )
        given = not is_unset(getattr(options, name))
        if not given and name in saved:
            values[name] = saved[name]
        elif not given and inherits and name in inherited:
            values[name] = inherited[name]
        elif given and inherits and inherited.get(name, values[name]) != values[name]:
            notes.append(f"{section}.{name} is {values[name]}, the run has {inherited[name]}")
    return replace(options, **values), notes


def properties() -> list[Property]:
    """All inherited settings: `PROPERTIES`, and those that only runs of one method pass on."""
    own = [(method.name, setting.split(".")) for method in METHODS.values() for setting in method.inherited_settings]
    return [*PROPERTIES, *(Property(section, name, frozenset({method})) for method, (section, name) in own)]


def _fit_lengths(data: DataOptions, unset_prompt: bool) -> DataOptions:
    """Data settings whose unset row and prompt lengths fit the inherited `max_length`."""
    prompt = data.max_prompt_length
    if unset_prompt and prompt >= data.max_length:
        prompt = max(1, data.max_length // 2)
    return replace(data, max_prompt_length=prompt).fitted(1)


def _day(given: str | None, saved: Mapping[str, Any], inherited: Mapping[str, Any]) -> date | None:
    """The given template date, else that of the resumed run, else that of the run behind the model."""
    text = given or saved.get("template_date") or inherited.get("template_date")
    try:
        return date.fromisoformat(text) if text else None
    except ValueError as error:
        raise InputError(
            f"Invalid data.template_date: expected a date as YYYY-MM-DD, got {text!r} ({error})."
        ) from error


def _chat(
    command: str,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    data: DataOptions,
    day: date | None,
    tables: Sequence[tuple[date, str]],
) -> ChatTokenizer:
    load = partial(
        load_chat_tokenizer,
        data.chat_template,
        tokenizer,
        args=data.template_args,
        answers=_answers(command, data),
    )
    today = _today()  # a collective: all hosts must call it, whether they use it or not
    chat = load(day) if day else _with_recorded_date(load, tables) or load(today)
    differs = explain_template(source.asked, tokenizer, chat, TemplateChoice.of(data), chat.template.day or today)
    if differs and command not in EVALUATION and run_of(source.record) and not data.allow_template_change:
        raise InputError(
            f"{differs}, with which it was trained; `{command}` would continue with prompts that the model has not learned. "
            "Leave data.chat_template and data.template_args unset to use the run's own, or confirm the change: "
            "--data.allow_template_change"
        )
    return chat


def _with_recorded_date(load: Any, tables: Sequence[tuple[date, str]]) -> ChatTokenizer | None:
    """The tokenizer with the date of a reference table that was made with the same template."""
    for recorded, fingerprint in tables:
        chat: ChatTokenizer = load(recorded)
        if chat.fingerprint == fingerprint:
            return chat
    return None


def _today() -> date:
    return date.fromordinal(broadcast_from_host0(now().date().toordinal()))


def _section(config: Any, name: str) -> Mapping[str, Any]:
    section = config.get(name) if isinstance(config, Mapping) else None
    return section if isinstance(section, Mapping) else {}


def _warn(asked: str, notes: Sequence[str]) -> None:
    if notes:
        log_on_host0(logging.WARNING, f"{asked}: {'; '.join(notes)}")
