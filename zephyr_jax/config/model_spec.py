"""The grammar of a model on the command line: `PATH` or `[MODEL@]URL`, each with `,key=value` options."""

import re
from dataclasses import dataclass
from typing import Any

from zephyr_jax.config.sampling import MAX_TEMPERATURE
from zephyr_jax.errors import InputError, did_you_mean, truncate_repr

_REMOTE_KEYS = ("api_key_env", "max_tokens_param", "price_per_mtok_in", "price_per_mtok_out")
_KEYS = ("name", "temperature", *_REMOTE_KEYS)
_NUMBERS = {"temperature": MAX_TEMPERATURE, "price_per_mtok_in": 1e6, "price_per_mtok_out": 1e6}


@dataclass(frozen=True)
class ModelSpec:
    """A parsed model specification. Options that are not given have None."""

    path: str | None = None
    """Local checkpoint or hub id; None for a remote model."""
    url: str | None = None
    """Base URL of a remote model; None for a local one."""
    model: str | None = None
    """The remote model's name at its endpoint; None: the only model that is served."""
    name: str | None = None
    """The model's name in output files."""
    temperature: float | None = None
    api_key_env: str | None = None
    """Environment variable with the API key."""
    max_tokens_param: str | None = None
    """Request field of the maximum length: `max_tokens` or `max_completion_tokens`."""
    price_per_mtok_in: float | None = None
    price_per_mtok_out: float | None = None


def parse_model_spec(text: str) -> ModelSpec:
    """Parse `[MODEL@]URL[,key=value]...` or `PATH[,key=value]...`.

    Raises:
        InputError: The model is missing, or an option is unknown, repeated, empty, out of range or for remote models only.
    """
    head, *pairs = re.split(r",(?=\w+=)", text.strip())
    if not head.strip():
        raise InputError(f"Expected PATH or MODEL@http://HOST:PORT/v1 as a model, got {truncate_repr(text)}.")
    options: dict[str, str] = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in _KEYS:
            raise InputError(f"Unknown option `{key}` in the model {truncate_repr(text)}.{did_you_mean(key, _KEYS)}")
        if key in options or not value:
            raise InputError(
                f"Expected one value of `{key}` in the model {truncate_repr(text)}, got {'two' if value else 'none'}."
            )
        options[key] = value
    parameter = options.get("max_tokens_param", "max_tokens")
    if parameter not in ("max_tokens", "max_completion_tokens"):
        raise InputError(
            f"Expected max_tokens or max_completion_tokens as `max_tokens_param` of the model {truncate_repr(text)}, got "
            f"{truncate_repr(parameter)}."
        )
    values: dict[str, Any] = options | {key: _number(text, key, options[key]) for key in _NUMBERS if key in options}
    remote = re.fullmatch(r"(?:(?P<model>.+?)@)?(?P<url>https?://.+)", head)
    if remote:
        return ModelSpec(url=remote["url"], model=remote["model"], **values)
    if unused := [key for key in _REMOTE_KEYS if key in values]:
        raise InputError(
            f"The model {truncate_repr(text)} is a local path, but {', '.join(unused)} applies to remote models only. "
            "Remove it, or write MODEL@http://HOST:PORT/v1."
        )
    return ModelSpec(path=head, **values)


def _number(text: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= _NUMBERS[key]:
        raise InputError(
            f"Expected a number from 0 to {_NUMBERS[key]:g} as `{key}` of the model {truncate_repr(text)}, got "
            f"{truncate_repr(value)}."
        )
    return number
