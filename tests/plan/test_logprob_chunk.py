"""The chunk of the unembedding that a model gets when none is set; devices of a TPU need its compiler and no TPU."""

from dataclasses import replace
from importlib.util import find_spec

import jax
import pytest

from zephyr_jax.checkpoint.opened import abstract_of
from zephyr_jax.config.sections import MeshOptions, ModelOptions
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.lora import LoraSpec
from zephyr_jax.model.weight_format import PLAIN, WeightFormat
from zephyr_jax.parallel.mesh import make_mesh
from zephyr_jax.parallel.sharding import ShardingRules
from zephyr_jax.plan.topology import topology_devices

SHAPE = ModelConfig(
    model_type="llama",
    vocab_size=1024,
    d_model=64,
    d_ff=128,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=32,
    norm_eps=1e-5,
    rope_theta=1e4,
    sliding_window=None,
    tie_embeddings=False,
    max_positions=2048,
)
ADAPTER = WeightFormat(base_format="bfloat16", lora=LoraSpec(rank=4, alpha=4.0, targets=("attention.query",)))


def chunk(
    device: jax.Device, vocab_size: int, weight_format: WeightFormat = PLAIN, requested: int | None = None
) -> int:
    rules = ShardingRules(make_mesh(MeshOptions(), [device]))
    options = ModelOptions("none", logprob_chunk=requested)
    return abstract_of(replace(SHAPE, vocab_size=vocab_size), options, rules, weight_format).logprob_chunk


def test_a_cpu_has_one_chunk_for_all_vocabularies() -> None:
    """Curves on a CPU do not depend on the vocabulary."""
    assert {chunk(jax.devices()[0], vocab_size) for vocab_size in (512, 32_000, 256_000)} == {256}
    assert chunk(jax.devices()[0], 32_000, requested=96) == 96


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed (the `tpu` extra)")
def test_a_chunk_of_a_tpu_bounds_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 160 MiB of float32 logits, and 128 target tokens whatever the vocabulary; a frozen unembedding gets at most 512."""
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    device = topology_devices("v5e:2x2")[0]
    vocabularies = (512, 32_000, 128_256, 151_936, 256_000, 1_000_000)
    assert [chunk(device, size) for size in vocabularies] == [1024, 1024, 256, 256, 128, 128]
    assert [chunk(device, size, ADAPTER) for size in vocabularies] == [512, 512, 256, 256, 128, 128]
    assert chunk(device, 256_000, requested=1024) == 1024
