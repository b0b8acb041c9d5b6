"""What several tests build: a model on a mesh, and packed rows."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from zephyr_jax.batch import Rows, TokenBatch, empty_rows, empty_shared_rows
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.checkpoint.opened import AbstractModel, open_model
from zephyr_jax.checkpoint.training_format import open_for_training
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import MeshOptions, ModelOptions, Remat
from zephyr_jax.data.loader import lay_out_segments
from zephyr_jax.data.shared_prompt import lay_out_shared
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.decoder import build
from zephyr_jax.objective.logprob import Parameters
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules


@dataclass(frozen=True)
class Loaded:
    """A model with its weights."""

    model: AbstractModel
    parameters: Parameters
    rules: ShardingRules


def load(folder: Path, devices: int = 1, dtype: str = "float32", remat: Remat = Remat.FULL, **mesh: int) -> Loaded:
    """A checkpoint on a mesh of the first `devices` devices."""
    return load_on(folder, make_rules(devices, **mesh), dtype, remat)


def load_on(folder: Path, rules: ShardingRules, dtype: str = "float32", remat: Remat = Remat.FULL) -> Loaded:
    """A checkpoint on a given mesh."""
    options = ModelOptions(path=str(folder), compute_dtype=dtype, remat=remat)
    opened = open_model(options, rules)
    return Loaded(opened.abstract, opened.load_weights(), rules)


def load_adapted(
    folder: Path, adapter_options: AdapterOptions, rules: ShardingRules, dtype: str = "float32", **model: Any
) -> Loaded:
    """A checkpoint as training stores it; `model` are further settings of the model, such as `adapter`, a PEFT folder."""
    options = ModelOptions(path=str(folder), compute_dtype=dtype, **model)
    opened = open_for_training(options, adapter_options, rules, seed=0)
    return Loaded(opened.abstract, opened.load_weights(), rules)


def make_rules(devices: int = 1, **mesh: int) -> ShardingRules:
    """Of a mesh of the first `devices` devices."""
    return ShardingRules(make_mesh(MeshOptions(**mesh), jax.devices()[:devices]))


def logits(loaded: Loaded, batch: TokenBatch) -> jax.Array:
    """float32 [B, L, V]."""

    @jax.jit
    def forward(parameters: Parameters) -> jax.Array:
        model = build(loaded.model.definition, parameters)
        return model.logits(model(batch.tokens, SegmentInfo(batch.segments, batch.positions)))

    return forward(loaded.parameters)


def whole_rows(tokens: np.ndarray, first_target: int = 1) -> TokenBatch:
    """Rows of one segment each; tokens from `first_target` on are targets."""
    columns = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TokenBatch(
        jnp.asarray(tokens, jnp.int32),
        jnp.ones(tokens.shape, jnp.int32),
        jnp.asarray(columns),
        jnp.asarray(columns >= first_target),
    )


def packed_rows(segments: list[list[np.ndarray]], length: int, prompt: int = 3, gap: int = 0) -> TokenBatch:
    """Rows of several segments; the first `prompt` tokens of each are no targets; `gap` columns of padding before each."""
    fields = [np.zeros((len(segments), length), np.int32) for _ in range(3)]
    targets = np.zeros((len(segments), length), bool)
    for row, parts in enumerate(segments):
        cursor = 0
        for number, tokens in enumerate(parts, 1):
            cursor += gap
            span = slice(cursor, cursor + len(tokens))
            for field, value in zip(fields, (tokens, number, np.arange(len(tokens))), strict=True):
                field[row, span] = value
            targets[row, span] = np.arange(len(tokens)) >= prompt
            cursor = span.stop
    return TokenBatch(*(jnp.asarray(field) for field in (*fields, targets)))


def random_segments(sizes: list[int], vocab: int = 96, seed: int = 0) -> list[np.ndarray]:
    """Token ids of segments of these sizes."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab, size).astype(np.int32) for size in sizes]


def answered(sizes: tuple[int, ...], vocab: int = 96, seed: int = 0) -> list[Segment]:
    """An example: a prompt of `sizes[0]` tokens with an answer of each further size, whose tokens are the targets."""
    prompt, *answers = random_segments(list(sizes), vocab, seed)
    return [Segment(np.r_[prompt, answer], np.arange(len(prompt) + len(answer)) >= len(prompt)) for answer in answers]


def laid_out(lines: list[list[list[Segment]]], length: int, unshared: int | None = None) -> Rows:
    """Rows of examples; with shared prompts where the un-shared row has a length."""
    if unshared is None:
        rows = empty_rows(len(lines), length)
        for line, examples in enumerate(lines):
            lay_out_segments(rows, line, [segment for example in examples for segment in example])
        return jax.tree.map(jnp.asarray, rows)
    each = max(len(example) for examples in lines for example in examples)
    shared = empty_shared_rows(len(lines), length, unshared, each)
    for line, examples in enumerate(lines):
        lay_out_shared(shared, line, examples)
    return jax.tree.map(jnp.asarray, shared)


def resized(folder: Path, out: Path, vocab: int) -> Path:
    """A copy of a Hugging Face folder with `vocab` rows in its embedding and unembedding, cut or drawn at random."""
    shutil.copytree(folder, out)
    tensors, rng = load_file(out / "model.safetensors"), np.random.default_rng(0)
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
        more = max(0, vocab - len(tensors[name]))
        drawn = rng.normal(0, tensors[name].std(), (more, tensors[name].shape[1])).astype(tensors[name].dtype)
        tensors[name] = np.ascontiguousarray(np.concatenate([tensors[name], drawn])[:vocab])
    save_file(tensors, out / "model.safetensors")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "vocab_size": vocab}))
    return out
