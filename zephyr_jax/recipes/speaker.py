"""A model that can be asked: found first, with everything checked, then loaded into an engine."""

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from transformers import PreTrainedTokenizerBase

from zephyr_jax.checkpoint.huggingface import read_json
from zephyr_jax.checkpoint.known import weights_state
from zephyr_jax.checkpoint.source import ModelSource, abstract_of, check_vocabulary, find_model, load_weights
from zephyr_jax.config import MeshOptions, ModelOptions
from zephyr_jax.data.chat import load_template
from zephyr_jax.data.tokens import ChatTokenizer, load_tokenizer
from zephyr_jax.generation.engine import Engine, Request
from zephyr_jax.model.shape import ModelShape
from zephyr_jax.parallel.hosts import require_alone
from zephyr_jax.parallel.rules import Rules, open_rules

_CONTEXT = 4096


@dataclass(frozen=True)
class Found:
    """A model before its weights are read."""

    source: ModelSource
    options: ModelOptions
    rules: Rules
    rows: int
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    """Ids that end an answer: the tokenizer's end token and those in generation_config.json."""

    def engine(self, context: int) -> Engine:
        """Read the weights. Raises InputError."""
        model = abstract_of(self.source.shape, self.options, self.rules)
        return Engine(model, load_weights(self.source, model), self.rules, rows=self.rows, context=context)

    @property
    def identity(self) -> dict[str, str]:
        """What tells this model's answers from another's, for journals."""
        return {
            "model": self.source.asked,
            "weights": weights_state(self.source),
            "compute_dtype": self.options.compute_dtype,
        }

    def chat_tokenizer(self, template: str | None) -> ChatTokenizer:
        """Conversations to tokens by the template named, or by the checkpoint's own, or Zephyr's. Raises InputError."""
        name = template or ("tokenizer" if self.tokenizer.chat_template else "zephyr")
        if template is None and name == "zephyr":
            print(f"{self.source.asked} has no chat template: `zephyr` is used", file=sys.stderr)
        return ChatTokenizer(self.tokenizer, load_template(name, self.tokenizer))

    def text(self, tokens: Sequence[int]) -> str:
        """New tokens as text, without the one that ended them."""
        ended = bool(tokens) and tokens[-1] in self.stops
        return str(self.tokenizer.decode(tokens[:-1] if ended else tokens))

    def context(self, asked: int | None = None) -> int:
        """Tokens of prompt and answer: as asked, or 4,096, but never more positions than the model has."""
        return min(asked or _CONTEXT, self.source.shape.max_positions or asked or _CONTEXT)


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


def find_speaker(verb: str, options: ModelOptions, mesh: MeshOptions, rows: int) -> Found:
    """Find a model and lay out a mesh for generation. Raises InputError.

    A mesh that is left as it is by default becomes one in which no weight has to be gathered for a token: as much `tensor`
    as the heads allow, the rest `data`. `rows` are rounded up to what the mesh divides.
    """
    source = find_model(options)
    rules = open_rules(mesh)
    if replace(mesh, emulated_devices=None) == MeshOptions():
        rules = open_rules(replace(mesh, data=-1, fsdp=1, tensor=_most_tensor(source.shape, jax.device_count())))
    require_alone(verb)
    parts = rules.parts("batch")
    tokenizer = load_tokenizer(str(source.folder))
    check_vocabulary(source.shape, len(tokenizer), source.asked)
    return Found(source, options, rules, -(-rows // parts) * parts, tokenizer, _stop_ids(source, tokenizer))


def _most_tensor(shape: ModelShape, devices: int) -> int:
    return math.gcd(devices, shape.heads, shape.kv_heads, shape.mlp, shape.vocab)


def _stop_ids(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    settings = source.folder / "generation_config.json"
    declared = read_json(settings).get("eos_token_id") if settings.exists() else None
    ids = declared if isinstance(declared, list) else [declared]
    return tuple(sorted({int(each) for each in (*ids, tokenizer.eos_token_id) if each is not None}))
