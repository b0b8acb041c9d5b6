"""The one sequence log-prob: right, and invariant to everything that is not the text."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import Loaded, load, load_on, logits, packed_rows, random_segments
from zephyr_jax.batch import TokenBatch
from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.checkpoint.resolve import find_model
from zephyr_jax.config.sections import MeshOptions, ModelOptions
from zephyr_jax.objective.logprob import SegmentLogProb, sequence_logprob
from zephyr_jax.objective.token_logprob import Chunking
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules

SIZES = [9, 14, 6, 11]


@pytest.fixture(scope="module")
def gqa(golden: Path) -> Loaded:
    return load(golden / "models" / "gqa")


def score(loaded: Loaded, batch: TokenBatch, segments: int = 4, chunk: int = 8) -> SegmentLogProb:
    return sequence_logprob(loaded.model.definition, loaded.parameters, batch, segments=segments, chunk=chunk)


def alone(loaded: Loaded) -> list[float]:
    """Each of the four segments in a row of its own."""
    batch = packed_rows([[tokens] for tokens in random_segments(SIZES)], 48)
    return np.asarray(score(loaded, batch).sum)[:, 0].tolist()


def test_equals_a_naive_loop(gqa: Loaded) -> None:
    """Against log-softmax of the full logits, token by token, in float64."""
    segments = random_segments(SIZES)
    found = score(gqa, packed_rows([segments], 48))
    for number, tokens in enumerate(segments):
        full = np.asarray(logits(gqa, packed_rows([[tokens]], 48)), np.float64)[0]
        total = 0.0
        for t in range(3, len(tokens)):
            row = full[t - 1]
            total += row[tokens[t]] - row.max() - np.log(np.exp(row - row.max()).sum())
        np.testing.assert_allclose(found.sum[0, number], total, atol=1e-4)
        assert found.num_targets[0, number] == len(tokens) - 3


def test_packing_padding_and_company_change_nothing(gqa: Loaded) -> None:
    """Packed together, packed in another order, after gaps of padding, in longer rows, in larger batches: equal sums."""
    expected = alone(gqa)
    a, b, c, d = random_segments(SIZES)
    together = score(gqa, packed_rows([[a, b, c, d]], 48)).sum[0]
    np.testing.assert_allclose(together, expected, atol=1e-5, rtol=1e-6)
    reordered = score(gqa, packed_rows([[d, b], [c, a]], 48)).sum
    np.testing.assert_allclose(reordered[:, :2], [[expected[3], expected[1]], [expected[2], expected[0]]], atol=2e-5)
    gaps = score(gqa, packed_rows([[a, b, c, d]], 64, gap=5)).sum[0]
    np.testing.assert_allclose(gaps, expected, atol=2e-5)
    empty: list[np.ndarray] = []
    company = score(gqa, packed_rows([empty, [c], [b, a], [d]], 48)).sum
    np.testing.assert_allclose([company[2, 1], company[2, 0], company[1, 0], company[3, 0]], expected, atol=2e-5)
    assert not np.asarray(company[0]).any()


@pytest.mark.parametrize("chunk", [1, 5, 16, 48, 1000])
def test_chunk_size_changes_nothing(gqa: Loaded, chunk: int) -> None:
    """Whether it divides the row or not."""
    found = score(gqa, packed_rows([random_segments(SIZES)], 48), chunk=chunk)
    np.testing.assert_allclose(found.sum[0], alone(gqa), atol=2e-5)


def test_rows_of_a_device_share_chunks(gqa: Loaded) -> None:
    """Rows of a device lie end to end with their targets in front: sums find their way back to row and segment."""
    a, b, c, d = random_segments(SIZES)
    batch = packed_rows([[a, b], [c], [d]], 48)
    whole = score(gqa, packed_rows([[a], [b], [c], [d]], 48), segments=1, chunk=48).sum[:, 0]
    found = score(gqa, batch, segments=2, chunk=8)
    np.testing.assert_allclose([*found.sum[0], found.sum[1, 0], found.sum[2, 0]], whole, atol=2e-5)
    np.testing.assert_array_equal(found.num_targets, [[6, 11], [3, 0], [8, 0]])


def test_pad_and_eos_may_be_one_id(gqa: Loaded) -> None:
    """Whatever tokens stand in padding, and whatever id padding has, nothing changes: masks are data."""
    batch = packed_rows([random_segments(SIZES)], 48)
    padded = jnp.where(batch.segments == 0, 2, batch.tokens)
    np.testing.assert_array_equal(score(gqa, batch).sum, score(gqa, batch._replace(tokens=padded)).sum)


def loss_and_gradient(loaded: Loaded, batch: TokenBatch, chunk: int = 8):
    def loss(parameters):
        found = sequence_logprob(loaded.model.definition, parameters, batch, segments=4, chunk=chunk)
        return -jnp.sum(found.sum) / jnp.sum(found.num_targets)

    return jax.jit(jax.value_and_grad(loss))(loaded.parameters)


def test_packing_padding_and_chunks_change_no_gradient(gqa: Loaded) -> None:
    """Loss and every gradient to 1e-5: four rows of one segment, one packed row, another order with gaps, other chunks."""
    a, b, c, d = random_segments(SIZES)
    layouts = [
        (packed_rows([[a], [b], [c], [d]], 48), 8),
        (packed_rows([[a, b, c, d]], 48), 8),
        (packed_rows([[d, b], [], [c, a]], 48, gap=5), 8),
        (packed_rows([[a, b, c, d]], 64), 5),
    ]

    (expected, slope), *others = [loss_and_gradient(gqa, batch, chunk) for batch, chunk in layouts]
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(slope)) > 0.1
    for found, other in others:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        jax.tree.map(lambda one, two: np.testing.assert_allclose(one, two, atol=1e-5), other, slope)


MESHES = {
    "8x1x1": MeshOptions(data=8, fsdp=1, tensor=1),
    "1x8x1": MeshOptions(data=1, fsdp=8, tensor=1),
    "2x2x2": MeshOptions(data=2, fsdp=2, tensor=2),
}


@cache
def on_one_device(folder: Path, columns: int):
    """Eight rows, and their loss and gradient."""
    sizes = [9, 14, 6, 11, 7, 20, 8, 5, 13, 10, 4, 12, 16, 9, 7, 6] if columns == 48 else [12] * 8
    segments = random_segments(sizes)
    each = len(sizes) // 8
    batch = packed_rows([segments[each * row : each * row + each] for row in range(8)], columns)
    return batch, *loss_and_gradient(load(folder), batch)


@pytest.mark.parametrize("columns", [12, 48], ids=["split vocabulary", "split rows"])
@pytest.mark.parametrize("name", [*MESHES, "2x2x2 permuted"])
def test_meshes_change_nothing(golden: Path, name: str, columns: int) -> None:
    """Loss and every gradient equal those of one device, on each mesh and under a permutation of its devices, whether a
    device scores its own rows or its own part of the vocabulary (which is what sends less for short rows)."""
    batch, expected, expected_gradient = on_one_device(golden / "models" / "gqa", columns)
    mesh = make_mesh(MESHES[name.split()[0]], jax.devices())
    chosen = Chunking.choose(8, False, ShardingRules(mesh), 8 * columns, 96)
    assert chosen.split_vocab == (columns == 12 and mesh.shape["fsdp"] > 1)
    devices = jax.devices()
    if name.endswith("permuted"):
        devices = [devices[at] for at in (5, 2, 7, 0, 3, 6, 1, 4)]
    rules = ShardingRules(make_mesh(MESHES[name.split()[0]], devices))
    found, gradient = loss_and_gradient(load_on(golden / "models" / "gqa", rules), batch)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient)


def test_memory_grows_with_the_chunk_and_not_with_the_row(golden: Path) -> None:
    """Compiled temporaries of the gradient: far below one [B, L, V], and larger for larger chunks."""
    source = find_model(ModelOptions(path=str(golden / "models" / "gqa")))
    wide = replace(source, model_config=replace(source.model_config, vocab_size=16384))
    model = abstract_of(
        wide.model_config,
        ModelOptions(compute_dtype="float32"),
        ShardingRules(make_mesh(MeshOptions(), jax.devices()[:1])),
    )
    L = 1024
    row = jax.ShapeDtypeStruct((1, L), jnp.int32)
    batch = TokenBatch(row, row, row, jax.ShapeDtypeStruct((1, L), jnp.bool_))

    def temporaries(chunk: int) -> int:
        def loss(parameters, batch):
            found = sequence_logprob(model.definition, parameters, batch, segments=2, chunk=chunk)
            return jnp.sum(found.sum)

        compiled = jax.jit(jax.grad(loss)).lower(model.parameters, batch).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = L * 16384 * 4
    small, large = temporaries(32), temporaries(512)
    assert small < whole / 3
    assert large - small > (512 - 32) * 16384 * 4
