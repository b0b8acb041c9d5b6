"""Models as a command names them: `PATH` for a checkpoint of ours, `[MODEL@]ADDRESS` for one behind an OpenAI-compatible
address, each with settings of its own after commas."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Protocol

from zephyr_jax.clients.remote import Ask, Said
from zephyr_jax.config.sampling import MAX_TEMPERATURE
from zephyr_jax.errors import InputError, did_you_mean, truncate_repr

_SETTINGS = ("name", "temperature", "key", "price_per_mtok_in", "price_per_mtok_out")
_NUMBERS = ("temperature", "price_per_mtok_in", "price_per_mtok_out")


class Speaker(Protocol):
    """Whatever answers: an endpoint, or a checkpoint in this process."""

    def ask_all(self, asks: Sequence[Ask], done: Callable[[int], None] = ...) -> list[Said]:
        """All answers, in order, each written down before it is given; `done` is told how many there are."""

    def missing(self, asks: Sequence[Ask]) -> list[Ask]:
        """Those that were never answered, each once."""


@dataclass(frozen=True)
class VoiceWords:
    """A model as it was written on the command line."""

    path: str | None
    """A checkpoint of ours, or None."""
    url: str | None
    """An address, or None; exactly one of the two."""
    model: str | None
    """What the address calls the model; None: the only one that it serves."""
    name: str | None
    """What the rows call it; None: its own name."""
    temperature: float | None
    key: str | None
    """Environment variable with the key of the address."""
    price_per_mtok_in: float | None
    price_per_mtok_out: float | None

    @property
    def called(self) -> str:
        """A name, as far as words can tell."""
        return self.name or self.model or (PurePath(self.path).name if self.path else str(self.url))


@dataclass(frozen=True)
class Voice:
    """A model that can be asked."""

    name: str
    speaker: Speaker
    temperature: float
    price_per_mtok_in: float = 0.0
    """Dollars per million tokens."""
    price_per_mtok_out: float = 0.0


def read_voice(words: str) -> VoiceWords:
    """Take `[MODEL@]ADDRESS[,setting=value]` or `PATH[,setting=value]` apart. Raises InputError."""
    head, *pairs = re.split(r",(?=\w+=)", words.strip())
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in _SETTINGS:
            raise InputError(f"The model {truncate_repr(words)} has a setting `{name}`.{did_you_mean(name, _SETTINGS)}")
        if name in found or not value:
            raise InputError(
                f"The model {truncate_repr(words)} gives `{name}` {'twice' if name in found else 'no value'}."
            )
        found[name] = value
    numbers = {name: _number(words, name, found[name]) if name in found else None for name in _NUMBERS}
    address = re.fullmatch(r"(?:(?P<model>.+?)@)?(?P<url>https?://.+)", head)
    if not head.strip():
        raise InputError(f"The model {truncate_repr(words)} names nothing. Write a path, or MODEL@http://HOST:PORT/v1.")
    if not address and (endpoint_only := found.keys() & {"key", "price_per_mtok_in", "price_per_mtok_out"}):
        raise InputError(
            f"The model {truncate_repr(words)} is no address, so {', '.join(sorted(endpoint_only))} would do nothing. Leave it "
            "out, or write MODEL@http://HOST:PORT/v1."
        )
    url, model = (address["url"], address["model"]) if address else (None, None)
    return VoiceWords(None if address else head, url, model, found.get("name"), key=found.get("key"), **numbers)


def _number(words: str, name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    limit = MAX_TEMPERATURE if name == "temperature" else 1e6
    if not 0 <= number <= limit:
        raise InputError(
            f"The model {truncate_repr(words)} has `{name}` {truncate_repr(value)}. It needs a number, zero or greater, at "
            f"most {limit:g}."
        )
    return number
