"""Parts of a decoder block: norm, rotary embeddings, attention projections, feed-forward.

Parameters are float32 and stacked over layers; a layer casts its slice to the compute dtype. Norms and rotary embeddings are
computed in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zephyr_jax.batch import Axes
from zephyr_jax.model.config import Activation, ModelConfig
from zephyr_jax.model.lora import project

ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Placement(Protocol):
    """What the model asks of a mesh, in logical axes; `parallel.sharding.ShardingRules` is the one for several devices."""

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """Constrain the sharding of an array: constrain(x_BLD, "batch", "length", "model")."""

    def num_shards(self, axis: str) -> int:
        """Number of shards of a logical axis."""

    def stored_axes(self, axes: Axes, sizes: tuple[int, ...]) -> Axes:
        """Logical axes along which a weight with `axes` and `sizes` is stored."""

    def shard_map(self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes) -> Callable[..., Array]:
        """The function applied to each device's shards: for kernels that cannot be partitioned by the compiler."""


@dataclass(frozen=True)
class SingleDevice:
    """One device, no mesh."""

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """The identity."""
        return x

    def num_shards(self, axis: str) -> int:
        """One."""
        return 1

    def stored_axes(self, axes: Axes, sizes: tuple[int, ...]) -> Axes:
        """`axes`."""
        return axes

    def shard_map(self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes) -> Callable[..., Array]:
        """The function itself."""
        return function


def weight(rngs: nnx.Rngs, sizes: tuple[int, ...], axes: tuple[str, ...], scale: float) -> nnx.Param[Array]:
    """A float32 parameter of a matmul, which layers cast to the compute dtype.

    Args:
        rngs: Source of the initial values.
        sizes: Sizes of its dimensions.
        axes: Their logical axes.
        scale: Standard deviation of the initial values.
    """
    return nnx.Param(scale * jax.random.normal(rngs.params(), sizes, jnp.float32), axes=axes, in_float32=False)


def norm_scale(sizes: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param[Array]:
    """A parameter, ones at first, that layers use in float32; `grad_dtype` keeps its gradient in float32, too."""
    return nnx.Param(jnp.ones(sizes, jnp.float32), axes=axes, in_float32=True)


def rms_norm(x_BLD: Array, scale_D: Array, eps: float) -> Array:
    """Root-mean-square norm over the last axis; float32 inside, the result in x's dtype."""
    x32_BLD = x_BLD.astype(jnp.float32)
    mean_square_BL1 = jnp.mean(jnp.square(x32_BLD), axis=-1, keepdims=True)
    return (x32_BLD * jax.lax.rsqrt(mean_square_BL1 + eps) * scale_D).astype(x_BLD.dtype)


def rotary(positions_BL: Array, config: ModelConfig) -> tuple[Array, Array]:
    """Cosine and sine, each float32 [B, L, 1, H/2], of rotary embeddings (arXiv 2104.09864) in Hugging Face's layout."""
    frequency_h = config.rope_theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    angle_BLh = positions_BL[..., None].astype(jnp.float32) * frequency_h
    return jnp.cos(angle_BLh)[:, :, None], jnp.sin(angle_BLh)[:, :, None]


def rotate(x_BLNH: Array, cosine: Array, sine: Array) -> Array:
    """Rotate the pairs (i, i + H/2) of every head; float32 inside, the result in x's dtype."""
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return rotated.astype(x_BLNH.dtype)


class Attention(nnx.Module):
    """Norm and projections of grouped-query attention."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        Y, D, N, K, H = config.num_layers, config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.norm = norm_scale((Y, D), ("layers", "norm"))
        self.query = weight(rngs, (Y, D, N, H), ("layers", "embed", "heads", "head_dim"), D**-0.5)
        self.key = weight(rngs, (Y, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D**-0.5)
        self.value = weight(rngs, (Y, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D**-0.5)
        out_scale = (N * H * 2 * Y) ** -0.5
        self.output = weight(rngs, (Y, N, H, D), ("layers", "heads", "head_dim", "embed"), out_scale)

    def project(self, x_BLD: Array, cosine: Array, sine: Array) -> tuple[Array, Array, Array]:
        """Rotated queries [B, L, N, H], rotated keys and values [B, L, K, H]."""
        q_BLNH = project(x_BLD, self.query[...])
        k_BLKH = project(x_BLD, self.key[...])
        v_BLKH = project(x_BLD, self.value[...])
        return rotate(q_BLNH, cosine, sine), rotate(k_BLKH, cosine, sine), v_BLKH

    def merge(self, x_BLNH: Array) -> Array:
        """Output projection [B, L, D]."""
        return project(x_BLNH, self.output[...], 2)


class FeedForward(nnx.Module):
    """Norm and gated feed-forward, SwiGLU with the default activation."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        Y, D, F = config.num_layers, config.d_model, config.d_ff
        self.activation = config.activation
        self.norm = norm_scale((Y, D), ("layers", "norm"))
        self.gate = weight(rngs, (Y, D, F), ("layers", "embed", "mlp"), D**-0.5)
        self.up = weight(rngs, (Y, D, F), ("layers", "embed", "mlp"), D**-0.5)
        self.down = weight(rngs, (Y, F, D), ("layers", "mlp", "embed"), (F * 2 * Y) ** -0.5)

    def __call__(self, x_BLD: Array, placement: Placement) -> Array:
        """down(activation(gate x) * up x), [B, L, D]."""
        gate_BLF = ACTIVATIONS[self.activation](project(x_BLD, self.gate[...]))
        hidden_BLF = placement.constrain(gate_BLF * project(x_BLD, self.up[...]), "batch", "length", "mlp")
        return project(hidden_BLF, self.down[...])
