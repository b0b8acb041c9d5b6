"""Quantized weights: nf4 equals bitsandbytes' numbers, int8 and int4 are within half a step, and shards change nothing."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zephyr_jax.config.sections import MeshOptions
from zephyr_jax.model.quantize import CODE_DTYPES, NF4, SCALE_DTYPE, dequantize, quantize, scales_shape
from zephyr_jax.parallel.mesh import make_mesh

LIMITS = {"int8": 127, "int4": 7}
TINY = np.finfo(np.float32).tiny


def random_weight(*sizes: int, seed: int = 0) -> jax.Array:
    """float32 with deviations that differ by output, from 1e-3 to 10."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=sizes) * 10 ** rng.uniform(-3, 1, sizes[-1]), jnp.float32)


# ---- nf4 against bitsandbytes (tests/golden/make_lora_golden.py; check_nf4.py compares the same numbers with qwix) ----


def test_nf4_table_equals_bitsandbytes(golden: Path) -> None:
    np.testing.assert_array_equal(np.float32(NF4), np.load(golden / "nf4.npz")["table"])


@pytest.mark.parametrize("sizes", [(256, 24), (32, 8, 24), (256, 4, 6), (16, 16, 3, 8)], ids=str)
def test_nf4_of_random_weights_equals_bitsandbytes(golden: Path, sizes: tuple[int, ...]) -> None:
    """Codes, float32 scales and dense weights bit for bit, however the input and output axes are divided."""
    numbers = np.load(golden / "nf4.npz")
    inputs = 1 if sizes[0] == 256 else 2
    weight = numbers["random.weight"].T.reshape(sizes)
    codes, scales = jax.jit(partial(quantize, inputs=inputs, base_format="nf4", block_size=64))(weight)
    assert codes.dtype == jnp.uint4
    assert codes.shape == sizes
    assert scales.shape == scales_shape(sizes, inputs, 64) == (4, *sizes[inputs:])
    np.testing.assert_array_equal(np.asarray(codes, np.uint8).reshape(256, 24), numbers["random.codes"].T)
    np.testing.assert_array_equal(np.asarray(scales).reshape(4, 24), numbers["random.scales"].T)
    dense = dequantize(codes, scales, jnp.float32)
    np.testing.assert_array_equal(np.asarray(dense).reshape(256, 24), numbers["random.dense"].T)


def test_nf4_of_larger_blocks_equals_bitsandbytes(golden: Path) -> None:
    numbers = np.load(golden / "nf4.npz")
    codes, scales = quantize(jnp.asarray(numbers["large_blocks.weight"].T), 1, "nf4", 128)
    np.testing.assert_array_equal(np.asarray(codes, np.uint8), numbers["large_blocks.codes"].T)
    np.testing.assert_array_equal(scales, numbers["large_blocks.scales"].T)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_nf4_of_edge_cases_equals_bitsandbytes(golden: Path, jit: bool) -> None:
    """Values half-way between two of the table and their neighbors, zeros, one huge value, denormals: `edge_weight` there."""
    numbers = np.load(golden / "nf4.npz")
    function = partial(quantize, inputs=1, base_format="nf4", block_size=64)
    codes, scales = (jax.jit(function) if jit else function)(jnp.asarray(numbers["edge.weight"].T))
    np.testing.assert_array_equal(np.asarray(codes, np.uint8), numbers["edge.codes"].T)
    # XLA flushes denormals to zero, bitsandbytes on a CPU does not: here only a scale below 1.2e-38.
    expected = np.where(numbers["edge.scales"] < TINY, 0, numbers["edge.scales"])
    assert (expected == 0).sum() == 2
    np.testing.assert_array_equal(scales, expected.T)
    np.testing.assert_allclose(dequantize(codes, scales, jnp.float32), numbers["edge.dense"].T, rtol=0, atol=TINY)


# ---- int8 and int4 ----


@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("base_format", ["int8", "int4"])
def test_integers_are_within_half_a_step(base_format: str, block_size: int) -> None:
    """Of the scale as it is stored, which is bfloat16's nearest to the largest magnitude over the largest code."""
    weight = random_weight(512, 48)
    codes, scales = quantize(weight, 1, base_format, block_size)
    limit = LIMITS[base_format]
    blocks = np.asarray(weight, np.float64).reshape(-1, block_size, 48)
    np.testing.assert_allclose(scales, np.abs(blocks).max(1) / limit, rtol=2**-8)
    np.testing.assert_array_equal(scales, scales.astype(SCALE_DTYPE).astype(jnp.float32))
    integers = np.asarray(codes, np.int32)
    assert codes.dtype == CODE_DTYPES[base_format]
    assert np.abs(integers).max() == limit
    assert (np.abs(integers).reshape(blocks.shape).max(1) == limit).all()  # each block uses the whole range
    error = np.abs(np.asarray(dequantize(codes, scales, jnp.float32), np.float64) - weight).reshape(blocks.shape)
    step = np.asarray(scales, np.float64)[:, None]
    assert (error <= step / 2 * (1 + 2**-16)).all()
    assert (error.max(1) > step[:, 0] / 4).any()


