"""Types of the fields of a provenance record, checked where the file is read: hub repositories bring such files, too."""

import json
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, get_type_hints

import pydantic
from pydantic import Field

from zephyr_jax.config.sections import BaseFormat
from zephyr_jax.config.training import SftConfig
from zephyr_jax.config.validation import convert
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.methods.registry import METHODS
from zephyr_jax.storage.files import Path

type _Count = Annotated[int, Field(ge=0)]
type _Size = Annotated[int, Field(ge=1)]
type _Texts = str | list[str] | None
_FIX = "Restore the file from a backup, or copy it again from its source."


class _Fields(pydantic.BaseModel):
    """Strict types; a field may be absent, and fields of later versions are ignored."""

    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)


class AdapterFields(_Fields):
    """Facts of the adapter that a run trained: `adapter` in its record."""

    rank: _Size
    alpha: Annotated[float, Field(gt=0)]
    use_rslora: bool
    targets: Annotated[list[str], Field(min_length=1)]
    base_format: BaseFormat
    block_size: _Size
    start: Literal["new", "continue", "merge"] = "new"


class RecordFields(_Fields):
    """Fields of a run, an export or a base model, besides `adapter` and `parent`."""

    made_by: str = ""
    at: str = ""
    output: str = ""
    config: dict[str, Any] = {}
    steps: _Count = 0
    step: _Count = 0
    data: str = ""
    template: dict[str, Any] = {}
    data_skipped: dict[str, Any] = {}
    data_truncated: dict[str, Any] = {}
    eval_skipped: dict[str, Any] = {}
    eval_truncated: dict[str, Any] = {}
    reference: str = ""
    resumed: list[Any] = []
    dtype: str = ""
    weights: str = ""
    files: str = ""
    format: str = ""
    merge_into: str = ""
    base_model: str | None = None
    base_revision: str | None = None
    devices: str = ""
    processes: _Count = 0
    versions: dict[str, str] = {}
    commit: str | None = None
    path: str = ""
    revision: str | None = None
    architecture: str | None = None
    license: _Texts = None
    license_name: _Texts = None
    license_link: _Texts = None
    language: _Texts = None


def check_record(record: dict[str, Any], path: Path) -> None:
    """Raise InputError for a field of a record, or of one of its parents, that has another type than this package writes.

    Settings of `config` must be of the type and within the bounds of the setting of this name; others are ignored.

    Args:
        record: The content of the file.
        path: The file, for messages.
    """
    link, prefix = record, ""
    while True:
        _check_fields(RecordFields, link, path, prefix)
        if "adapter" in link:
            _check_fields(AdapterFields, link["adapter"], path, f"{prefix}adapter.")
        method = METHODS.get(link.get("made_by", ""))
        _check_settings(method.config if method else SftConfig, link.get("config", {}), path, f"{prefix}config.")
        if "parent" not in link:
            return
        link, prefix = link["parent"], f"{prefix}parent."
        if not isinstance(link, dict):
            raise _damaged(path, prefix[:-1], "an object", truncate_repr(link))


def _check_fields(kind: type[_Fields], content: Any, path: Path, prefix: str) -> None:
    try:
        kind.model_validate(content)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        field, *keys = problem["loc"] or ("",)
        nested = keys if field and isinstance(content.get(field), dict) else []  # else pydantic's name of a type
        expected, value = problem["msg"].removeprefix("Input should be "), truncate_repr(problem["input"])
        if problem["type"] == "missing":
            expected, value = "a value", "none"
        name = f"{prefix}{'.'.join(map(str, (field, *nested)))}".rstrip(".")
        raise _damaged(path, name, expected if field else "an object", value) from error


def _check_settings(kind: type, settings: Any, path: Path, prefix: str) -> None:
    if not isinstance(settings, dict):
        raise _damaged(path, prefix[:-1], "an object", truncate_repr(settings))
    hints = get_type_hints(kind)
    for name in [item.name for item in fields(kind) if item.name in settings]:
        if is_dataclass(hints[name]):
            _check_settings(hints[name], settings[name], path, f"{prefix}{name}.")
            continue
        try:
            value = convert(kind, name, settings[name], prefix, where=f"{path}: ")
        except InputError as error:
            raise InputError(f"{error} {_FIX}") from error
        if (plain := json.loads(json.dumps(value))) != settings[name]:  # a number as text
            raise _damaged(path, f"{prefix}{name}", repr(plain), truncate_repr(settings[name]))


def _damaged(path: Path, name: str, expected: str, value: str) -> InputError:
    return InputError(f"{path}: `{name}`: expected {expected}, got {value}. {_FIX}")
