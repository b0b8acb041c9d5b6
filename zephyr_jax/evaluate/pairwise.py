"""Pairwise comparison by a judge: AlpacaEval's prompts, the order of the two answers, and how a verdict is parsed.

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
from zephyr_jax.evaluate.prompt_fields import fill_template
from zephyr_jax.storage.files import check_regular

type Version = Literal[1, 2]
_PROMPTS: dict[Version, str] = {
    1: "alpaca_eval_gpt4/alpaca_eval.txt",
    2: "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
}
_FIELDS = ("instruction", "output_1", "output_2")
_FIRST, _SECOND = "m", "M"
"""Names of the answers in version 2."""
_ROUNDING = 1e-3  # nats above zero that a log-prob may have by rounding
_LEAST_CHANCE = 1e-4  # of the two names together, for the first token to be a choice between them
_LONGEST_LIST = 20_000  # characters of a verdict
_NAMES = ("model_1", "model_2")
"""Names of the answers in version 1."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one instruction; `first` is the baseline's, `second` the model's."""

    instruction: str
    first: str
    second: str


@dataclass(frozen=True)
class PairwiseJudge:
    """Makes judge requests and parses verdicts."""

    version: Version
    template: str
    seed: int = 0
    swap: bool = False
    """Average over both orders; off: one order per pair, drawn from the seed and the pair."""

    def requests(self, pair: Pair) -> list[tuple[bool, ChatRequest]]:
        """Requests for a pair, each with whether the model's answer comes first; empty where the answers are equal."""
        if pair.first == pair.second:
            return []
        orders = (False, True) if self.swap else (self._draw_order(pair),)
        return [(swapped, self._request(pair, swapped)) for swapped in orders]

    def preference(self, requests: Sequence[tuple[bool, ChatRequest]], responses: Sequence[ChatResponse]) -> float:
        """From 1 (the baseline's answer is better) to 2 (the model's is); NaN for an unparsable verdict, 1.5 without requests."""
        values = []
        for (swapped, _), response in zip(requests, responses, strict=True):
            parsed = parse_ranking(response.text) if self.version == 1 else parse_choice(response)
            value = math.nan if response.refusal else parsed
            values.append(3 - value if swapped else value)
        return fmean(values) if values else 1.5

    def _draw_order(self, pair: Pair) -> bool:
        text = repr((self.seed, pair.instruction, pair.first, pair.second))
        return bool(blake2b(text.encode(), digest_size=1).digest()[0] & 1)

    def _request(self, pair: Pair, swapped: bool) -> ChatRequest:
        outputs = (pair.second, pair.first) if swapped else (pair.first, pair.second)
        messages = messages_of(self.template, dict(zip(_FIELDS, (pair.instruction, *outputs), strict=True)))
        return ChatRequest(messages, 0.0, 100) if self.version == 1 else ChatRequest(messages, 1.0, 1, top_logprobs=5)


def open_template(path: str | None, version: Version) -> str:
    """The judge's prompt, from a file or the installed package. Raises InputError."""
    if path is None:
        package = find_spec("alpaca_eval")
        if package is None or not package.submodule_search_locations:
            raise InputError(
                "AlpacaEval's judge prompts are part of the package alpaca-eval, which is not installed. Run `uv run --extra "
                f"alpaca-eval zephyr-jax ...`, or set `judge_prompt` to a file like its {_PROMPTS[version]}."
            )
        path = str(Path(package.submodule_search_locations[0]) / "evaluators_configs" / _PROMPTS[version])
    check_regular(path)
    try:
        template = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"Could not read the judge prompt {path}: {error}. Set `judge_prompt` to a text file."
        ) from error
    missing = [name for name in _FIELDS if f"{{{name}}}" not in template]
    if missing or not messages_of(template, {}):
        raise InputError(
            f"{path}: expected {{instruction}}, {{output_1}} and {{output_2}} between <|im_start|>ROLE and <|im_end|>, got "
            f"{truncate_repr(template)}."
        )
    return template


def messages_of(template: str, fields: dict[str, str]) -> tuple[Message, ...]:
    """Messages of a prompt file with <|im_start|>ROLE ... <|im_end|> blocks.

    Fields are filled in after the blocks are split, so that text in an answer cannot end a message or start another.
    """
    parts = re.findall(r"<\|im_start\|>(system|user|assistant)\n(.*?)\n?<\|im_end\|>", template, re.DOTALL)
    return tuple({"role": role, "content": fill_template(content, fields)} for role, content in parts)


def parse_ranking(text: str) -> float:
    """Version 1: the rank of the first answer in a list of `{'model': ..., 'rank': ...}`; NaN without one.

    Reasoning before the list and text or a code fence around it are skipped. Equal ranks of both models, or two ranks of one
    model, give NaN.
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
    verdict = [values[0] if values and values.count(values[0]) == len(values) else None for values in ranks.values()]
    numbers = [rank for rank in verdict if isinstance(rank, int | float) and not isinstance(rank, bool)]
    return float(numbers[0]) if numbers in ([1, 2], [2, 1]) else math.nan


def parse_choice(response: ChatResponse) -> float:
    """Version 2: 1 plus the probability of the second name in the first token's log-probs; without these, the name in the text.

    The text decides where the first token starts reasoning, or the two names have almost no probability. Invalid log-probs (NaN
    or above zero) give NaN.
    """
    if not all(value <= _ROUNDING for value in response.first_token_logprobs.values()):  # NaN compares as false
        return math.nan
    answer = strip_reasoning(response.text)
    likeliest = max(response.first_token_logprobs, key=lambda token: response.first_token_logprobs[token], default="")
    probabilities = {
        name: math.exp(response.first_token_logprobs[name])
        for name in (_FIRST, _SECOND)
        if name in response.first_token_logprobs
    }
    if (
        sum(probabilities.values()) >= _LEAST_CHANCE
        and not starts_reasoning(response.text)
        and not starts_reasoning(likeliest)
    ):
        return 1 + probabilities.get(_SECOND, 0.0) / sum(probabilities.values())
    return {_FIRST: 1.0, _SECOND: 2.0}.get(answer.strip()[:_LONGEST_LIST].strip("\"'`."), math.nan)
