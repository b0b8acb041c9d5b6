"""MkDocs hook: the command line and configuration reference, generated from the table of commands and the settings.

Both pages are made at build time from the dataclasses that the commands use, so they cannot disagree with them. The hook also
fails the build where a page would load a script, a style, a font or an image from another host.
"""

import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zephyr_jax.commands import COMMANDS, GROUPS
from zephyr_jax.config.constraints import MAX_COUNT
from zephyr_jax.config.sections import TemplateValue, is_unset
from zephyr_jax.config.settings import Setting, section_docs, settings_of
from zephyr_jax.config.training import DpoConfig
from zephyr_jax.config.validation import resumable_settings

_NAMES = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "flag",
    TemplateValue: "booleans, numbers, texts or lists",
}
_FOREIGN = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["']?(?:https?:)?//[^>]*>""", re.IGNORECASE)
_OUTSIDE = re.compile(r"(?<!!)\[(?P<text>[^\]\n]+)\]\((?P<target>(?:\.\./)+[^)\s]+)\)")
"""A link that leaves the folder of its page."""

_CLI_INTRO = """\
# Command line

```console
$ zephyr-jax COMMAND [--config CARD.yaml] [--setting VALUE ...] [--log_level LEVEL]
```

- `zephyr-jax COMMAND --help` prints every setting of a command with its default; with `--config`, the defaults are the card's.
- Settings of a section have its name before a dot, `--data.max_length 1024`; [Configuration](configuration.md) describes them.
  `--model PATH` and `--data PATH` are short for `--model.path PATH` and `--data.path PATH`.
- A flag has no value: `--resume` turns it on, `--no_resume` off; with a section, `--data.packing` and `--data.no_packing`.
- Commands with one input take it without an option: `zephyr-jax lineage my-zephyr`.
- `--log_level` is `debug`, `info` (default), `warning` or `error`.

| exit code | meaning |
|---|---|
| 0 | success |
| 1 | `check`: a metric is outside its expected range |
| 2 | a setting, a file or a row cannot be used; the message names it and the fix |
| 3 | the run stopped, for example at an anomalous step |
| 75 | a run was preempted or interrupted and has saved its state; run the same command again |
| 130 | interrupted by Ctrl-C |

This page is generated from the code.

"""
_CONFIG_INTRO = """\
# Configuration

Every setting can be given on the command line (`--data.max_length 1024`) or in a card, a YAML file with one level of sections;
the command line wins. An unknown name is an error that suggests the nearest one, and every value is checked against its type and
bounds before anything is read. Counts are at most 2,147,483,647. [Command line](cli.md) has the settings without a section.

*Resumable* settings may change when a run is resumed; a change of any other setting needs another `output`. *Default by context*
marks settings that take the value of the run that a command continues or reads, or one that follows from other settings, unless
they are given.

This page is generated from the code.

"""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for name, content in (("cli", cli_page()), ("configuration", configuration_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace links to files of the repository outside of docs/ by their paths: the site does not hold these files."""
    root, folder = Path(config.config_file_path).parent, Path(page.file.src_uri).parent

    def path_of(match: re.Match[str]) -> str:
        target = os.path.normpath(Path("docs", folder, match["target"].partition("#")[0]))
        if not (root / target).exists() or target.startswith("docs/"):
            return match[0]
        text = match["text"].strip("`")
        return f"`{target}`" if text.rstrip("/") in (target, Path(target).name) else f"{match['text']} (`{target}`)"

    return _OUTSIDE.sub(path_of, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Fail where a page loads something from another host: the site must work without a network."""
    from mkdocs.exceptions import PluginError

    loads = [tag for tag in _FOREIGN.findall(output) if 'rel="canonical"' not in tag]
    if loads:
        raise PluginError(f"{page.file.src_uri} loads from another host: {loads[0]}")
    return output


# ---- pages ----


def cli_page() -> str:
    """The command line reference in Markdown."""
    lines = []
    for purpose, commands in GROUPS.items():
        rows = [f"| [`{name}`](#{_slug(name)}) | {command.help} |" for name, command in commands.items()]
        lines += [f"**{purpose}**", "", "| command | purpose |", "|---|---|", *rows, ""]
    return _CLI_INTRO + "\n".join([*lines, *(_command_section(name) for name in COMMANDS)])


def configuration_page() -> str:
    """The configuration reference in Markdown: every setting of every section that a command has."""
    return _CONFIG_INTRO + "\n".join(_config_section(name, kinds) for name, kinds in _sections().items())


def _command_section(name: str) -> str:
    command = COMMANDS[name]
    kind = command.config_type()
    required = getattr(kind, "REQUIRED", {})
    lines = [f"## {name} {{ #{_slug(name)} }}", "", _class_doc(kind), ""]
    if command.examples:
        lines += ["```console", *(f"$ zephyr-jax {name} {example}" for example in command.examples), "```", ""]
    if required:
        lines += [f"Required: {', '.join(f'`{key}`' for key in required)}.", ""]
    for setting in settings_of(kind()):
        if not setting.section:
            lines += [f"`{'` `'.join(setting.options)}` *{_facts(setting)}*", *_definition(setting.doc), ""]
    if sections := section_docs(kind):
        lines += [f"Sections: {', '.join(f'[`{item}`](configuration.md#{item})' for item in sections)}.", ""]
    return "\n".join(lines)


def _config_section(name: str, kinds: dict[type, list[str]]) -> str:
    """One section of settings; `kinds` maps its dataclasses, smallest first, to the commands that use them."""
    largest = list(kinds)[-1]
    settings = {setting.name: setting for kind in kinds for setting in settings_of(kind(), f"{name}.")}
    commands = [command for users in kinds.values() for command in users]
    lines = [f"## {name} {{ #{name} }}", "", _class_doc(largest), "", f"Commands: {_command_links(commands)}.", ""]
    names = [item.name for kind in (largest, *kinds) for item in fields(kind)]
    for setting in (settings[full] for item in dict.fromkeys(names) if (full := f"{name}.{item}") in settings):
        users = [command for kind, used in kinds.items() if setting.field in _names(kind) for command in used]
        resumable = ["resumable"] if {setting.name, name} & _resumable() else []
        facts = ", ".join([_facts(setting), *resumable])
        lines += [f"### `{setting.name}` {{ #{setting.name} }}", "", f"*{facts}*", "", setting.doc, ""]
        if len(users) < len(commands):
            lines += [f"Commands: {_command_links(users)}.", ""]
    return "\n".join(lines)


def _command_links(names: list[str]) -> str:
    ordered = [name for name in COMMANDS if name in names]
    return ", ".join(f"[`{name}`](cli.md#{_slug(name)})" for name in ordered)


@cache
def _sections() -> dict[str, dict[type, list[str]]]:
    """Section -> its dataclasses, the one with the fewest settings first -> the commands that use them."""
    sections: dict[str, dict[type, list[str]]] = {}
    for command, kind in ((name, command.config_type()) for name, command in COMMANDS.items()):
        for name, hint in get_type_hints(kind).items():
            if is_dataclass(hint):
                sections.setdefault(name, {}).setdefault(hint, []).append(command)
    order = [*(item.name for item in fields(DpoConfig)), *sections]
    return {
        name: dict(sorted(kinds.items(), key=lambda entry: len(_names(entry[0]))))
        for name, kinds in sorted(sections.items(), key=lambda entry: order.index(entry[0]))
    }


@cache
def _resumable() -> frozenset[str]:
    return frozenset(resumable_settings(DpoConfig))


# ---- one setting ----


def _facts(setting: Setting) -> str:
    """Type, bounds and default."""
    context = "default by context" if is_unset(setting.value) else f"default {_default(setting.value)}"
    return ", ".join(filter(None, (_type(setting.hint), _bounds(setting), context)))


def _type(hint: Any) -> str:
    arguments = [argument for argument in get_args(hint) if argument is not NoneType]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{argument}`" for argument in arguments)
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return "one of " + ", ".join(f"`{member.value}`" for member in hint)
    if get_origin(hint) is tuple:
        return f"list of {_type(arguments[0])}"
    if get_origin(hint) is dict:
        return f"mapping of text to {'range' if get_origin(arguments[1]) is tuple else _type(arguments[1])}"
    if arguments:
        return " or ".join([*map(_type, arguments), "None"])
    return _NAMES[hint]


def _bounds(setting: Setting) -> str:
    """Text of the bounds of a number, without the limit of all counts."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits: list[str] = []
    for constraint in _constraints(get_type_hints(setting.owner, include_extras=True)[setting.field]):
        for sign, word in words.items():
            limit = getattr(constraint, sign, None)
            if limit is not None and limit != MAX_COUNT:
                whole = sign == "gt" and limit == 0 and "integer" in _type(setting.hint)
                limits.append("at least 1" if whole else f"{word} {limit:,}")
    return ", ".join(limits)


def _constraints(hint: Any) -> Iterator[Any]:
    for info in getattr(hint, "__metadata__", ()):
        yield from getattr(info, "metadata", ())
    for argument in get_args(hint):
        if not isinstance(argument, str):
            yield from _constraints(argument)


def _default(value: Any) -> str:
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value.value if isinstance(value, Enum) else value}`"


def _definition(doc: str) -> list[str]:
    """Markdown of a definition list's entry."""
    first, *rest = doc.split("\n")
    return [f":   {first}", *(f"    {line}".rstrip() for line in rest)]


def _class_doc(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _names(kind: type) -> set[str]:
    return {item.name for item in fields(kind)}


def _slug(name: str) -> str:
    return name.replace(" ", "-")
