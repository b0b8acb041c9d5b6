"""The settings of a config as a list: name, type, value, help text. The command line's help and its messages read it."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from itertools import pairwise
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, Literal, TypeAliasType, Union, get_args, get_origin, get_type_hints

from zephyr_jax.config.constraints import ADVANCED
from zephyr_jax.config.sections import is_unset


@dataclass(frozen=True)
class Setting:
    """One setting of a command."""

    name: str
    """Full name, as in `data.packing`."""
    owner: type
    """The dataclass that has the field."""
    hint: Any
    """Type of the field, without its bounds."""
    value: Any
    """Its value: the default, or a card's."""
    advanced: bool

    @property
    def doc(self) -> str:
        """The docstring below the field: paragraphs, and lists whose items start with `- `."""
        return field_docs(self.owner).get(self.field, "")

    @property
    def section(self) -> str:
        """Name of the section, `data`; empty for settings outside of sections."""
        return self.name.rpartition(".")[0]

    @property
    def field(self) -> str:
        """Name inside of the section, `packing`."""
        return self.name.rpartition(".")[2]

    @property
    def options(self) -> tuple[str, ...]:
        """The option as it is typed; for booleans `--data.packing` and `--data.no_packing`."""
        section = f"{self.section}." if self.section else ""
        on = f"--{self.name}.NAME" if self.is_open_mapping else f"--{self.name}"
        return (on, f"--{section}no_{self.field}") if self.hint is bool else (on,)

    @property
    def is_open_mapping(self) -> bool:
        """Whether it is a mapping of names to values of several types, given one by one: `--data.template_args.NAME VALUE`."""
        return get_origin(self.hint) is dict and isinstance(get_args(self.hint)[1], TypeAliasType)

    @property
    def optional(self) -> bool:
        """Whether `None` is a value."""
        return NoneType in get_args(self.hint)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of an enumeration as they are typed; empty for other types."""
        for hint in (self.hint, *get_args(self.hint)):
            if get_origin(hint) is Literal:
                return tuple(map(str, get_args(hint)))
            if isinstance(hint, type) and issubclass(hint, Enum):
                return tuple(str(member.value) for member in hint)
        return ()

    @property
    def metavar(self) -> str:
        """Placeholder of the value in help; empty for booleans."""
        if self.hint is bool:
            return ""
        if self.is_open_mapping:
            return "VALUE"
        choices = "{" + ", ".join(self.choices) + "}" if self.choices else ""
        return (choices or _metavar(self.hint)) + ("|None" if self.optional else "")

    @property
    def default(self) -> str:
        """The value for help; empty where it is empty, or depends on other settings as the text of the help explains."""
        if self.value in (None, "", ()) or is_unset(self.value):
            return ""
        if isinstance(self.value, bool):
            return "on" if self.value else "off"
        if isinstance(self.value, dict):
            return " ".join(str(word) for key, value in self.value.items() for word in (key, *_words(value)))
        return " ".join(map(str, _words(self.value)))


def settings_of(config: Any, prefix: str = "") -> Iterator[Setting]:
    """The settings of a config, section by section; in a class, its own come before those that it inherits.

    Args:
        config: A config or a section; its values are the defaults of the settings.
        prefix: Full name of the section with a dot at the end.
    """
    kind: type = type(config)
    hints, items = get_type_hints(kind), {item.name: item for item in fields(kind)}
    names = [name for base in kind.__mro__ for name in vars(base).get("__annotations__", ()) if name in items]
    for name in dict.fromkeys(names):
        value, advanced = getattr(config, name), items[name].metadata.items() >= ADVANCED.items()
        if is_dataclass(hints[name]):
            yield from settings_of(value, f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, kind, hints[name], value, advanced)


def required_settings(config: Any) -> list[Setting]:
    """The settings that a command line or a card must set, in the order of the config's REQUIRED."""
    settings, empty = {setting.name: setting for setting in settings_of(config)}, type(config)()
    required = getattr(config, "REQUIRED", {})
    return [settings[name] for name in required if not attrgetter(name)(empty)]


def section_docs(kind: type) -> dict[str, str]:
    """Section -> docstring of its class."""
    hints = get_type_hints(kind)
    return {
        item.name: inspect.getdoc(hints[item.name]) or "" for item in fields(kind) if is_dataclass(hints[item.name])
    }


@cache
def field_docs(kind: type) -> dict[str, str]:
    """Field -> the docstring below it, from the source of a dataclass and of its bases; empty where that cannot be read."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            docs |= _class_docs(inspect.getmodule(base), base.__qualname__)
    return docs


def _class_docs(module: Any, name: str) -> dict[str, str]:
    classes = (node for node in ast.walk(_parsed(module)) if isinstance(node, ast.ClassDef) and node.name == name)
    return {
        statement.target.id: inspect.cleandoc(following.value.value)
        for node in classes
        for statement, following in pairwise(node.body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
        and isinstance(following.value.value, str)
    }


@cache
def _parsed(module: Any) -> ast.Module:
    try:
        return ast.parse(inspect.getsource(module))
    except (OSError, TypeError):  # a class of a notebook or a Python prompt
        return ast.Module([], [])


def _metavar(hint: Any) -> str:
    origin, inner = get_origin(hint), [kind for kind in get_args(hint) if kind is not NoneType]
    if origin in (Union, UnionType):
        return _metavar(inner[0])
    if origin is tuple and Ellipsis in inner:
        return f"[{_metavar(inner[0])} ...]"
    if origin is dict:
        return f"[{_metavar(inner[0])} {_metavar(inner[1])} ...]"
    if origin is tuple:
        return " ".join(map(_metavar, inner))
    return str(hint.__name__).upper()


def _words(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value.value if isinstance(value, Enum) else value,)
