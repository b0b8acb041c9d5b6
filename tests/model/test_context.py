"""Context parallelism: rows that several devices share have the log-probs and gradients of rows on one device."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.model.test_shared_prompt import LENGTH, SHARED_LINES, UNSHARED, assert_equal, plain, scored
from tests.models import load, packed_rows, random_segments
from zephyr_jax.batch import TokenBatch
from zephyr_jax.errors import InputError
from zephyr_jax.model.attention.blockwise import blockwise_attention
from zephyr_jax.model.attention.dense import SegmentInfo, cudnn_attention
from zephyr_jax.model.attention.splash import splash_attention
from zephyr_jax.model.attention.zigzag import RowShard, from_zigzag, to_zigzag
from zephyr_jax.objective.logprob import Parameters, sequence_logprob

# ---- the order of columns ----


def test_every_device_has_an_early_and_a_late_piece() -> None:
    """Law: of causal attention all devices compute equally many scores, and the order of columns can be restored."""
    columns = np.arange(24, dtype=np.int32)
    order = to_zigzag(columns[None], 3)[0]
    assert order.reshape(3, -1).tolist() == [
        [0, 1, 2, 3, 20, 21, 22, 23],
        [4, 5, 6, 7, 16, 17, 18, 19],
        [8, 9, 10, 11, 12, 13, 14, 15],
    ]
    assert [int(RowShard(index, 3).columns(24).sum()) for index in range(3)] == [92, 92, 92]
    row = jnp.arange(48).reshape(2, 24, 1)
    np.testing.assert_array_equal(from_zigzag(to_zigzag(row, 3), 3), row)


# ---- attention alone ----


KERNELS: dict[str, tuple[int, int, Callable[..., jax.Array]]] = {
    "blockwise": (96, 8, partial(blockwise_attention, window=None)),
    "blockwise, window, cap": (96, 8, partial(blockwise_attention, window=11, softcap=2.0)),
    "cudnn": (96, 8, partial(cudnn_attention, window=None, implementation="xla")),
    "cudnn, window": (96, 8, partial(cudnn_attention, window=11, implementation="xla")),
    "splash": (768, 128, partial(splash_attention, window=None, interpret=True)),
    "splash, window, cap": (768, 128, partial(splash_attention, window=100, softcap=2.0, interpret=True)),
}
"""Row length, head dimension and kernel; three devices share a row, so their pieces are no power of two of it."""


@pytest.mark.parametrize("name", KERNELS)
def test_parts_of_rows_are_those_of_whole_rows(name: str) -> None:
    """Law: outputs of all parts together, and sums of their gradients, equal those of all columns at once."""
    length, head_dim, kernel = KERNELS[name]
    rng = np.random.default_rng(0)
    q, k, v, weights = (
        jnp.asarray(rng.normal(size=(2, length, heads, head_dim)), jnp.float32) / head_dim**0.25
        for heads in (2, 1, 1, 2)
    )
    first, second = length * 2 // 3, length // 4
    segments = [[1] * first + [2] * second + [0] * (length - first - second), [1] * length]
    positions = [[*range(first), *range(second), *[0] * (length - first - second)], [*range(length)]]
    info = SegmentInfo(jnp.asarray(segments, jnp.int32), jnp.asarray(positions, jnp.int32))
    weights = jnp.where(info.segments[..., None, None] > 0, weights, 0)

    def whole(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return kernel(q, k, v, info)

    def parts(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        own = jnp.split(to_zigzag(q, 3), 3, axis=1)
        mixed = [kernel(part, k, v, info, shard=RowShard(index, 3)) for index, part in enumerate(own)]
        return from_zigzag(jnp.concatenate(mixed, axis=1), 3)

    def gradient(form: Callable[..., jax.Array]) -> tuple[Any, jax.Array]:
        def loss(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            mixed = form(*qkv)
            return jnp.sum(mixed * weights), jnp.where(weights != 0, mixed, 0)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    (found, mixed), (expected, expected_mixed) = gradient(parts), gradient(whole)
    np.testing.assert_allclose(mixed, expected_mixed, atol=2e-6)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


# ---- the model on a mesh ----

SEGMENTS = random_segments([33, 20, 41, 9, 50, 12, 30, 27])


def rows() -> TokenBatch:
    """Four packed rows of 96 tokens, with segments that cross the borders of pieces, and padding."""
    return packed_rows([SEGMENTS[2 * row : 2 * row + 2] for row in range(4)], 96)


@cache
def gradient_on(folder: Path, devices: int = 1, **mesh: int) -> tuple[np.ndarray, Parameters]:
    """Log-prob sums, and gradients of their sum with a weight for each."""
    loaded = load(folder, devices=devices, **mesh)

    def weighted(parameters: Parameters) -> tuple[jax.Array, jax.Array]:
        found = sequence_logprob(loaded.model.definition, parameters, rows(), segments=2, chunk=16).sum
        return jnp.sum(found * jnp.sin(1.0 + jnp.arange(found.size)).reshape(found.shape)), found

    gradients, sums = jax.jit(jax.grad(weighted, has_aux=True))(loaded.parameters)
    return np.asarray(sums), jax.device_get(gradients)


@pytest.mark.parametrize(
    ("name", "devices", "mesh"),
    [
        ("models/gqa", 2, {"context": 2}),
        ("models/gqa", 4, {"fsdp": 2, "context": 2}),
        ("models/gqa", 8, {"fsdp": 2, "context": 2, "tensor": 2}),
        ("models/window", 8, {"data": 2, "context": 4, "fsdp": 1}),
        ("families/gemma2", 4, {"context": 2, "tensor": 2, "fsdp": 1}),
    ],
    ids=["context", "fsdp", "fsdp and tensor", "window", "windows by layer"],
)
def test_meshes_split_rows(golden: Path, name: str, devices: int, mesh: dict[str, int]) -> None:
    """Law: sums and gradients are those of one device: with grouped queries, a window, and windows that differ by layer."""
    assert_equal(gradient_on(golden / name, devices, **mesh), gradient_on(golden / name))


@pytest.mark.parametrize("name", ["models/gqa", "models/window"])
def test_meshes_split_rows_with_shared_prompts(golden: Path, name: str) -> None:
    """Law: the same where the un-shared row of attention is split, too, and an answer's prompt may be on another device."""
    loaded = load(golden / name, devices=4, fsdp=2, context=2)
    found = scored(loaded.model.definition, loaded.parameters, SHARED_LINES, LENGTH, UNSHARED)
    assert_equal(found, plain(golden / name))


def test_row_lengths_that_do_not_divide_are_refused(golden: Path) -> None:
    rules = load(golden / "models" / "gqa", devices=2, context=2).rules
    rules.check_row_length(1024)
    with pytest.raises(InputError, match=r"data\.row_length: expected a multiple of 512 .*mesh\.context.*got 768"):
        rules.check_row_length(768)