def test_nf4_is_within_half_a_gap_of_the_table() -> None:
    """With the float32 scale; the stored bfloat16 scale adds at most 2**-9 of each value."""
    weight = random_weight(512, 48)
    codes, scales = quantize(weight, 1, "nf4", 64)
    dense = np.asarray(dequantize(codes, scales, jnp.float32))
    largest = np.repeat(np.asarray(scales), 64, axis=0)
    error = np.abs(dense - weight) / largest
    table = np.float32(NF4)
    gap = np.diff(table, prepend=-1.0, append=1.0)
    integers = np.asarray(codes, np.int32)
    assert (error <= np.maximum(gap[integers], gap[integers + 1]) / 2 + 1e-6).all()
    stored = np.asarray(dequantize(codes, scales.astype(SCALE_DTYPE), jnp.float32))
    assert (np.abs(stored - dense) <= np.abs(dense) * 2**-8).all()


# ---- all formats ----


@pytest.mark.parametrize(
    ("base_format", "dtype"),
    [("int8", "float32"), ("int4", "float32"), ("nf4", "float32"), ("int4", "bfloat16"), ("nf4", "bfloat16")],
)
def test_quantizing_a_dequantized_weight_changes_nothing(base_format: str, dtype: str) -> None:
    """Equal codes and stored scales. A bfloat16 has too few bits for 127 int8 codes, so int8 needs float32."""
    codes, scales = quantize(random_weight(16, 16, 3, 8), 2, base_format, 64)
    stored = scales.astype(SCALE_DTYPE)
    dense = dequantize(codes, stored, jnp.dtype(dtype))
    assert dense.dtype == dtype
    codes_again, scales_again = quantize(dense.astype(jnp.float32), 2, base_format, 64)
    np.testing.assert_array_equal(np.asarray(codes_again, np.int32), np.asarray(codes, np.int32))
    if dtype == "float32":
        np.testing.assert_array_equal(scales_again.astype(SCALE_DTYPE), stored)
        np.testing.assert_array_equal(dequantize(codes_again, scales_again, jnp.float32), dense)


@pytest.mark.parametrize("base_format", ["int8", "int4", "nf4"])
def test_blocks_of_zeros_stay_zeros(base_format: str) -> None:
    """Their scale is 0 and their dense weight 0, beside blocks that are not zero."""
    weight = random_weight(256, 6).at[64:128, 2].set(0).at[:, 5].set(0)
    codes, scales = quantize(weight, 1, base_format, 64)
    expected = np.zeros((4, 6), bool)
    expected[1, 2] = expected[:, 5] = True
    np.testing.assert_array_equal(np.asarray(scales) == 0, expected)
    for dtype in (jnp.float32, jnp.bfloat16):
        dense = np.asarray(dequantize(codes, scales.astype(SCALE_DTYPE), dtype), np.float32)
        assert np.isfinite(dense).all()
        np.testing.assert_array_equal(dense.reshape(4, 64, 6).any(1), ~expected)


SHARDED = {
    "inputs and outputs": ((256, 8, 16), 1, PartitionSpec("fsdp", "tensor")),
    "first of two input axes": ((16, 16, 64), 2, PartitionSpec("tensor", None, "fsdp")),
    "inputs over all devices": ((512, 24), 1, PartitionSpec(("fsdp", "tensor"))),
}


@pytest.mark.parametrize("base_format", ["int8", "int4", "nf4"])
@pytest.mark.parametrize("name", SHARDED)
def test_sharded_weights_have_the_same_codes(name: str, base_format: str) -> None:
    """Bit for bit, and without any communication, when no block lies in two shards."""
    sizes, inputs, spec = SHARDED[name]
    weight = random_weight(*sizes)
    expected = quantize(weight, inputs, base_format, 64)
    sharding = NamedSharding(make_mesh(MeshOptions(data=1, fsdp=4, tensor=2), jax.devices()), spec)
    function = partial(quantize, inputs=inputs, base_format=base_format, block_size=64)
    compiled = jax.jit(function, in_shardings=sharding).lower(weight).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())
    codes, scales = compiled(jax.device_put(weight, sharding))
    assert codes.sharding.is_equivalent_to(sharding, len(sizes))
    for found, single in zip((codes, scales), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(single, np.float32))
    dense = jax.jit(dequantize, static_argnums=2)(codes, scales, "bfloat16")
    np.testing.assert_array_equal(dense, dequantize(*expected, jnp.bfloat16))
