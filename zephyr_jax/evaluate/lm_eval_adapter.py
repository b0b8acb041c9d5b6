"""Our models under EleutherAI's `lm-eval`: its log-likelihoods are `sequence_logprob`, its texts come from our engine.

Requests are cut, and texts become tokens, as in its own backend for Hugging Face models (`lm_eval.models.huggingface`), so that
numbers compare with those of leaderboards. Only imported where lm-eval is installed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.data.examples import examples_of
from zephyr_jax.errors import InputError
from zephyr_jax.generate.engine import Engine, GenerationRequest
from zephyr_jax.generate.text_stream import TextStream
from zephyr_jax.reference.score import Scorer

type Tokens = list[int]
_MOST = 256
"""Tokens of an answer, where a task does not say."""


@dataclass(frozen=True)
class Parts:
    """What the adapter is made of."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    scorer: Callable[[int], Scorer]
    """Row length -> what scores rows of it, and tells what is greedy."""
    engine: Callable[[], Engine]
    """Called when a task wants text."""
    context: int
    """Tokens that the model sees at most."""
    stops: tuple[int, ...]
    """Ids that end an answer."""
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass
class Truncated:
    """Requests that did not fit into the context and lost their beginnings, as in lm-eval's own backend."""

    asked: int = 0
    cut: int = 0
    tokens: int = 0
    """Tokens that were lost, in all requests together."""

    def count(self, whole: int, kept: int) -> None:
        """Count a request of `whole` tokens of which `kept` were used."""
        self.asked += 1
        self.cut += kept < whole
        self.tokens += whole - kept


class ZephyrLM(TemplateLM):
    """The model as lm-eval wants it: `lm_eval.simple_evaluate(model=ZephyrLM(parts), tasks=[...])`."""

    def __init__(self, parts: Parts):
        super().__init__()
        self._parts, self.tokenizer = parts, parts.tokenizer
        self._engine: Engine | None = None
        self.truncated = Truncated()

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: BOS, or where there is none the end token."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Tokens that the model sees at most."""
        return self._parts.context

    @property
    def tokenizer_name(self) -> str:
        """Part of lm-eval's names of cached requests."""
        return self._parts.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation; an answer that was begun at its end is gone on with."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Tokens:
        """Token ids; unless told, BOS comes first as the tokenizer has it, but never twice."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(str(bos)))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probs of whole texts, in windows of the model's length."""
        windows = [
            (place, window)
            for place, request in enumerate(requests)
            for window in map(make_disjoint_window, self._windows(request.args[0]))
        ]
        found = self._loglikelihood_tokens([(("", ""), *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (place, _), (value, _) in zip(windows, found, strict=True):
            totals[place] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> list[tuple[Tokens, Tokens]]:
        return list(get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], Tokens, Tokens]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-prob and greediness of each continuation; what does not fit loses its beginning."""
        segments = [self._segment(context, continuation) for _, context, continuation in requests]
        examples = examples_of(segments)
        row_length = _rounded(int(examples.lengths.max()))
        sums, greedy = np.zeros(len(segments)), np.zeros(len(segments), np.bool_)
        for batch in self._parts.scorer(row_length).score(examples, self._parts.progress):
            sums[batch.examples] = batch.sums[:, 0]
            assert batch.greedy is not None
            greedy[batch.examples] = batch.greedy[:, 0]
        found = [(float(value), bool(best)) for value, best in zip(sums, greedy, strict=True)]
        for (texts, _context, _continuation), answer in zip(requests, found, strict=True):
            if texts[1]:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def _segment(self, context: Tokens, continuation: Tokens) -> Segment:
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"a continuation has {len(continuation):,} tokens; there must be one, and the model sees {self.max_length:,}"
            )
        context = context or [self.prefix_token_id]  # the first target needs a token before it
        whole = [*context, *continuation]
        tokens = whole[-(self.max_length + 1) :]  # the last one is only predicted
        self.truncated.count(len(whole), len(tokens))
        return Segment(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(tokens) - len(continuation))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers up to their stop strings, many at a time."""
        self._engine = engine = self._engine or self._parts.engine()
        made = [""] * len(requests)
        streams: dict[int, TextStream] = {}
        asked: dict[int, int] = {}
        for place, request in enumerate(requests):
            context, settings = request.args
            whole, stops = self._wanted(context, settings, place)
            number = engine.submit(whole)
            asked[number], streams[number] = place, TextStream(self.tokenizer, self._parts.stops, stops)
        for output in engine.run():
            stream = streams[output.request_id]
            made[asked[output.request_id]] += stream.feed(output.tokens, last=bool(output.finish_reason))
            if stream.stopped:
                engine.cancel(output.request_id)
        for request, text in zip(requests, made, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return made

    def _wanted(self, context: str, settings: dict[str, Any], place: int) -> tuple[GenerationRequest, list[str]]:
        """The request for a text, and the strings that end it."""
        how = dict(normalize_gen_kwargs(settings, default_max_gen_toks=_MOST))
        end = self.tokenizer.decode(self.eot_token_id)
        stops = [each for each in handle_stop_sequences(how.get("until"), eos=None) if each != end]
        most = int(how["max_gen_toks"])
        if not 0 < most < self.max_length:
            raise InputError(
                f"max_gen_toks is {most:,} and the context {self.max_length:,} tokens: expected at least 1 and less than the "
                "context, which also holds the question. Lower max_gen_toks in the task's generation_kwargs, or raise "
                "`context_length`."
            )
        whole = self.tok_encode(context)
        prompt = np.array(whole[-(self.max_length - most) :], np.int32)
        self.truncated.count(len(whole), len(prompt))
        temperature = float(how.get("temperature", 0.0)) if how.get("do_sample") else 0.0
        top_p, top_k = float(how.get("top_p", 1.0)), int(how.get("top_k", 0))
        sampling = SamplingParams(temperature, top_p, top_k, seed=(0, place))
        return GenerationRequest(prompt, most, self._parts.stops, sampling), stops


def _rounded(length: int) -> int:
    """A multiple of 128, so that few programs are compiled."""
    return -(-length // 128) * 128
