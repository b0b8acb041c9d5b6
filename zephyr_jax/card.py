"""Cards: YAML in, typed config out, and back. Unknown keys and wrong types are refused with the key's full name."""

from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from zephyr_jax.errors import InputError, suggestion


def load_card[C](kind: type[C], path: str | Path) -> C:
    """Read a YAML card into a config of type `kind`.

    Raises InputError when the file is missing, is not YAML, names an unknown setting or gives a value that the
    setting's type cannot hold.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"Cannot read the card {path}: {error.strerror}. Pass the path of a YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The card {path} is not valid YAML: {reason}. Fix it at the place named.") from error
    return from_dict(kind, content or {}, where=str(path))


def from_dict[C](kind: type[C], content: Any, where: str, prefix: str = "") -> C:
    """Build a config dataclass from plain values; `where` names the source in errors."""
    if not isinstance(content, dict):
        section = prefix.rstrip(".") or "the card"
        raise InputError(f"{where}: `{section}` holds {content!r}; it needs settings, one `name: value` per line.")
    types = get_type_hints(kind)
    values = {}
    for name, value in content.items():
        if name not in types:
            raise InputError(f"{where}: `{prefix}{name}` is not a setting.{suggestion(str(name), types, prefix)}")
        values[name] = _typed(types[name], value, where, f"{prefix}{name}")
    return kind(**values)


def _typed(kind: Any, value: Any, where: str, name: str) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        return from_dict(kind, value, where, prefix=f"{name}.")
    if isinstance(value, bool) and kind is not bool:
        raise InputError(f"{where}: `{name}` is {value!r}: it is no truth value but {getattr(kind, '__name__', kind)}.")
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        reason = "; ".join(detail["msg"] for detail in error.errors())
        raise InputError(f"{where}: `{name}` is {value!r}: {reason}.") from error


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested dict of every setting, ready for YAML or JSON."""
    return asdict(config)


def save_card(config: Any, path: Path) -> None:
    """Write the resolved config, every setting spelt out, as a card that can be run again."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False))


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two nested dicts: full name -> (ours, theirs)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= differences(one, other, f"{prefix}{name}.")
        elif one != other:
            found[prefix + name] = (one, other)
    return dict(sorted(found.items()))
