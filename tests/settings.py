"""The names of all settings of a config."""

from dataclasses import fields, is_dataclass
from typing import get_type_hints


def setting_names(kind: type) -> list[str]:
    """Full dotted names of every setting of a config type."""
    types = get_type_hints(kind)
    inner = {item.name: types[item.name] for item in fields(kind)}
    return [
        full
        for name, each in inner.items()
        for full in ([f"{name}.{one}" for one in setting_names(each)] if is_dataclass(each) else [name])
    ]
