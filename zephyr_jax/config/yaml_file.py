"""Cards: YAML to config and back. Unknown keys and values of another type are errors with the setting's full name."""

import os
import re
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

import yaml

from zephyr_jax.config.sections import settled
from zephyr_jax.config.validation import convert
from zephyr_jax.errors import InputError, did_you_mean, truncate_repr
from zephyr_jax.storage.files import check_regular
from zephyr_jax.storage.suggest import suggest_path

_FREE_TEXT = (
    "system",
    "prompts",
    "refusal_phrases",
    "principles",
    "exclude_sources",
    "tasks",
    "name",
)
"""Settings whose text is never a path."""


class _Loader(yaml.SafeLoader):
    """Safe YAML loader that refuses duplicate keys and aliases of sections."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        parser = cast(Any, self)  # its stubs are untyped
        anchor = getattr(parser.peek_event(), "anchor", None) if self.check_event(yaml.AliasEvent) else None
        node = super().compose_node(parent, index)
        if anchor is not None and not isinstance(node, yaml.ScalarNode):
            line = parser.peek_event().start_mark.line + 1
            raise yaml.YAMLError(f"line {line} repeats the section `{anchor}` by an alias; write it out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value in keys:
                line = name.start_mark.line + 1
                raise yaml.YAMLError(f"line {line} sets {truncate_repr(name.value)} a second time; keep one")
            keys.add(name.value if isinstance(name, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if abs(number) >= 2**63:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} holds {truncate_repr(node.value)}, which does not fit into 64 bits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def load_card[C](kind: type[C], path: str | Path) -> C:
    """Read a YAML card into a config of type `kind`.

    Raises InputError when the file is missing, is not YAML, names an unknown setting or gives a value that the
    setting's type cannot hold.
    """
    check_regular(path)
    try:
        content = yaml.load(Path(os.path.expanduser(path)).read_text(), _Loader)
    except OSError as error:
        raise InputError(
            f"Cannot read the card {path}: {error.strerror}.{suggest_path(path)} Pass the path of a YAML file."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"The card {path} is not valid YAML: {reason}. Fix it.") from error
    except RecursionError as error:
        raise InputError(f"The card {path} is nested too deep: expected settings, and sections of settings.") from error
    return expand_home(from_dict(kind, {} if content is None else content, where=str(path)))


def expand_home[C](config: C) -> C:
    """The config with `~` and `~user` at the start of its paths replaced by home folders; also behind `NAME=`.

    Every setting that holds text may be a path, except those in `_FREE_TEXT`. Raises InputError for an unknown user.
    """
    changed = {}
    for item in fields(cast(Any, config)):
        value = getattr(config, item.name)
        if is_dataclass(value):
            expanded: Any = expand_home(value)
        elif item.name in _FREE_TEXT:
            continue
        elif isinstance(value, tuple):
            expanded = tuple(_expanded(path, item.name) for path in value)
        else:
            expanded = _expanded(value, item.name)
        if expanded != value:
            changed[item.name] = expanded
    return cast(C, replace(cast(Any, config), **changed)) if changed else config


def _expanded(value: Any, name: str) -> Any:
    if not isinstance(value, str) or "~" not in value:
        return value
    before, equals, path = value.partition("=") if re.match(r"[^/~=]+=~", value) else ("", "", value)
    expanded = os.path.expanduser(path)
    if expanded == path and re.match(r"~[^/]*/", path):
        raise InputError(
            f"`{name}` is {truncate_repr(value)}: expected a path, got the home folder of an unknown user. Write the whole "
            "path, or `./~...` for a folder of that name."
        )
    return before + equals + expanded


def from_dict[C](kind: type[C], content: Any, where: str, prefix: str = "") -> C:
    """Build a config dataclass from plain values; `where` names the source in errors."""
    if not isinstance(content, dict):
        section = prefix.rstrip(".") or "the card"
        raise InputError(
            f"{where}: `{section}`: expected settings, one `name: value` per line, got {truncate_repr(content)}."
        )
    hints = get_type_hints(kind)
    types = {item.name: hints[item.name] for item in fields(cast(Any, kind))}
    values = {}
    for name, value in content.items():
        if name not in types:
            raise InputError(
                f"{where}: `{prefix}{str(name)[:80]}` is not a setting.{did_you_mean(str(name), types, prefix)}"
            )
        if is_dataclass(types[name]):
            values[name] = from_dict(types[name], value, where, f"{prefix}{name}.")
        else:
            values[name] = convert(kind, name, value, prefix, where=f"{where}: ")
    return kind(**values)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of every setting, ready for YAML or JSON."""
    return asdict(config, dict_factory=lambda items: {name: _plain(value) for name, value in items})


def _plain(value: Any) -> Any:
    """A setting as YAML and JSON give it back: tuples are lists there."""
    return list(value) if isinstance(value, tuple) else settled(value)


def fill_missing(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """A saved nested dict of settings with the defaults of those that it lacks: settings that a later version added."""
    filled = dict(saved)
    for name, default in defaults.items():
        value = saved.get(name)
        if name not in saved:
            filled[name] = default
        elif isinstance(value, dict) and isinstance(default, dict):
            filled[name] = fill_missing(value, default)
    return filled


def save_card(config: Any, path: Path) -> None:
    """Write the resolved config, with all settings, as a card that can be run again."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two nested dicts: full name -> (ours, theirs)."""
    changed: dict[str, tuple[Any, Any]] = {}
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            changed |= differences(one, other, f"{prefix}{name}.")
        elif one != other:
            changed[prefix + name] = (one, other)
    return dict(sorted(changed.items()))
