"""Two answers before a judge: AlpacaEval's prompts, which answer stands first, and what a verdict says.

The prompts are those of the package `alpaca-eval` (its evaluators `alpaca_eval_gpt4`, version 1, and
`weighted_alpaca_eval_gpt4_turbo`, version 2), read from where it is installed or from a file; none is part of this project.
"""

import ast
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from zephyr_jax.chat.message import Message
from zephyr_jax.clients.base import ChatRequest, ChatResponse
from zephyr_jax.clients.reasoning import starts_reasoning, strip_reasoning
from zephyr_jax.errors import InputError, truncate_repr
from zephyr_jax.evaluate.prompt_fields import filled
from zephyr_jax.storage.files import check_regular

type Version = Literal[1, 2]
_PROMPTS: dict[Version, str] = {
    1: "alpaca_eval_gpt4/alpaca_eval.txt",
    2: "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
}
_FIELDS = ("instruction", "output_1", "output_2")
_FIRST, _SECOND = "m", "M"
"""What version 2 calls the answers."""
_ROUNDING = 1e-3  # nats above zero that a log-prob may have by rounding
_LEAST_CHANCE = 1e-4  # of the two names together, for the first token to be a choice between them
_LONGEST_LIST = 20_000  # characters of a verdict
_NAMES = ("model_1", "model_2")
"""What version 1 calls them."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction; `first` is the baseline's, `second` the model's."""

    instruction: str
    first: str
    second: str


@dataclass(frozen=True)
class Judge:
    """A way to ask for a verdict."""

    version: Version
    template: str
    seed: int = 0
    swap: bool = False
    """Ask in both orders and take the mean; off: one order for each pair, drawn from the seed and the pair itself."""

    def asks(self, pair: Pair) -> list[tuple[bool, ChatRequest]]:
        """The requests for a pair, each with whether the model's answer stands first in it; none where both say the same."""
        if pair.first == pair.second:
            return []
        orders = (False, True) if self.swap else (self._drawn(pair),)
        return [(swapped, self._ask(pair, swapped)) for swapped in orders]

    def preference(self, asked: Sequence[tuple[bool, ChatRequest]], said: Sequence[ChatResponse]) -> float:
        """From 1 (the baseline's answer is better) to 2 (the model's is); NaN where a verdict says neither, 1.5 without any."""
        found = []
        for (swapped, _), each in zip(asked, said, strict=True):
            value = math.nan if each.refusal else (ranking_in(each.text) if self.version == 1 else choice_in(each))
            found.append(3 - value if swapped else value)
        return fmean(found) if found else 1.5

    def _drawn(self, pair: Pair) -> bool:
        text = repr((self.seed, pair.instruction, pair.first, pair.second))
        return bool(blake2b(text.encode(), digest_size=1).digest()[0] & 1)

    def _ask(self, pair: Pair, swapped: bool) -> ChatRequest:
        outputs = (pair.second, pair.first) if swapped else (pair.first, pair.second)
        messages = messages_of(self.template, dict(zip(_FIELDS, (pair.instruction, *outputs), strict=True)))
        return ChatRequest(messages, 0.0, 100) if self.version == 1 else ChatRequest(messages, 1.0, 1, top_logprobs=5)


def open_template(place: str | None, version: Version) -> str:
    """The judge's prompt, from a file or the installed package. Raises InputError."""
    if place is None:
        found = find_spec("alpaca_eval")
        if found is None or not found.submodule_search_locations:
            raise InputError(
                "AlpacaEval's judge prompts are not here. The package alpaca-eval ships them: begin with `uv run --extra "
                "alpaca-eval zephyr-jax`, or install it beside zephyr-jax. Or name a file like its "
                f"{_PROMPTS[version]} in `judge_prompt`."
            )
        place = str(Path(found.submodule_search_locations[0]) / "evaluators_configs" / _PROMPTS[version])
    check_regular(place)
    try:
        template = Path(place).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Cannot read the judge's prompt {place}: {error}. Name the file in `judge_prompt`."
        ) from error
    missing = [name for name in _FIELDS if f"{{{name}}}" not in template]
    if missing or not messages_of(template, {}):
        raise InputError(
            f"{place} is no judge's prompt: it needs {{instruction}}, {{output_1}} and {{output_2}} between <|im_start|>ROLE "
            f"and <|im_end|>, and begins {truncate_repr(template)}."
        )
    return template


def messages_of(template: str, fields: dict[str, str]) -> tuple[Message, ...]:
    """Messages from a prompt file, whose parts stand between <|im_start|>ROLE and <|im_end|>.

    Fields go in after the parts were told apart, so that nothing in an answer can end a message or open another.
    """
    parts = re.findall(r"<\|im_start\|>(system|user|assistant)\n(.*?)\n?<\|im_end\|>", template, re.DOTALL)
    return tuple({"role": role, "content": filled(content, fields)} for role, content in parts)


def ranking_in(text: str) -> float:
    """Version 1: the rank of the first answer in a list of `{'model': ..., 'rank': ...}`; NaN where there is none.

    A thought before it and words or a fence around the list are passed over; two models of the same rank, and two ranks of one
    model, are no verdict.
    """
    answer = strip_reasoning(text)
    start, end = answer.find("["), answer.rfind("]") + 1
    if not 0 <= start < end <= start + _LONGEST_LIST:
        return math.nan
    try:
        rows = ast.literal_eval(answer[start:end])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: a key that cannot be one
        return math.nan
    ranks: dict[str, list[Any]] = {name: [] for name in _NAMES}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("model"), str) and row["model"] in ranks:
            ranks[row["model"]].append(row.get("rank"))
    verdict = [found[0] if found and found.count(found[0]) == len(found) else None for found in ranks.values()]
    numbers = [rank for rank in verdict if isinstance(rank, int | float) and not isinstance(rank, bool)]
    return float(numbers[0]) if numbers in ([1, 2], [2, 1]) else math.nan


def choice_in(said: ChatResponse) -> float:
    """Version 2: 1 and the chance of the second name in the first token's log-probs; without these, the name in the text.

    The log-probs are no preference, and the text decides, where the first token begins a thought or hardly any chance is on the
    two names. Numbers that are no log-probs (NaN, or above zero) make the whole verdict none: NaN.
    """
    if not all(value <= _ROUNDING for value in said.first_token_logprobs.values()):  # NaN compares as false
        return math.nan
    answer = strip_reasoning(said.text)
    likeliest = max(said.first_token_logprobs, key=lambda token: said.first_token_logprobs[token], default="")
    chances = {
        name: math.exp(said.first_token_logprobs[name])
        for name in (_FIRST, _SECOND)
        if name in said.first_token_logprobs
    }
    if sum(chances.values()) >= _LEAST_CHANCE and not starts_reasoning(said.text) and not starts_reasoning(likeliest):
        return 1 + chances.get(_SECOND, 0.0) / sum(chances.values())
    return {_FIRST: 1.0, _SECOND: 2.0}.get(answer.strip()[:_LONGEST_LIST].strip("\"'`."), math.nan)
