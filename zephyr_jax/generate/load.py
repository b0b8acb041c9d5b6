"""A model that can be asked: found first, with everything checked, then loaded into an engine."""

import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint_cache import weights_state
from zephyr_jax.checkpoint.hf.model_files import check_declared_stops, declared_stops
from zephyr_jax.checkpoint.inheritance import inherit_model, prompt_tokenizer
from zephyr_jax.checkpoint.resolve import ModelSource, abstract_of, check_vocabulary, find_model, load_weights
from zephyr_jax.config.sampling import MAX_STOP_IDS
from zephyr_jax.config.sections import ForwardOptions, MeshOptions
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.generate.engine import Engine, Request, cache_bytes
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.parallel.hosts import require_single_process
from zephyr_jax.parallel.sharding import ShardingRules, init_devices

_CONTEXT = 4096


@dataclass(frozen=True)
class Found:
    """A model before its weights are read."""

    source: ModelSource
    options: ForwardOptions
    rules: ShardingRules
    rows: int
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    """Ids that end an answer: the tokenizer's end token, those in generation_config.json and, after `speaking`, those of the
    chat template."""

    def engine(self, context: int) -> Engine:
        """Read the weights. Raises InputError, also where the cache does not fit into this machine's memory."""
        model = abstract_of(self.source.model_config, self.options, self.rules)
        _check_cache(cache_bytes(model, self.rows, context), self.rows, context)
        return Engine(model, load_weights(self.source, model), self.rules, rows=self.rows, context=context)

    @property
    def identity(self) -> dict[str, str]:
        """What tells this model's answers from another's, for journals."""
        return {
            "model": self.source.asked,
            "weights": weights_state(self.source),
            "tokenizer": blake2b(self.tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest(),
            "compute_dtype": self.options.compute_dtype,
        }

    def chat_tokenizer(self, template: str | None) -> ChatTokenizer:
        """Conversations to tokens by the template named, or by the checkpoint's own, or Zephyr's. Raises InputError."""
        return prompt_tokenizer(self.source, self.tokenizer, template)

    def speaking(self, tokenizer: ChatTokenizer) -> "Found":
        """The same model, whose answers also end at the tokens that end an answer under the chat template. Raises InputError."""
        stops = tuple(sorted({*self.stops, *tokenizer.stop_ids}))
        if len(stops) > MAX_STOP_IDS:
            raise InputError(
                f"Expected at most {MAX_STOP_IDS} end tokens of {self.source.asked}, got {len(stops)}: {join_items(stops)}. "
                "Remove those that end no answer from eos_token_id in its generation_config.json."
            )
        return replace(self, stops=stops)

    def text(self, tokens: Sequence[int]) -> str:
        """New tokens as text, without the one that ended them."""
        ended = bool(tokens) and tokens[-1] in self.stops
        return str(self.tokenizer.decode(tokens[:-1] if ended else tokens))

    def context(self, asked: int | None = None) -> int:
        """Tokens of prompt and answer: as asked, or 4,096, but never more positions than the model has."""
        return min(asked or _CONTEXT, self.source.model_config.max_positions or asked or _CONTEXT)


def fitted(prompt: np.ndarray, most: int, context: int) -> tuple[np.ndarray, int]:
    """A prompt and how many tokens to make, so that both fit: up to half of the context is kept for the answer, and a longer
    prompt loses what comes after its first token."""
    room = context - min(most, context // 2)
    if len(prompt) > room:
        prompt = np.concatenate([prompt[:1], prompt[len(prompt) - room + 1 :]])
    return prompt, min(most, context - len(prompt))


def say_cut(cut: int) -> None:
    """Tell that prompts were cut, where any was."""
    if cut:
        print(f"{cut:,} prompts were longer than the context and lost their beginnings", file=sys.stderr)


def answers(engine: Engine, requests: Mapping[int, Request]) -> Iterator[tuple[int, list[int]]]:
    """Key and new tokens of each request, as they end; says how fast."""
    begun = time.perf_counter()
    asked = {engine.submit(request): key for key, request in requests.items()}
    made: dict[int, list[int]] = {number: [] for number in asked}
    for piece in engine.run():
        made[piece.number] += piece.tokens
        if piece.end:
            yield asked[piece.number], made[piece.number]
    seconds, count = time.perf_counter() - begun, sum(map(len, made.values()))
    print(f"{len(made):,} answers, {count:,} tokens, {count / seconds:,.0f} tokens/s", file=sys.stderr)


def find_speaker(verb: str, options: ForwardOptions, mesh: MeshOptions, rows: int) -> Found:
    """Find a model and lay out a mesh for generation. Raises InputError.

    A mesh that is left as it is by default becomes one in which no weight has to be gathered for a token: as much `tensor`
    as the heads allow, the rest `data`. `rows` are rounded up to what the mesh divides.
    """
    source = find_model(options)
    options = inherit_model(verb, options, source)
    rules = init_devices(mesh)
    if replace(mesh, emulated_devices=None) == MeshOptions():
        rules = init_devices(
            replace(mesh, data=-1, fsdp=1, tensor=_most_tensor(source.model_config, jax.device_count()))
        )
    require_single_process(verb)
    parts = rules.num_shards("batch")
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(source.model_config, tokenizer, source.asked)
    return Found(source, options, rules, -(-rows // parts) * parts, tokenizer, _stop_ids(source, tokenizer))


def _check_cache(needed: int, rows: int, context: int) -> None:
    """Raise InputError where a cache of so many bytes is larger than the memory of all devices together."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.devices()]
    memory = sum(limits) if all(limits) else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise InputError(
            f"The cache of {rows:,} rows with a context of {context:,} tokens needs {needed / 2**30:,.1f} GiB; the devices have "
            f"{memory / 2**30:,.1f} GiB. Lower batch_size (of `serve`: max_concurrency), context_length or max_new_tokens."
        )


def _most_tensor(shape: ModelConfig, devices: int) -> int:
    return math.gcd(devices, shape.num_heads, shape.num_kv_heads, shape.d_ff)


def _stop_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    check_declared_stops(source)
    ids = (*declared_stops(source), tokenizer.eos_token_id)
    return tuple(sorted({int(index) for index in ids if index is not None}))
