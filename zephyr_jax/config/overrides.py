"""Settings on the command line: short and positional forms, flags, and messages for words that cannot be used."""

import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, cast

from zephyr_jax.config.help_text import positional_metavar, short_options
from zephyr_jax.config.settings import Setting, required_settings, settings_of
from zephyr_jax.errors import InputError, truncate_repr

_NUMBERS: dict[str, tuple[type, str]] = {"INT": (int, "an integer"), "FLOAT": (float, "a number")}
_OPTION = re.compile(r"--[a-zA-Z][\w.-]*(=|$)")
"""A word that begins with dashes and is something else may be a value: a prompt such as `-- Hello!`."""


def normalize(words: Iterable[str], settings: Iterable[Setting]) -> list[str]:
    """Options with full names and underscores: `--model` as `--model.path`, `--data.no-packing` as `--data.no_packing`."""
    full = {short: f"--{setting.name}" for setting in settings for short in short_options(setting.name)}
    normalized = []
    for word in words:
        option, equals, value = word.partition("=")
        if _OPTION.match(word):
            option = "--" + option[2:].replace("-", "_")
            option = full.get(option, option)
        normalized.append(option + equals + value)
    return normalized


def check_flags(words: list[str], settings: Iterable[Setting], positional: str) -> None:
    """Raise InputError for a flag with a value.

    Args:
        words: The arguments, normalized.
        settings: Those of the command.
        positional: The setting that a word without an option sets; such a word may follow a flag.
    """
    flags = {option: setting for setting in settings for option in setting.options if setting.hint is bool}
    for word, following in zip(words, [*words[1:], "--"], strict=False):
        option, equals, value = word.partition("=")
        if option not in flags:
            continue
        given = value if equals else following
        truth = given.lower() in ("true", "false", "on", "off", "none")
        if equals or truth or not (positional or following.startswith("--")):
            on, off = flags[option].options
            raise InputError(
                f"`{option}`: expected no value, got `{given}`. Write `{on}` to turn it on and `{off}` to turn it off."
            )


def take_mappings[C](config: C, words: list[str], settings: Iterable[Setting]) -> tuple[C, list[str]]:
    """The config with the values of `--data.template_args.NAME VALUE`, and the words without them.

    Raises InputError for a name without a value, or a value without a name.
    """
    mappings = {f"--{setting.name}": setting for setting in settings if setting.is_open_mapping}
    rest: list[str] = []
    pending = iter(words)
    for word in pending:
        option, equals, value = word.partition("=")
        setting = next((mappings[name] for name in mappings if f"{option}.".startswith(f"{name}.")), None)
        if setting is None:
            rest.append(word)
            continue
        name = option[len(setting.name) + 3 :]
        value = value if equals else next(pending, "--")
        if not name or (not equals and _OPTION.match(value)) or value == "--":
            example = f"`--{setting.name}.NAME VALUE`, such as `--{setting.name}.enable_thinking false`"
            raise InputError(f"`{option}`: expected {example}, got no {'value' if name else 'name'}.")
        section, _, field = setting.name.rpartition(".")
        present: dict[str, Any] = getattr(getattr(config, section) if section else config, field)
        config = _replaced(config, setting.name, {**present, name: _mapping_value(value)})
    return config, rest


def _mapping_value(text: str) -> Any:
    """A value of a mapping: JSON for booleans (also True and False), numbers and lists; anything else is text."""
    if text in ("True", "False"):
        return text == "True"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if value is None or isinstance(value, dict) else value


def set_positional[C](config: C, command: str, positional: str, rest: list[str], words: list[str]) -> C:
    """The config with the setting of the positional argument.

    Args:
        config: Config of the options.
        command: Name of the command, for messages.
        positional: Full name of the setting that the argument sets; empty where the command takes none.
        rest: Words that are neither an option nor a value of one.
        words: All arguments, normalized.

    Raises:
        InputError: For an unknown option, or a number of arguments that the command does not take.
    """
    for word in rest:
        if word.startswith("-"):
            raise InputError(_unknown_setting(config, command, word.partition("=")[0]))
    if not rest:
        return config
    if not positional:
        raise InputError(f"Unexpected argument `{rest[0]}` of `{command}`.{_suggestion(config, rest[0])}")
    metavar, option = positional_metavar(positional), f"--{positional}"
    if len(rest) > 1:
        raise InputError(
            f"`{command}`: expected one {metavar}, got {len(rest)}: {shlex.join(rest)}. Keep one; other values need their "
            "option before them."
        )
    if any(word.partition("=")[0] == option for word in words):
        raise InputError(
            f"`{command}`: expected one {metavar}, got `{rest[0]}` and also `{option}`. Remove one of them."
        )
    return _replaced(config, positional, rest[0])


def check_values(words: list[str], settings: Iterable[Setting]) -> None:
    """Raise InputError for the first option without a value, or with one of another type.

    Bounds are checked later, by `validate`.

    Args:
        words: The arguments, normalized.
        settings: Those of the command.
    """
    by_option = {option: setting for setting in settings for option in setting.options if setting.hint is not bool}
    for option, values in _pairs(words):
        setting = by_option.get(option)
        if setting is None or setting.metavar.startswith("["):
            continue
        if not values:
            raise InputError(f"`{option}`: expected a value ({setting.metavar}), got none.")
        if setting.optional and values[0] == "None":
            continue
        if setting.choices and values[0] not in setting.choices:
            raise InputError(f"`{option}`: expected {' or '.join(setting.choices)}, got {truncate_repr(values[0])}.")
        kind, name = _NUMBERS.get(setting.metavar.partition("|")[0], (str, "text"))
        try:
            kind(values[0])
        except ValueError:
            raise InputError(f"`{option}`: expected {name}, got {truncate_repr(values[0])}.") from None


def _pairs(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Each option with the words that follow it."""
    option, values = "", list[str]()
    for word in [*words, "--"]:
        if not (_OPTION.match(word) or word == "--"):
            values.append(word)
            continue
        if option:
            yield option, values
        option, equals, value = word.partition("=")
        values = [value] if equals else []


def _unknown_setting(config: Any, command: str, option: str) -> str:
    """The message for an option that a command does not have, with settings of this name or of one like it."""
    word = option.lstrip("-")
    names = [name[2:] for setting in settings_of(config) for name in setting.options]
    near = [name for name in names if name.rpartition(".")[2] == word] or get_close_matches(word, names, n=1)
    near = near or [name for name in names if len(word) > 2 and word in name]
    hint = f"Did you mean {' or '.join(f'`--{name}`' for name in near[:3])}?" if near else ""
    return f"Unknown setting `{option}`. {hint or f'To list the settings: zephyr-jax {command} --help'}"


def _suggestion(config: Any, word: str) -> str:
    if word.endswith((".yaml", ".yml")):
        return f" Did you mean `--config {shlex.quote(word)}`?"
    inputs = [item for item in required_settings(config) if item.name != "output" and item.hint is str]
    texts = [item for item in settings_of(config) if "STR" in item.metavar]
    options = [[*short_options(item.name), *item.options][0] for item in inputs or texts[:1]]
    return f" Did you mean {' or '.join(f'`{option} {shlex.quote(word)}`' for option in options)}?"


def _replaced[C](config: C, name: str, value: Any) -> C:
    section, _, field = name.rpartition(".")
    if not section:
        return cast(C, replace(cast(Any, config), **{field: value}))
    return cast(C, replace(cast(Any, config), **{section: replace(getattr(config, section), **{field: value})}))
