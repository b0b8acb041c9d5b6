"""Rows with shared prompts: the same sums and the same gradients as with a copy of the prompt before each answer."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models import Loaded, answered, laid_out, load, load_adapted, make_rules
from zephyr_jax.batch import SharedTokenBatch
from zephyr_jax.chat.tokenizer import Segment
from zephyr_jax.checkpoint.frozen import merge, split
from zephyr_jax.config.adapter import AdapterOptions
from zephyr_jax.config.sections import Remat
from zephyr_jax.model.attention.blockwise import blockwise_attention
from zephyr_jax.model.attention.dense import SegmentInfo, cudnn_attention, dense_attention
from zephyr_jax.model.attention.shared_prompt import SharedInfo, unshared_attention
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, Decoder
from zephyr_jax.model.lora import is_adapter
from zephyr_jax.objective.logprob import Parameters, sequence_logprob, sequence_logprob_and_greedy

SIZES = [(20, 9, 14), (41, 6, 11), (3, 30, 2), (1, 12, 5), (60, 31, 29), (17, 17, 18), (26, 40, 3), (9, 8, 7)]
"""Of prompt, chosen and rejected."""
PAIRS = [answered(sizes, seed=number) for number, sizes in enumerate(SIZES)]
LENGTH, UNSHARED = 192, 384
SHARED_LINES = [PAIRS[:3], PAIRS[3:5], PAIRS[5:7], PAIRS[7:]]
PLAIN_LINES = [PAIRS[:2], PAIRS[2:4], [PAIRS[4]], PAIRS[5:7], [PAIRS[7]], [], [], []]


def sums_of(lines: list[list[list[Segment]]], sums: jax.Array) -> jax.Array:
    """The sums of all segments in the order of the examples."""
    counts = [sum(map(len, examples)) for examples in lines]
    return jnp.concatenate([sums[line, :count] for line, count in enumerate(counts)])


def scored(
    definition: Any, parameters: Parameters, lines: list[list[list[Segment]]], length: int, unshared: int | None = None
) -> tuple[np.ndarray, Parameters]:
    """Sums of all segments, and gradients of their sum with a weight for each: of all weights, or of those of adapters."""
    rows = laid_out(lines, length, unshared)
    segments = max(sum(map(len, examples)) for examples in lines)
    trainable, frozen = split(parameters, is_adapter)
    trainable, frozen = (trainable, frozen) if trainable else (frozen, trainable)

    def weighted(trainable: Parameters, frozen: Parameters) -> tuple[jax.Array, jax.Array]:
        found = sequence_logprob(definition, merge(trainable, frozen), rows, segments=segments, chunk=32)
        sums = sums_of(lines, found.sum)
        return jnp.sum(sums * jnp.sin(1.0 + jnp.arange(len(sums)))), sums

    gradients, sums = jax.jit(jax.grad(weighted, has_aux=True))(trainable, frozen)
    return np.asarray(sums), jax.device_get(gradients)


def assert_equal(found: tuple[np.ndarray, Parameters], expected: tuple[np.ndarray, Parameters]) -> None:
    """Sums to 1e-6, gradients to 5e-6 of the norm of each tensor."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    pairs = zip(jax.tree.leaves_with_path(found[1]), jax.tree.leaves(expected[1]), strict=True)
    for (path, one), other in pairs:
        norm = np.linalg.norm(other)
        assert np.linalg.norm(one - other) <= 5e-6 * norm, (path, np.linalg.norm(one - other) / norm)


def check(
    definition: Any,
    parameters: Parameters,
    shared_lines: list[list[list[Segment]]] = SHARED_LINES,
    plain_lines: list[list[list[Segment]]] = PLAIN_LINES,
    length: int = LENGTH,
    unshared: int = UNSHARED,
) -> None:
    expected = scored(definition, parameters, plain_lines, length)
    assert_equal(scored(definition, parameters, shared_lines, length, unshared), expected)


@cache
def plain(folder: Path) -> tuple[np.ndarray, Parameters]:
    """Of `PAIRS` in the un-shared layout on one device."""
    loaded = load(folder)
    return scored(loaded.model.definition, loaded.parameters, PLAIN_LINES, LENGTH)


