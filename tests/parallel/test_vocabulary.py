"""Vocabularies that the mesh does not divide: computed as on one device, stored and exported unpadded."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.models import Loaded, load, packed_rows, random_segments, resized
from zephyr_jax.batch import TokenBatch
from zephyr_jax.checkpoint.fingerprint import weights_fingerprint
from zephyr_jax.config.sampling import SamplingParams
from zephyr_jax.generate.engine import Engine, GenerationRequest
from zephyr_jax.objective.logprob import sequence_logprob, sequence_logprob_and_greedy

MESHES = {
    "fsdp 8": {"devices": 8, "fsdp": 8},
    "tensor 2": {"devices": 2, "fsdp": 1, "tensor": 2},
    "data 2 fsdp 2 tensor 2": {"devices": 8, "data": 2, "fsdp": 2, "tensor": 2},
    "fsdp 4 tensor 2": {"devices": 8, "fsdp": 4, "tensor": 2},
}


@pytest.fixture(scope="module")
def odd(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of 511 tokens, with an unembedding and without."""
    folder = tmp_path_factory.mktemp("odd")
    return {name: resized(golden / "models" / name, folder / name, 511) for name in ("gqa", "tied")}


def odd_batch(columns: int) -> TokenBatch:
    """Eight rows with the last token of 511; short rows make devices share the vocabulary, long ones keep each to its own."""
    segments = random_segments([columns] * 8, vocab=511)
    segments[0][-2:] = 510
    return packed_rows([[each] for each in segments], columns)


def loss_and_gradient(loaded: Loaded, batch: TokenBatch) -> tuple[float, dict]:
    def loss(parameters: dict) -> jax.Array:
        found = sequence_logprob(loaded.model.definition, parameters, batch, segments=1, chunk=8)
        return jnp.sum(found.sum) / jnp.sum(found.num_targets)

    value, gradient = jax.jit(jax.value_and_grad(loss), out_shardings=(None, loaded.model.shardings))(loaded.parameters)
    return float(value), jax.device_get(gradient)


@pytest.mark.parametrize(
    ("variant", "columns", "meshes"),
    [
        ("gqa", 12, ["fsdp 8", "data 2 fsdp 2 tensor 2"]),  # split over fsdp and tensor
        ("gqa", 48, ["tensor 2"]),  # split over tensor
        ("tied", 12, ["fsdp 4 tensor 2"]),
    ],
)
def test_loss_and_gradients_are_those_of_one_device(
    odd: dict[str, Path], variant: str, columns: int, meshes: list[str]
) -> None:
    """Every gradient, that of the embedding and of the unembedding included."""
    batch = odd_batch(columns)
    expected, expected_gradient = loss_and_gradient(load(odd[variant]), batch)
    for name in meshes:
        found, gradient = loss_and_gradient(load(odd[variant], **MESHES[name]), batch)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, expected_gradient)


def test_greedy_tokens_and_draws_are_those_of_one_device(odd: dict[str, Path]) -> None:
    """`generate`'s engine and lm-eval's greedy check; padded logits of 0 would win where all others are below."""
    batch, one, other = odd_batch(12), load(odd["gqa"]), load(odd["gqa"], **MESHES["data 2 fsdp 2 tensor 2"])
    requests = [
        GenerationRequest(row[:5], 8, sampling=SamplingParams(heat, seed=(1,)))
        for row in random_segments([5, 5])
        for heat in (0, 1)
    ]

    def found(loaded: Loaded) -> tuple[list[tuple[int, ...]], np.ndarray]:
        engine = Engine(loaded.model, loaded.parameters, loaded.rules, batch_size=4, context=16)
        for request in requests:
            engine.submit(request)
        made = sorted((output.request_id, output.tokens) for output in engine.run())
        greedy = sequence_logprob_and_greedy(loaded.model.definition, loaded.parameters, batch, segments=1, chunk=8)[1]
        return [tokens for _, tokens in made], np.asarray(greedy)

    expected, actual = found(one), found(other)
    assert expected[0] == actual[0]
    np.testing.assert_array_equal(expected[1], actual[1])


def test_weights_are_stored_unpadded_and_split_as_far_as_padded_ones(odd: dict[str, Path]) -> None:
    """Shapes are the checkpoint's, the fingerprint does not depend on the mesh, and each device holds an even part."""
    one = load(odd["gqa"])
    for sizes in (MESHES["tensor 2"], MESHES["fsdp 4 tensor 2"]):
        other = load(odd["gqa"], **sizes)
        assert other.parameters["embedding"].shape == (511, 32)
        assert weights_fingerprint(other.parameters) == weights_fingerprint(one.parameters)
        parts = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
        held = other.parameters["embedding"].addressable_shards[0].data.shape
        assert held == (511, 32 // parts)


def test_a_vocabulary_that_divides_is_laid_out_as_before(golden: Path) -> None:
    """No mesh whose `tensor` axis divides the vocabulary changes anything."""
    for sizes in MESHES.values():
        embedding = load(golden / "models" / "gqa", **sizes).parameters["embedding"]
        assert embedding.sharding.spec == PartitionSpec("tensor", "fsdp")
