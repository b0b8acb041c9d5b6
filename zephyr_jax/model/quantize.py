"""Storage formats of frozen weights: floats, or integer codes with one scale per block of inputs.

A quantized weight is a node of the parameters, `{"codes", "scales"}`. Blocks lie along the flattened input axes, as in
bitsandbytes, whose blocks run along the rows of a PyTorch weight [outputs, inputs].
"""

import math
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from zephyr_jax.config.sections import BaseFormat

CODES, SCALES = "codes", "scales"
"""Names in the node of a quantized weight."""
CODE_DTYPES: dict[BaseFormat, Any] = {"int8": jnp.int8, "int4": jnp.int4, "nf4": jnp.uint4}
"""Dtype of the codes by quantized format."""
SCALE_DTYPE = jnp.bfloat16
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 values of NormalFloat4 (arXiv 2305.14314, appendix E), as bitsandbytes stores them."""
_LARGEST = {"int8": 127, "int4": 7}


def scales_shape(sizes: tuple[int, ...], inputs: int, block_size: int) -> tuple[int, ...]:
    """Shape of the scales of a weight of `sizes` = (*inputs, *outputs): (number of blocks, *outputs)."""
    return math.prod(sizes[:inputs]) // block_size, *sizes[inputs:]


def quantize(weight: Array, inputs: int, base_format: BaseFormat, block_size: int) -> tuple[Array, Array]:
    """Codes and scales of one weight.

    nf4 follows bitsandbytes: the scale is the block's largest magnitude, and the code is the table's nearest value, the lower one
    half-way between two. int8 and int4 are symmetric, with codes from -127 to 127 and from -7 to 7.

    Args:
        weight: float32 [*inputs, *outputs].
        inputs: Number of input axes; `block_size` divides the product of their sizes.
        base_format: `int8`, `int4` or `nf4`.
        block_size: Inputs of a block.

    Returns:
        Codes in `CODE_DTYPES[base_format]`, shaped like the weight, and scales float32 [blocks, *outputs]. Scales are stored as
        bfloat16; those of int8 and int4 are rounded to it here, so that the codes fit the stored scale.
    """
    blocks = weight.reshape(-1, block_size, *weight.shape[inputs:])
    largest = jnp.max(jnp.abs(blocks), axis=1)
    if base_format == "nf4":
        scales = largest
        table = jnp.asarray(NF4, jnp.float32)
        # As bitsandbytes: a product with the reciprocal, which rounds otherwise than a quotient.
        normalized = blocks * (1 / jnp.maximum(scales, jnp.finfo(jnp.float32).tiny))[:, None]
        # The number of midpoints below the value. Comparisons are fused; `searchsorted` needs six times the memory.
        above = ((normalized > midpoint).astype(jnp.uint8) for midpoint in (table[1:] + table[:-1]) / 2)
        codes = reduce(jnp.add, above)
    else:
        limit = _LARGEST[base_format]
        scales = (largest / limit).astype(SCALE_DTYPE).astype(jnp.float32)
        codes = jnp.clip(jnp.round(blocks / jnp.where(scales == 0, 1, scales)[:, None]), -limit, limit)
    return codes.astype(CODE_DTYPES[base_format]).reshape(weight.shape), scales


def dequantize(codes: Array, scales: Array, dtype: Any) -> Array:
    """The weight that codes and scales stand for.

    Args:
        codes: [*inputs, *outputs], of `quantize`.
        scales: [blocks, *outputs] of any float dtype.
        dtype: Of the result; the product is computed in it.

    Returns:
        [*inputs, *outputs].
    """
    values = _nf4_values(codes, dtype) if codes.dtype == jnp.uint4 else codes.astype(dtype)
    outputs = scales.shape[1:]
    blocks = values.reshape(scales.shape[0], -1, *outputs)
    return (blocks * scales.astype(dtype)[:, None]).reshape(codes.shape)


# Checkpointed for what it keeps together: the forward pass of a scan over layers would else compute the sixteen constants outside
# the loop, each as an array of the weight's size, and read all of them for every layer.
@partial(jax.checkpoint, prevent_cse=False, static_argnums=1)
def _nf4_values(codes: Array, dtype: Any) -> Array:
    # Selects, not a gather: the TPU has no fast lookup of single elements, and the compiler fuses the selects with the product.
    index = codes.astype(jnp.int32)
    values = jnp.full(codes.shape, NF4[0], dtype)
    for code, value in enumerate(NF4[1:], 1):
        values = jnp.where(index == code, jnp.asarray(value, dtype), values)
    return values