@pytest.mark.parametrize("remat", [Remat.FULL, Remat.SAVE_ATTENTION])
@pytest.mark.parametrize("name", ["models/gqa", "models/window", "families/gemma2", "families/ministral3"])
def test_sums_and_gradients_equal_those_of_the_unshared_layout(golden: Path, name: str, remat: Remat) -> None:
    """Law: with grouped queries; a window of 7 tokens, fewer than most prompts and answers have; soft caps and windows that
    differ by layer; queries scaled by position."""
    loaded = load(golden / name, remat=remat)
    found = scored(loaded.model.definition, loaded.parameters, SHARED_LINES, LENGTH, UNSHARED)
    assert_equal(found, plain(golden / name))


@pytest.mark.parametrize("name", ["models/gqa", "families/gemma2"])
def test_meshes_share_prompts(golden: Path, name: str) -> None:
    """Law: on a mesh, where each device un-shares its own rows and heads, the numbers are those of one device."""
    loaded = load(golden / name, devices=8, data=2, fsdp=2, tensor=2)
    found = scored(loaded.model.definition, loaded.parameters, SHARED_LINES, LENGTH, UNSHARED)
    assert_equal(found, plain(golden / name))


def test_adapters_share_prompts(golden: Path) -> None:
    """Law: the same for the gradients of LoRA's matrices over a frozen base, which singular vectors start away from 0."""
    options = AdapterOptions(rank=4, targets=("q_proj", "v_proj", "down_proj"), init="pissa")
    loaded = load_adapted(golden / "models" / "gqa", options, make_rules())
    check(loaded.model.definition, loaded.parameters)


@pytest.mark.parametrize(
    "change", [{}, {"sliding_window": 40, "attention_softcap": 5.0}], ids=["full", "window and soft cap"]
)
def test_the_tpu_kernel_shares_prompts(change: dict[str, Any]) -> None:
    """Law: the same with splash attention, interpreted: rows of one block un-shared to two, grouped queries."""
    shape = ModelConfig(
        model_type="llama",
        vocab_size=96,
        d_model=64,
        d_ff=96,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=128,
        norm_eps=1e-5,
        rope_theta=1e4,
        sliding_window=change.get("sliding_window"),
        tie_embeddings=False,
        max_positions=256,
    )
    shape = replace(shape, attention_softcap=change.get("attention_softcap"))
    compute = Compute(dtype=jnp.dtype("float32"), remat=Remat.SAVE_ATTENTION, kernel="splash-interpreted")
    definition, state = nnx.split(Decoder(shape, compute, nnx.Rngs(0)), nnx.Param)
    lines = [PAIRS[:2], PAIRS[2:4]]
    check(definition, nnx.to_pure_dict(state), lines, [[pair] for pair in PAIRS[:4]], 128, 256)


# ---- layouts ----


def test_packing_padding_and_company_change_nothing(golden: Path) -> None:
    """Law: longer rows, longer un-shared rows, empty rows and other neighbors move no sum and no gradient."""
    loaded = load(golden / "models" / "window")
    expected = plain(golden / "models" / "window")
    for lines, length, unshared in (
        ([[pair] for pair in PAIRS], 128, 256),
        ([PAIRS], 512, 768),
        ([PAIRS[:3], [], PAIRS[3:], []], 400, 640),
    ):
        found = scored(loaded.model.definition, loaded.parameters, lines, length, unshared)
        assert_equal(found, expected)


def test_full_rows_without_any_padding(golden: Path) -> None:
    """Law: the last columns of a row and of the un-shared row may be tokens."""
    loaded = load(golden / "models" / "gqa")
    pairs = PAIRS[:2]
    shared = sum(sum(sizes) for sizes in SIZES[:2])
    unshared = sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in SIZES[:2])
    check(loaded.model.definition, loaded.parameters, [pairs], [[pair] for pair in pairs], shared, unshared)


@pytest.mark.parametrize("sizes", [(12, 5), (30, 1, 9, 7)], ids=["one", "three"])
def test_any_number_of_answers_shares_a_prompt(golden: Path, sizes: tuple[int, ...]) -> None:
    loaded = load(golden / "models" / "window")
    example = answered(sizes)
    check(loaded.model.definition, loaded.parameters, [[example]], [[[segment]] for segment in example], 64, 256)


