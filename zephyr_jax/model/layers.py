"""Pieces of the decoder: norm, rotary positions, attention block, feed-forward. Weights are stacked over layers.

Letters: B rows, L row length, D model, N query heads, K kv heads, H head dim, F mlp, Y layers.
Weights are float32; a layer casts its slice to the compute dtype. Norms and rotations are computed in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zephyr_jax.model.config import Activation, ModelConfig
from zephyr_jax.model.linear import linear

type Axes = tuple[str | None, ...]
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
}


class Placement(Protocol):
    """What the model asks of a mesh, in logical axes; `parallel.rules.Rules` answers on a real one."""

    def constrain(self, x: Array, *axes: str | None) -> Array:
        """Pin an array to logical axes: constrain(x_BLD, "batch", "length", "model")."""

    def num_shards(self, axis: str) -> int:
        """Number of parts that a logical axis is split into."""

    def stored_axes(self, axes: Axes, sizes: tuple[int, ...]) -> Axes:
        """Logical axes along which a weight with `axes` and `sizes` is stored."""

    def shard_map(self, function: Callable[..., Array], inputs: tuple[Axes, ...], output: Axes) -> Callable[..., Array]:
        """The function on each device's own part of its arguments: for kernels that know nothing of meshes."""


@dataclass(frozen=True)
class SingleDevice:
    """No mesh: nothing to pin, nothing to split."""

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


def weight(rngs: nnx.Rngs, sizes: tuple[int, ...], axes: tuple[str, ...], scale: float | None = None) -> nnx.Param:
    """A float32 parameter with its logical axes: normal with `scale`, or ones (a norm's) when None."""
    if scale is None:
        return nnx.Param(jnp.ones(sizes, jnp.float32), axes=axes)
    return nnx.Param(scale * jax.random.normal(rngs.params(), sizes, jnp.float32), axes=axes)


def rms_norm(x_BLD: Array, scale_D: Array, eps: float) -> Array:
    """Root-mean-square norm over the last axis, in float32, returned in x's dtype."""
    x32_BLD = x_BLD.astype(jnp.float32)
    mean_square_BL1 = jnp.mean(jnp.square(x32_BLD), axis=-1, keepdims=True)
    return (x32_BLD * jax.lax.rsqrt(mean_square_BL1 + eps) * scale_D).astype(x_BLD.dtype)


def rotary(positions_BL: Array, head_dim: int, theta: float) -> tuple[Array, Array]:
    """Cosine and sine, each float32 [B, L, 1, H/2], of rotate-half RoPE (arXiv 2104.09864, HF layout)."""
    frequency = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle_BLh = positions_BL[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle_BLh)[:, :, None], jnp.sin(angle_BLh)[:, :, None]


def rotate(x_BLNH: Array, cosine: Array, sine: Array) -> Array:
    """Rotate pairs (i, i + H/2) of every head, in float32, returned in x's dtype."""
    first, second = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
    return turned.astype(x_BLNH.dtype)


class AttentionWeights(nnx.Module):
    """Projections of grouped-query attention."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        Y, D, N, K, H = config.num_layers, config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.norm = weight(rngs, (Y, D), ("layers", "norm"))
        self.query = weight(rngs, (Y, D, N, H), ("layers", "embed", "heads", "head_dim"), D**-0.5)
        self.key = weight(rngs, (Y, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D**-0.5)
        self.value = weight(rngs, (Y, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D**-0.5)
        out_scale = (N * H * 2 * Y) ** -0.5
        self.output = weight(rngs, (Y, N, H, D), ("layers", "heads", "head_dim", "embed"), out_scale)

    def project(self, x_BLD: Array, cosine: Array, sine: Array) -> tuple[Array, Array, Array]:
        """Rotated queries [B, L, N, H] and keys, and values, [B, L, K, H]."""
        dtype = x_BLD.dtype
        q_BLNH = linear(x_BLD, self.query[...].astype(dtype))
        k_BLKH = linear(x_BLD, self.key[...].astype(dtype))
        v_BLKH = linear(x_BLD, self.value[...].astype(dtype))
        return rotate(q_BLNH, cosine, sine), rotate(k_BLKH, cosine, sine), v_BLKH

    def merge(self, x_BLNH: Array) -> Array:
        """Output projection [B, L, D]."""
        return linear(x_BLNH, self.output[...].astype(x_BLNH.dtype), 2)


class FeedForwardWeights(nnx.Module):
    """SwiGLU."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        Y, D, F = config.num_layers, config.d_model, config.d_ff
        self.activation = config.activation
        self.norm = weight(rngs, (Y, D), ("layers", "norm"))
        self.gate = weight(rngs, (Y, D, F), ("layers", "embed", "mlp"), D**-0.5)
        self.up = weight(rngs, (Y, D, F), ("layers", "embed", "mlp"), D**-0.5)
        self.down = weight(rngs, (Y, F, D), ("layers", "mlp", "embed"), (F * 2 * Y) ** -0.5)

    def __call__(self, x_BLD: Array, placement: Placement) -> Array:
        dtype = x_BLD.dtype
        gate_BLF = ACTIVATIONS[self.activation](linear(x_BLD, self.gate[...].astype(dtype)))
        hidden_BLF = placement.constrain(gate_BLF * linear(x_BLD, self.up[...].astype(dtype)), "batch", "length", "mlp")
        return linear(hidden_BLF, self.down[...].astype(dtype))
