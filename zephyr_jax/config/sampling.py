"""Sampling parameters: their bounds, shared by command line, HTTP, tasks and checkpoint files, and the settings of commands."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from zephyr_jax.errors import InputError, truncate_repr

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy: float32 logits divided by it overflow."""
MAX_TEMPERATURE = 100.0
MIN_TOP_P = 1e-6
"""A smaller nucleus holds the likeliest token alone, as this one does."""
MAX_TOP_K = 2**31 - 1
MAX_SEED = 2**63 - 1
MAX_NEW_TOKENS = 2**31 - 1
MAX_STOP_IDS = 64
"""Token ids that may end one answer."""

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE)]
MaxNewTokens = Annotated[int, Field(gt=0, le=MAX_NEW_TOKENS)]
TopK = Annotated[int, Field(ge=0, le=MAX_TOP_K)]
TopP = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class SamplingOptions:
    """The sampling settings of a command."""

    max_new_tokens: MaxNewTokens = 256
    """Maximum length of an answer in tokens."""
    temperature: Temperature = 0.0
    """Sampling temperature. 0: greedy decoding; 1: the model's own distribution."""
    top_p: TopP = 1.0
    """Nucleus (top-p) sampling: sample from the smallest set of tokens with this probability mass. 1: from all."""
    seed: Seed = 0
    """Sampling seed."""


@dataclass(frozen=True)
class TopKSamplingOptions(SamplingOptions):
    """The sampling settings of commands that always decode in this process."""

    top_k: TopK = 0
    """Top-k sampling: sample from this many most likely tokens. 0: from all."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request. Values are checked and normalized in the constructor.

    Args:
        temperature: 0 to 100; 0 (and below 1e-5): the likeliest token each time (greedy).
        top_p: above 0, to 1; probability mass of the nucleus.
        top_k: 0 to 2**31 - 1; number of likeliest tokens to draw from, 0 for all.
        seed: integers from 0 to 2**63 - 1; the PRNG key is derived from all of them, in order.

    Raises:
        InputError: for a value outside its bounds or of another type.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        temperature = _real("temperature", self.temperature, 0.0, MAX_TEMPERATURE, "0 is greedy")
        top_p = _real("top_p", self.top_p, 0.0, 1.0, "1 keeps all tokens")
        if top_p == 0:
            raise InputError("top_p is 0. Expected a number above 0, at most 1; 1 keeps all tokens.")
        object.__setattr__(self, "temperature", temperature if temperature >= GREEDY_BELOW else 0.0)
        object.__setattr__(self, "top_p", max(top_p, MIN_TOP_P))
        object.__setattr__(self, "top_k", _integer("top_k", self.top_k, MAX_TOP_K))
        if not self.seed:
            raise InputError("seed is empty. Expected at least one integer.")
        object.__setattr__(self, "seed", tuple(_integer("seed", number, MAX_SEED) for number in self.seed))


def check_stop_ids(ids: Any, vocab: int, source: str) -> tuple[int, ...]:
    """Token ids that end an answer, sorted, each once.

    Args:
        ids: None, one id, or a sequence of ids, as `eos_token_id` of a generation_config.json may be.
        vocab: number of tokens of the model.
        source: file or setting for the message.

    Raises:
        InputError: for anything but integers from 0 to `vocab` - 1, and for more than 64 of them.
    """
    listed = () if ids is None else ids if isinstance(ids, Sequence) and not isinstance(ids, str) else (ids,)
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab:
            raise InputError(
                f"{source}: expected end token ids from 0 to {vocab - 1:,} (one integer or a list), got {truncate_repr(value)}. "
                "Correct the file, or remove the entry."
            )
    if len(set(listed)) > MAX_STOP_IDS:
        raise InputError(
            f"{source}: expected at most {MAX_STOP_IDS} end token ids, got {len(set(listed))}. Remove those that do not end "
            "an answer."
        )
    return tuple(sorted(set(listed)))


def _real(name: str, value: Any, low: float, high: float, hint: str) -> float:
    try:
        number = math.nan if isinstance(value, bool | str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise InputError(f"{name} is {truncate_repr(value)}. Expected a number from {low:g} to {high:g}; {hint}.")
    return number


def _integer(name: str, value: Any, high: int) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= high:
        raise InputError(f"{name} is {truncate_repr(value)}. Expected an integer from 0 to {high:,}.")
    return number