def test_segments_that_begin_differently_share_what_they_have_in_common(golden: Path) -> None:
    """Law: a part of the prompt, or nothing: then the row is that of two whole segments."""
    loaded = load(golden / "models" / "gqa")
    chosen, rejected = answered((20, 7, 9))
    for differs_at in (13, 0):
        other = Segment(rejected.tokens.copy(), rejected.targets)
        other.tokens[differs_at] += 1
        pair = [chosen, other]
        rows = laid_out([[pair]], 64, 128)
        assert isinstance(rows, SharedTokenBatch)
        assert int((rows.segments > 0).sum()) == len(chosen) + len(other) - differs_at
        check(loaded.model.definition, loaded.parameters, [[pair]], [[pair]], 64, 128)


def test_greedy_flags_equal_those_of_the_unshared_layout(golden: Path) -> None:
    loaded = load(golden / "models" / "gqa")
    flags = []
    for lines, length, unshared in ((SHARED_LINES, LENGTH, UNSHARED), (PLAIN_LINES, LENGTH, None)):
        rows = laid_out(_greedy(loaded, lines), length, unshared)
        found, greedy = sequence_logprob_and_greedy(
            loaded.model.definition, loaded.parameters, rows, segments=6, chunk=16
        )
        flags.append(np.asarray(sums_of(lines, greedy)).tolist())
        assert np.isfinite(np.asarray(found.sum)).all()
    assert flags[0] == flags[1]
    assert any(flags[0]) and not all(flags[0])


def _greedy(loaded: Loaded, lines: list[list[list[Segment]]]) -> list[list[list[Segment]]]:
    """The examples with a chosen answer of one token, the likeliest after the prompt."""

    def likeliest(tokens: np.ndarray) -> int:
        rows = laid_out([[[Segment(tokens, np.zeros(len(tokens), bool))]]], LENGTH)

        @jax.jit
        def logits(parameters: Parameters) -> jax.Array:
            model = nnx.merge(loaded.model.definition, parameters)
            return model.logits(model(rows.tokens, SegmentInfo(rows.segments, rows.positions)))

        return int(np.asarray(logits(loaded.parameters))[0, len(tokens) - 1].argmax())

    def changed(example: list[Segment]) -> list[Segment]:
        prompt = example[0].tokens[: int(example[0].targets.argmax())]
        tokens = np.r_[prompt, likeliest(prompt)].astype(np.int32)
        return [Segment(tokens, np.arange(len(tokens)) >= len(prompt)), example[1]]

    return [[changed(example) for example in examples] for examples in lines]


# ---- attention alone ----


def kernels() -> dict[str, Callable[..., jax.Array]]:
    return {
        "blockwise": partial(blockwise_attention, window=None),
        "blockwise, window": partial(blockwise_attention, window=11),
        "fused": partial(cudnn_attention, window=None, implementation="xla"),
        "fused, window": partial(cudnn_attention, window=11, implementation="xla"),
    }


@pytest.mark.parametrize("name", list(kernels()))
def test_kernels_see_the_unshared_rows(name: str) -> None:
    """Law: output and gradients are those of dense attention with the scatter that JAX makes of the gathers."""
    rows = laid_out(SHARED_LINES, LENGTH, UNSHARED)
    assert isinstance(rows, SharedTokenBatch)
    info, kernel = SharedInfo.of(rows), kernels()[name]
    window = kernel.keywords["window"]
    used = np.asarray(rows.segments > 0)[..., None, None]
    rng = np.random.default_rng(0)
    q, k, v, weights = (
        jnp.asarray(rng.normal(size=(len(SHARED_LINES), LENGTH, heads, 8)), jnp.float32) for heads in (4, 2, 2, 4)
    )

    def unshared(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        at = np.arange(len(SHARED_LINES))[:, None]
        layout = SegmentInfo(info.segments, info.positions[at, info.columns])
        mixed = dense_attention(*(x[at, info.columns] for x in (q, k, v)), layout, layout, window)
        return jnp.where(used, mixed[at, jnp.maximum(info.copies[:, 0], 0)], 0)

    def shared(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.where(used, unshared_attention(q, k, v, info, kernel), 0)

    np.testing.assert_allclose(jax.jit(shared)(q, k, v), jax.jit(unshared)(q, k, v), atol=2e-6)
    found, expected = (
        jax.jit(jax.grad(lambda *qkv, f=f: jnp.sum(f(*qkv) * weights), argnums=(0, 1, 2)))(q, k, v)
        for f in (shared, unshared)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
        assert not np.asarray(one)[~used[..., 0, 0]].any()
