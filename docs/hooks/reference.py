"""MkDocs hook: the command line and configuration reference, generated from the table of commands and the settings.

Both pages are made at build time from the dataclasses that the commands use, so they cannot disagree with them. The hook also
fails the build where a page would load a script, a style, a font or an image from another host.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from zephyr_jax.commands import COMMANDS
from zephyr_jax.config.constraints import MAX_COUNT, RESUMABLE
from zephyr_jax.config.sections import is_unset
from zephyr_jax.config.training import DpoConfig, SftConfig
from zephyr_jax.config.validation import resumable_settings

_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false"}
_RUN_COMMANDS = ("sft", "dpo")
_FOREIGN = re.compile(r"""<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=["'](?:https?:)?//[^>]*>""", re.IGNORECASE)

_CLI_INTRO = """\
# Command line

```console
$ zephyr-jax COMMAND [--config CARD.yaml] [--section.setting VALUE ...] [--log_level LEVEL]
```

`zephyr-jax COMMAND --help` prints every setting of a command with its default; with `--config`, the defaults are those of the
card. `--model PATH` and `--data PATH` are short for `--model.path PATH` and `--data.path PATH`. `--log_level` is `debug`, `info`
(default), `warning` or `error`.

| exit code | meaning |
|---|---|
| 0 | success |
| 1 | `check`: a metric is outside its expected range |
| 2 | a setting, a file or a row is not usable; the message names it and the fix |
| 3 | the run stopped, for example at an anomalous step |
| 75 | preempted or interrupted after saving; run the same command again |
| 130 | Ctrl-C before anything had to be saved |

This page is generated from the code. [Configuration](configuration.md) describes the settings that have a section in their name.

"""
_CONFIG_INTRO = """\
# Configuration

Every setting can be given on the command line (`--data.max_length 1024`) or in a card, a YAML file with one level of sections;
the command line wins. An unknown name is an error that suggests the nearest one, and every value is checked against its type and
bounds before anything is read. Counts are at most 2,147,483,647. [Command line](cli.md) lists the settings without a section.

*Resumable* settings may change when a run is resumed; a change of any other setting needs another `output`. *Inherited* settings
take the value of the run that a command continues or reads, unless they are given.

This page is generated from the code.

"""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site."""
    from mkdocs.structure.files import File

    for name, content in (("cli", cli_page()), ("configuration", configuration_page())):
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


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
    index = [f"| [`{name}`](#{_slug(name)}) | {command.help} |" for name, command in COMMANDS.items()]
    sections = [_command_section(name) for name in COMMANDS]
    return _CLI_INTRO + "\n".join(["| command | purpose |", "|---|---|", *index, "", *sections])


def configuration_page() -> str:
    """The configuration reference in Markdown: every setting of every section that a command has."""
    return _CONFIG_INTRO + "\n".join(_config_section(name, kinds) for name, kinds in _sections().items())


def _command_section(name: str) -> str:
    kind = COMMANDS[name].config_type()
    required = {key.removesuffix(".path"): meaning for key, meaning in getattr(kind, "REQUIRED", {}).items()}
    usage = " ".join(["zephyr-jax", name, *(f"--{key} {key.upper()}" for key in required)])
    lines = [f"## {name} {{ #{_slug(name)} }}", "", f"```console\n$ {usage}\n```", "", _class_help(kind), ""]
    if required:
        lines += ["Required:", "", *(f"- `{key}`: {meaning}" for key, meaning in required.items()), ""]
    own = [item for item in fields(kind) if not is_dataclass(_hints(kind)[item.name])]
    if own:
        lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
        lines += [_table_row(kind, item) for item in own] + [""]
    links = [f"[`{item.name}`](configuration.md#{item.name})" for item in fields(kind) if item not in own]
    if links:
        lines += [f"Sections: {', '.join(links)}.", ""]
    return "\n".join(lines)


def _table_row(kind: type, item: Field[Any]) -> str:
    help_text = _setting_help(kind, item.name).replace("|", "\\|").replace("\n", " ")
    bounds = ", ".join(filter(None, (_type(kind, item.name), _bounds(kind, item.name)))).replace("|", "\\|")
    return f"| `{item.name}` | {bounds} | {_default(item)} | {help_text} |"


def _config_section(name: str, kinds: dict[type, list[str]]) -> str:
    """One section of settings; `kinds` maps its dataclasses, smallest first, to the commands that use them."""
    largest = list(kinds)[-1]
    commands = [command for users in kinds.values() for command in users]
    lines = [f"## {name} {{ #{name} }}", "", _class_help(largest), "", f"Commands: {_command_links(commands)}.", ""]
    for item in fields(largest):
        users = [command for kind, used in kinds.items() if item.name in _hints(kind) for command in used]
        facts = [_type(largest, item.name), _bounds(largest, item.name), f"default {_default(item)}"]
        facts += ["resumable" if f"{name}.{item.name}" in _resumable() or name in _resumable() else ""]
        facts += ["inherited" if is_unset(item.default) else ""]
        lines += [f"### `{name}.{item.name}` {{ #{name}.{item.name} }}", "", f"*{', '.join(filter(None, facts))}*", ""]
        lines += [_setting_help(largest, item.name), ""]
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
        for name, hint in _hints(kind).items():
            if is_dataclass(hint):
                sections.setdefault(name, {}).setdefault(hint, []).append(command)
    order = [*_hints(DpoConfig), *sections]
    return {
        name: dict(sorted(kinds.items(), key=lambda entry: len(fields(entry[0]))))
        for name, kinds in sorted(sections.items(), key=lambda entry: order.index(entry[0]))
    }


@cache
def _resumable() -> frozenset[str]:
    return frozenset(resumable_settings(DpoConfig)) | frozenset(resumable_settings(SftConfig))


# ---- one setting ----


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Name -> type of the settings of a dataclass, in their order."""
    hints = get_type_hints(kind)
    return {item.name: hints[item.name] for item in fields(kind)}


