"""The text of `zephyr-jax COMMAND --help`: settings in groups, wrapped to the width of the terminal."""

import re
import shutil
from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import Any

from zephyr_jax.config.inherited import CARRIED, matches
from zephyr_jax.config.settings import Setting, required_settings, section_docs, settings_of
from zephyr_jax.log import LEVELS

_INDENT = 6
_COLUMN = 26
_NO_BREAK = "\u00a0"
_MIN_WIDTH, _MAX_WIDTH = 40, 120

_ALL_COMMANDS = (
    ("--config CARD.yaml", "Card: a YAML file with settings. Settings on the command line override it."),
    (f"--log_level {{{', '.join(LEVELS)}}}", "Least severe level of the messages on stderr. (default: info)"),
    ("-h, --help", "Print this help; with `--config`, the defaults are those of the card."),
)


def terminal_width() -> int:
    """Columns to fill: those of the terminal (or COLUMNS), at least 40, at most 120."""
    return min(_MAX_WIDTH, max(_MIN_WIDTH, shutil.get_terminal_size().columns))


def command_help(command: str, config: Any, positional: str, examples: Iterable[str]) -> str:
    """The help of a command, without a newline at the end.

    Args:
        command: Its name.
        config: Its config, with defaults or with the values of a card.
        positional: Full name of the setting that its argument sets; empty where it takes none.
        examples: Arguments of command lines.
    """
    width = terminal_width()
    argument = f" [{positional_metavar(positional)}]" if positional else ""
    usage = f"usage: zephyr-jax {command}{argument} [--config CARD.yaml] [--setting VALUE ...]"
    lines = [*_wrapped(usage, width, 0, 4), "", *paragraphs(type(config).__doc__ or "", width, 0)]
    for title, description, settings in _groups(command, config):
        lines += ["", f"{title}:"]
        if description:
            lines += paragraphs(description, width, 2)
        if title == _UNUSED:
            names = ", ".join(option for setting in settings for option in setting.options[:1])
            lines += _wrapped(names, width, 2, 2)
            continue
        for setting in settings:
            lines += _setting_help(setting, width, positional)
    lines += ["", "options of every command:"]
    for option, text in _ALL_COMMANDS:
        lines += [f"  {option}", *_wrapped(text, width, _INDENT, _INDENT)]
    lines += ["", "examples:"]
    for example in examples:
        lines += _command_line(command, example, width)
    return "\n".join(lines)


def positional_metavar(name: str) -> str:
    """Placeholder of a command's argument: `MODEL` for `model.path`."""
    return name.removesuffix(".path").upper()


def short_options(name: str) -> tuple[str, ...]:
    """Options that are short for a setting: `--model` for `model.path`, `--data` for `data.path`."""
    return (f"--{name.removesuffix('.path')}",) if name in ("model.path", "data.path") else ()


_UNUSED = "settings of other stages"


def _groups(command: str, config: Any) -> Iterator[tuple[str, str, list[Setting]]]:
    """Title, description and settings of each group: required ones, common ones, advanced ones, unused ones."""
    settings, patterns = list(settings_of(config)), CARRIED.get(command, ())
    if required := required_settings(config):
        yield "required settings", "", required
    names = {setting.name for setting in required}
    rest = [item for item in settings if item.name not in names and not matches(item.name, patterns)]
    docs = section_docs(type(config))
    for advanced in (False, True):
        sections = dict.fromkeys(setting.section for setting in rest)
        for section in sorted(sections, key=bool):  # those outside of sections first
            group = [setting for setting in rest if (setting.section, setting.advanced) == (section, advanced)]
            common = any(setting.section == section and not setting.advanced for setting in rest)
            title = " ".join(filter(None, ("advanced" if advanced else "", section, "settings")))
            if group:
                yield title, "" if advanced and common else docs.get(section, ""), group
    if unused := [item for item in settings if item.name not in names and matches(item.name, patterns)]:
        yield _UNUSED, f"One card serves all stages. `{command}` accepts these settings and does not use them.", unused


def _setting_help(setting: Setting, width: int, positional: str) -> list[str]:
    names = [positional_metavar(positional)] if setting.name == positional else []
    names += [*short_options(setting.name), *setting.options]
    lines = _wrapped(f"{', '.join(names)} {setting.metavar}".rstrip(), width, 2, 4)
    hint = f" (default: {setting.default})" if setting.default else ""
    hint = hint[:1] + hint[1:].replace(" ", _NO_BREAK) if len(hint) < _MIN_WIDTH else hint
    return lines + paragraphs(setting.doc, width, _INDENT, hint)


def table_row(name: str, text: str, width: int) -> list[str]:
    """Lines of one row of the table of commands: the name, and the text beside it."""
    first, *others = _wrapped(text, width, _COLUMN, _COLUMN)
    return [f"  {name:<{_COLUMN - 2}}{first.strip()}", *others]


def paragraphs(text: str, width: int, indent: int, ending: str = "") -> list[str]:
    """Lines of a docstring: paragraphs are filled, and each item of a list (`- ...`) begins a line.

    Args:
        text: The docstring, without indentation.
        width: Largest length of a line.
        indent: Spaces before each line.
        ending: Text to append to the first paragraph.
    """
    first, *others = re.split(r"\n\s*\n|\n(?=- )", text.strip())
    lines = _wrapped(first + ending, width, indent, indent)
    for block in others:
        item = block.startswith("- ")
        lines += _wrapped(block.removeprefix("- "), width, indent + 2 * item, indent + 4 * item)
    return lines


def _wrapped(text: str, width: int, indent: int, further: int) -> list[str]:
    """Lines of one paragraph, with different indents of the first line and the further ones."""
    words = re.sub(r"[ \n]+", " ", text)
    lines = wrap(words, width, initial_indent=" " * indent, subsequent_indent=" " * further, break_on_hyphens=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _command_line(command: str, arguments: str, width: int) -> list[str]:
    """A command line that can be pasted into a shell: it is continued with backslashes before options."""
    lines = [f"  zephyr-jax {command}"]
    for part in re.split(r" (?=--)", arguments):
        if len(f"{lines[-1]} {part} \\") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"      {part}")
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
