"""Adapter to EleutherAI's `lm-eval`: log-likelihoods by `sequence_logprob`, texts by the generation engine.

Requests are tokenized and truncated as in its backend for Hugging Face models (`lm_eval.models.huggingface`), so that results
compare with leaderboards. Imported only if lm-eval is installed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.data.examples import examples_of
from zephyr_jax.errors import InputError
from zephyr_jax.generate.engine import Engine, GenerationRequest
from zephyr_jax.generate.load import TextModel
from zephyr_jax.generate.text_stream import TextStream
from zephyr_jax.reference.score import Scorer

type Tokens = list[int]
_DEFAULT_NEW_TOKENS = 256  # for tasks without max_gen_toks


@dataclass
class TruncationStats:
    """Requests that did not fit into the context and lost their beginnings, as in lm-eval's own backend."""

    asked: int = 0
    cut: int = 0
    tokens: int = 0
    """Lost tokens of all requests."""

    def count(self, num_tokens: int, num_kept: int) -> None:
        """Count a request of `num_tokens` tokens of which the last `num_kept` are used."""
        self.asked += 1
        self.cut += num_kept < num_tokens
        self.tokens += num_tokens - num_kept


class ZephyrLM(TemplateLM):
    """A model for `lm_eval.simple_evaluate(model=...)`.

    Args:
        model: the model; its engine is loaded for the first task that generates text.
        make_scorer: row length -> scorer that also reports greediness.
        context: maximum tokens that the model sees.
        progress: called with completed and total batches.
    """

    def __init__(
        self,
        model: TextModel,
        make_scorer: Callable[[int], Scorer],
        context: int,
        progress: Callable[[int, int], None] = lambda completed, total: None,
    ):
        super().__init__()
        self._model, self._make_scorer, self._context, self._progress = model, make_scorer, context, progress
        self.tokenizer = model.tokenizer
        self._engine: Engine | None = None
        self.truncated = TruncationStats()

    @property
    def eot_token_id(self) -> int:
        """Id of the end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Token before a text without a context: BOS, or the end token of a tokenizer without BOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Maximum tokens that the model sees."""
        return self._context

    @property
    def tokenizer_name(self) -> str:
        """Part of the names of lm-eval's cached requests."""
        return self._model.source.asked.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation; without a generation prompt, its last message is left open to be continued."""
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> Tokens:
        """Token ids. By default the tokenizer adds its BOS token unless the text starts with it."""
        if add_special_tokens is None:
            bos = self.tokenizer.bos_token
            add_special_tokens = not (bos and string.startswith(str(bos)))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probs of whole texts, in disjoint windows of the model's length."""
        windows = [
            (index, window)
            for index, request in enumerate(requests)
            for window in map(make_disjoint_window, self._windows(request.args[0]))
        ]
        scores = self._loglikelihood_tokens([(("", ""), *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (index, _), (value, _) in zip(windows, scores, strict=True):
            totals[index] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _windows(self, text: str) -> list[tuple[Tokens, Tokens]]:
        return list(get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], Tokens, Tokens]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-prob of each continuation, and whether it is greedy. Contexts that do not fit lose their beginnings."""
        segments = [self._segment(context, continuation) for _, context, continuation in requests]
        examples = examples_of([[segment] for segment in segments])
        row_length = -(-int(examples.lengths.max()) // 128) * 128  # few different shapes, so few compiles
        sums, greedy = np.zeros(len(segments)), np.zeros(len(segments), np.bool_)
        for batch in self._make_scorer(row_length).score(examples, self._progress):
            sums[batch.examples] = batch.sums[:, 0]
            assert batch.greedy is not None
            greedy[batch.examples] = batch.greedy[:, 0]
        scores = [(float(value), bool(is_greedy)) for value, is_greedy in zip(sums, greedy, strict=True)]
        for (texts, _context, _continuation), score in zip(requests, scores, strict=True):
            if texts[1]:
                self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def _segment(self, context: Tokens, continuation: Tokens) -> Segment:
        if not 0 < len(continuation) <= self.max_length:
            raise ValueError(
                f"expected a continuation of 1 to {self.max_length:,} tokens (the context), got {len(continuation):,}"
            )
        context = context or [self.prefix_token_id]  # the first target needs a token before it
        full = [*context, *continuation]
        tokens = full[-(self.max_length + 1) :]  # the last one is only predicted
        self.truncated.count(len(full), len(tokens))
        return Segment(np.array(tokens, np.int32), np.arange(len(tokens)) >= len(tokens) - len(continuation))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generated texts up to their stop strings, batched."""
        self._engine = engine = self._engine or self._model.engine(self._context)
        texts = [""] * len(requests)
        streams: dict[int, tuple[int, TextStream]] = {}  # request id -> index and text
        for index, request in enumerate(requests):
            context, settings = request.args
            generation, stops = self._generation_request(context, settings, index)
            streams[engine.submit(generation)] = index, TextStream(self.tokenizer, self._model.stop_ids, stops)
        for output in engine.run():
            index, stream = streams[output.request_id]
            texts[index] += stream.feed(output.tokens, last=bool(output.finish_reason))
            if stream.stopped:
                engine.cancel(output.request_id)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _generation_request(
        self, context: str, settings: dict[str, Any], index: int
    ) -> tuple[GenerationRequest, list[str]]:
        """The engine's request for a text, and its stop strings."""
        options = dict(normalize_gen_kwargs(settings, default_max_gen_toks=_DEFAULT_NEW_TOKENS))
        end = self.tokenizer.decode(self.eot_token_id)
        stops = [stop for stop in handle_stop_sequences(options.get("until"), eos=None) if stop != end]
        max_new_tokens = int(options["max_gen_toks"])
        if not 0 < max_new_tokens < self.max_length:
            raise InputError(
                f"Expected max_gen_toks from 1 to less than the context of {self.max_length:,} tokens, which also holds the "
                f"question, got {max_new_tokens:,}. Lower it in the task's generation_kwargs, or raise `context_length`."
            )
        tokens = self.tok_encode(context)
        prompt = np.array(tokens[-(self.max_length - max_new_tokens) :], np.int32)
        self.truncated.count(len(tokens), len(prompt))
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        top_p, top_k = float(options.get("top_p", 1.0)), int(options.get("top_k", 0))
        sampling = SamplingParams(temperature, top_p, top_k, seed=(0, index))
        return GenerationRequest(prompt, max_new_tokens, self._model.stop_ids, sampling), stops
