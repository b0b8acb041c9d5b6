"""A model for text generation: opened with everything checked, then loaded into an engine."""

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.chat.tokenizer import ChatTokenizer
from zephyr_jax.chat.tokenizer_files import load_tokenizer
from zephyr_jax.checkpoint.fingerprint_cache import weights_key
from zephyr_jax.checkpoint.hf.model_files import check_declared_stops, declared_stops
from zephyr_jax.checkpoint.inheritance import inherit_model, prompt_tokenizer
from zephyr_jax.checkpoint.model_source import ModelSource
from zephyr_jax.checkpoint.opened import OpenedModel, inference_format
from zephyr_jax.checkpoint.resolve import check_vocabulary, find_model
from zephyr_jax.config.sampling import MAX_STOP_IDS
from zephyr_jax.config.sections import ForwardOptions, MeshOptions, TemplateValue
from zephyr_jax.errors import InputError, join_items
from zephyr_jax.generate.engine import Engine, GenerationRequest, cache_bytes
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.quantize import CODE_DTYPES
from zephyr_jax.model.weight_format import WeightFormat
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.hosts import require_single_process
from zephyr_jax.parallel.sharding import ShardingRules, init_devices

_logger = logging.getLogger(__name__)
_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True)
class TextModel:
    """A model to generate text with, before its weights are read."""

    opened: OpenedModel
    batch_size: int
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    """Ids that end an answer: the tokenizer's end token, those in generation_config.json and, after `with_chat_stops`, those of
    the chat template."""

    def engine(self, context: int, parameters: Parameters | None = None) -> Engine:
        """Read the weights, unless they are given, and allocate the cache.

        Raises InputError, also for a cache beyond the memory of this machine.
        """
        model = self.opened.abstract
        needed = cache_bytes(model, self.batch_size, context)
        _check_cache(needed, self.batch_size, context, self.rules.mesh.devices.flat)
        weights = self.opened.load_weights() if parameters is None else parameters
        return Engine(model, weights, self.rules, batch_size=self.batch_size, context=context)

    @property
    def source(self) -> ModelSource:
        """Where the model was found."""
        return self.opened.source

    @property
    def rules(self) -> ShardingRules:
        """Sharding of weights, cache and rows."""
        return self.opened.rules

    @property
    def identity(self) -> dict[str, str]:
        """Fields that identify this model's answers in a journal."""
        return {
            "model": self.source.asked,
            "weights": weights_key(self.source),
            "tokenizer": blake2b(self.tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest(),
            "compute_dtype": self.opened.options.compute_dtype,
            "base_format": self.opened.weight_format.name,
        }

    def chat_tokenizer(self, template: str | None, args: Mapping[str, TemplateValue] | None = None) -> ChatTokenizer:
        """The tokenizer with a chat template: the named one, else the checkpoint's own, else Zephyr's. Raises InputError."""
        return prompt_tokenizer(self.source, self.tokenizer, template, args)

    def with_chat_stops(self, tokenizer: ChatTokenizer) -> "TextModel":
        """The same model with the end tokens of the chat template among its stop ids. Raises InputError."""
        stop_ids = tuple(sorted({*self.stop_ids, *tokenizer.stop_ids}))
        if len(stop_ids) > MAX_STOP_IDS:
            raise InputError(
                f"Expected at most {MAX_STOP_IDS} end tokens of {self.source.asked}, got {len(stop_ids)}: "
                f"{join_items(stop_ids)}. Remove those that do not end an answer from eos_token_id in its generation_config.json."
            )
        return replace(self, stop_ids=stop_ids)

    def text(self, tokens: Sequence[int]) -> str:
        """Decode new tokens, without the stop token at their end."""
        ended = bool(tokens) and tokens[-1] in self.stop_ids
        return str(self.tokenizer.decode(tokens[:-1] if ended else tokens))

    def context_length(self, requested: int | None = None) -> int:
        """Tokens of prompt and answer: `requested` or 4,096, at most the positions of the model."""
        length = requested or _DEFAULT_CONTEXT
        return min(length, self.source.model_config.max_positions or length)


def fit_to_context(prompt: np.ndarray, max_new_tokens: int, context: int) -> tuple[np.ndarray, int]:
    """Truncate a prompt so that it leaves room for an answer.

    Args:
        prompt: int32 [n]. A long prompt keeps its first token (BOS) and its end.
        max_new_tokens: desired length of the answer; up to half of the context is reserved for it.
        context: maximum tokens of both.

    Returns:
        The prompt and the possible number of new tokens.
    """
    room = context - min(max_new_tokens, context // 2)
    if len(prompt) > room:
        prompt = np.concatenate([prompt[:1], prompt[len(prompt) - room + 1 :]])
    return prompt, min(max_new_tokens, context - len(prompt))


def log_truncated(num_prompts: int) -> None:
    """Warn about truncated prompts, if any."""
    if num_prompts:
        _logger.warning("truncated %s prompts from the left to the context length", f"{num_prompts:,}")


def generate_tokens(engine: Engine, requests: Mapping[int, GenerationRequest]) -> Iterator[tuple[int, list[int]]]:
    """Run requests; yields the key and the new tokens of each as it ends, and logs the throughput at the end."""
    start = time.perf_counter()
    keys = {engine.submit(request): key for key, request in requests.items()}
    tokens: dict[int, list[int]] = {request_id: [] for request_id in keys}
    for output in engine.run():
        tokens[output.request_id] += output.tokens
        if output.finish_reason:
            yield keys[output.request_id], tokens[output.request_id]
    seconds, count = time.perf_counter() - start, sum(map(len, tokens.values()))
    _logger.info(
        "generated %s samples (%s tokens, %s tok/s)", *(f"{n:,.0f}" for n in (len(tokens), count, count / seconds))
    )


def open_text_model(
    command: str, options: ForwardOptions, mesh: MeshOptions, batch_size: int, *, several_hosts: bool = False
) -> TextModel:
    """Find a model, check it and make a mesh for generation over the devices of this process.

    Args:
        command: name of the command, for errors.
        options: the model.
        mesh: the mesh. Default options become a mesh on which no weight is gathered per token: as much `tensor` parallelism as
            the heads allow, the rest `data`.
        batch_size: rows decoded together, rounded up to a multiple of the batch shards.
        several_hosts: whether the command divides its work over processes.

    Raises:
        InputError: for a model that cannot be used, for a mesh that splits rows, and for several processes unless the command
            supports them.
    """
    source = find_model(options)
    options = inherit_model(command, options, source)
    rules = init_devices(mesh, local=True)
    if replace(mesh, emulated_devices=None) == MeshOptions():
        tensor = _tensor_parallelism(source.model_config, inference_format(source, options))
        rules = init_devices(replace(mesh, data=-1, fsdp=1, tensor=tensor), local=True)
    if not several_hosts:
        require_single_process(command)
    return text_model(OpenedModel(source, options, rules), batch_size)


def _tensor_parallelism(config: ModelConfig, weight_format: WeightFormat) -> int:
    """The largest number of shards of this process's devices that divides heads, feed-forward and blocks of codes."""
    sizes = [config.num_heads, config.num_kv_heads, config.d_ff]
    if weight_format.base_format in CODE_DTYPES:
        sizes += [count // weight_format.block_size for count in (config.num_heads * config.head_dim, config.d_ff)]
    return math.gcd(jax.local_device_count(), *sizes)


def text_model(opened: OpenedModel, batch_size: int) -> TextModel:
    """A model on a mesh with its tokenizer and end tokens; `batch_size` is rounded up to a multiple of the batch shards.

    Raises InputError for a mesh that splits rows, a tokenizer that does not fit the model, and end tokens that it does not have.
    """
    opened.rules.check_unsplit_rows()
    source, shards = opened.source, opened.rules.num_shards("batch")
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(source.model_config, tokenizer, source.asked)
    return TextModel(
        opened=opened,
        batch_size=-(-batch_size // shards) * shards,
        tokenizer=tokenizer,
        stop_ids=_stop_ids(source, tokenizer),
    )


def _check_cache(needed: int, batch_size: int, context: int, devices: Iterable[jax.Device]) -> None:
    """Raise InputError for a cache of `needed` bytes that exceeds the memory of the devices together."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in devices]
    memory = sum(limits) if all(limits) else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise InputError(
            f"The KV cache of {batch_size:,} rows with a context of {context:,} tokens needs {needed / 2**30:,.1f} GiB; "
            f"expected at most {memory / 2**30:,.1f} GiB. Lower batch_size (`serve`: max_concurrency), "
            "context_length or max_new_tokens."
        )


def _stop_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    check_declared_stops(source)
    ids = (*declared_stops(source), tokenizer.eos_token_id)
    return tuple(sorted({int(index) for index in ids if index is not None}))