def _type(kind: type, name: str) -> str:
    return _type_text(_hints(kind)[name])


def _type_text(hint: Any) -> str:
    arguments = [argument for argument in get_args(hint) if argument is not NoneType]
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f"`{argument}`" for argument in arguments)
    if inspect.isclass(hint) and issubclass(hint, Enum):
        return "one of " + ", ".join(f"`{member.value}`" for member in hint)
    if get_origin(hint) is tuple:
        return f"list of {_type_text(arguments[0])}"
    if get_origin(hint) is dict:
        return f"mapping of text to {'range' if get_origin(arguments[1]) is tuple else _type_text(arguments[1])}"
    if arguments:
        return " or ".join([*(_type_text(argument) for argument in arguments), "none"])
    return _NAMES[hint]


def _bounds(kind: type, name: str) -> str:
    """Bounds of a number in words, without the limit of all counts."""
    hint = get_type_hints(kind, include_extras=True)[name]
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    limits: list[str] = []
    for constraint in _constraints(hint):
        for sign, word in words.items():
            limit = getattr(constraint, sign, None)
            if limit is not None and limit != MAX_COUNT:
                whole = sign == "gt" and limit == 0 and "integer" in _type(kind, name)
                limits.append("at least 1" if whole else f"{word} {limit:,}")
    return ", ".join(limits)


def _constraints(hint: Any) -> Iterator[Any]:
    for info in getattr(hint, "__metadata__", ()):
        yield from getattr(info, "metadata", ())
    for argument in get_args(hint):
        if argument is not hint and not isinstance(argument, str):
            yield from _constraints(argument)


def _default(item: Field[Any]) -> str:
    value = item.default_factory() if item.default_factory is not MISSING else item.default
    if value is None or value in ("", (), {}):
        return "none"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple):
        return ", ".join(f"`{part}`" for part in value)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _class_help(kind: type) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _setting_help(kind: type, name: str) -> str:
    """The text below a field in the class that defines it, or in the nearest base class that has one."""
    return next((text for base in kind.__mro__ if (text := _field_texts(base).get(name))), "")


@cache
def _field_texts(kind: type) -> dict[str, str]:
    """Field -> the string below it in the source of a class."""
    if not is_dataclass(kind):
        return {}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            value = below.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                texts[field.target.id] = " ".join(inspect.cleandoc(value.value).split())
    return texts


def _slug(name: str) -> str:
    return name.replace(" ", "-")
