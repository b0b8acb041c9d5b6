"""AlpacaEval's judge prompts, the order of the two answers, and the verdicts.

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
from zephyr_jax.evaluate.prompt_fields import fill_fields
from zephyr_jax.storage.files import check_regular

type Version = Literal[1, 2]
_PROMPT_FILES: dict[Version, str] = {
    1: "alpaca_eval_gpt4/alpaca_eval.txt",
    2: "alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt",
}
_FIELDS = ("instruction", "output_1", "output_2")
_TOKENS = ("m", "M")
"""Names of the first and the second answer in version 2."""
_MODELS = ("model_1", "model_2")
"""Names of the first and the second answer in version 1."""
_MAX_LOGPROB = 1e-3  # above zero by rounding only
_MIN_PROB = 1e-4  # of the two names together, for the first token to be a choice between them
_MAX_VERDICT_CHARS = 20_000


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one instruction."""

    instruction: str
    baseline: str
    output: str


@dataclass(frozen=True)
class PairwisePrompt:
    """How a judge compares two answers."""

    version: Version
    template: str
    seed: int = 0
    swap_order: bool = False
    """Ask in both orders and average; otherwise one order per pair, sampled from the seed and the pair."""

    def requests(self, pair: AnswerPair) -> list[tuple[bool, ChatRequest]]:
        """The requests for a pair, each with whether the model's answer comes first; none for equal answers."""
        if pair.baseline == pair.output:
            return []
        orders = (False, True) if self.swap_order else (self._sample_order(pair),)
        return [(swapped, self._request(pair, swapped)) for swapped in orders]

    def preference(self, requests: Sequence[tuple[bool, ChatRequest]], responses: Sequence[ChatResponse]) -> float:
        """From 1 (baseline) to 2 (model); 1.5 for equal answers, NaN with an invalid verdict."""
        values = []
        for (swapped, _), response in zip(requests, responses, strict=True):
            if response.refusal:
                value = math.nan
            else:
                value = parse_ranking(response.text) if self.version == 1 else parse_choice(response)
            values.append(3 - value if swapped else value)
        return fmean(values) if values else 1.5

    def _sample_order(self, pair: AnswerPair) -> bool:
        text = repr((self.seed, pair.instruction, pair.baseline, pair.output))
        return bool(blake2b(text.encode(), digest_size=1).digest()[0] & 1)

    def _request(self, pair: AnswerPair, swapped: bool) -> ChatRequest:
        outputs = (pair.output, pair.baseline) if swapped else (pair.baseline, pair.output)
        messages = parse_prompt(self.template, dict(zip(_FIELDS, (pair.instruction, *outputs), strict=True)))
        if self.version == 1:
            return ChatRequest(messages, temperature=0.0, max_tokens=100)
        return ChatRequest(messages, temperature=1.0, max_tokens=1, top_logprobs=5)


def read_judge_prompt(path: str | None, version: Version) -> str:
    """The judge's prompt from a file, or (None) from the installed package. Raises InputError."""
    if path is None:
        spec = find_spec("alpaca_eval")
        if spec is None or not spec.submodule_search_locations:
            raise InputError(
                "AlpacaEval's judge prompts are not installed. Run `uv run --extra alpaca-eval zephyr-jax ...`, or set "
                f"`judge_prompt` to a copy of {_PROMPT_FILES[version]}."
            )
        path = str(Path(spec.submodule_search_locations[0]) / "evaluators_configs" / _PROMPT_FILES[version])
    check_regular(path)
    try:
        template = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the judge's prompt {path}: {error}. Correct `judge_prompt`.") from error
    if any(f"{{{name}}}" not in template for name in _FIELDS) or not parse_prompt(template, {}):
        raise InputError(
            f"{path}: expected a judge's prompt with {{instruction}}, {{output_1}} and {{output_2}} between <|im_start|>ROLE and "
            f"<|im_end|>, got {truncate_repr(template)}."
        )
    return template


def parse_prompt(template: str, fields: dict[str, str]) -> tuple[Message, ...]:
    """Messages of a prompt file, whose parts are between <|im_start|>ROLE and <|im_end|>.

    Fields are filled after the split into messages, so that an answer can neither end a message nor start one.
    """
    parts = re.findall(r"<\|im_start\|>(system|user|assistant)\n(.*?)\n?<\|im_end\|>", template, re.DOTALL)
    return tuple({"role": role, "content": fill_fields(content, fields)} for role, content in parts)


def parse_ranking(text: str) -> float:
    """Version 1: the rank of the first answer in a list of `{'model': ..., 'rank': ...}`; NaN for anything else.

    Reasoning, words and a code fence around the list are ignored. Equal ranks, and two ranks of one model, are invalid.
    """
    answer = strip_reasoning(text)
    start, end = answer.find("["), answer.rfind("]") + 1
    if not 0 <= start < end <= start + _MAX_VERDICT_CHARS:
        return math.nan
    try:
        rows = ast.literal_eval(answer[start:end])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: an unhashable key
        return math.nan
    ranks: dict[str, list[Any]] = {model: [] for model in _MODELS}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(row.get("model"), str) and row["model"] in ranks:
            ranks[row["model"]].append(row.get("rank"))
    unique = [values[0] if values and values.count(values[0]) == len(values) else None for values in ranks.values()]
    numbers = [rank for rank in unique if isinstance(rank, int | float) and not isinstance(rank, bool)]
    return float(numbers[0]) if numbers in ([1, 2], [2, 1]) else math.nan


def parse_choice(response: ChatResponse) -> float:
    """Version 2: 1 + the probability of the second name, from the first token's log-probs; without them, the name in the text.

    The text decides if the first token starts reasoning, or if the two names have hardly any probability. Invalid log-probs (NaN
    or above zero) make the verdict NaN.
    """
    logprobs = response.first_token_logprobs
    if not all(value <= _MAX_LOGPROB for value in logprobs.values()):  # also true for NaN
        return math.nan
    likeliest = max(logprobs, key=lambda token: logprobs[token], default="")
    first, second = (math.exp(logprobs[token]) if token in logprobs else 0.0 for token in _TOKENS)
    if first + second >= _MIN_PROB and not starts_reasoning(response.text) and not starts_reasoning(likeliest):
        return 1 + second / (first + second)
    name = strip_reasoning(response.text).strip()[:_MAX_VERDICT_CHARS].strip("\"'`.")
    return {_TOKENS[0]: 1.0, _TOKENS[1]: 2.0}.get(name, math.nan)
