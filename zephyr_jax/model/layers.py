"""Parts of a decoder block: norms, attention projections, feed-forward; and the scales of embeddings and logits.

Parameters are float32 and stacked over layers; a layer casts its slice to the compute dtype. Norms are computed in float32.
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
from zephyr_jax.model.config import Activation, ModelConfig, QueryScaling
from zephyr_jax.model.lora import project
from zephyr_jax.model.rope import rotate
from zephyr_jax.model.softcap import softcap

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

    def gather(self, x: Array, axis: str, dimension: int) -> Array:
        """The shards of all devices along a logical axis, concatenated; only inside a `shard_map`."""

    def shard_index(self, axis: str) -> Array | int:
        """Index of this device's shard along a logical axis; only inside a `shard_map`."""


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

    def gather(self, x: Array, axis: str, dimension: int) -> Array:
        """The identity."""
        return x

    def shard_index(self, axis: str) -> int:
        """Zero."""
        return 0


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


def bias(sizes: tuple[int, ...], axes: tuple[str, ...]) -> nnx.Param[Array]:
    """A float32 parameter that is added in the compute dtype, zeros at first."""
    return nnx.Param(jnp.zeros(sizes, jnp.float32), axes=axes, in_float32=False)


def rms_norm(x_BLD: Array, scale_D: Array, eps: float) -> Array:
    """Root-mean-square norm over the axes of `scale_D`, the last ones; float32 inside, the result in x's dtype."""
    x32_BLD = x_BLD.astype(jnp.float32)
    mean_square_BL1 = jnp.mean(jnp.square(x32_BLD), axis=tuple(range(-scale_D.ndim, 0)), keepdims=True)
    return (x32_BLD * jax.lax.rsqrt(mean_square_BL1 + eps) * scale_D).astype(x_BLD.dtype)


def model_norm(x_BLD: Array, weight_D: Array, config: ModelConfig) -> Array:
    """`rms_norm` with the model's epsilon, scaled by the weight, or by 1 + weight."""
    return rms_norm(x_BLD, weight_D + 1 if config.unit_offset_norms else weight_D, config.norm_eps)


def scale_embeddings(x_BLD: Array, config: ModelConfig) -> Array:
    """Embeddings times `embedding_scale`, which is rounded to x's dtype first, as in transformers."""
    return x_BLD if config.embedding_scale == 1 else x_BLD * jnp.asarray(config.embedding_scale, x_BLD.dtype)


def scale_queries(q_BLNH: Array, positions_BL: Array, scaling: QueryScaling | None) -> Array:
    """Rotated queries times the factor of their position, which is rounded to their dtype first, as in transformers."""
    if scaling is None:
        return q_BLNH
    factor_BL = 1 + scaling.beta * jnp.log1p((positions_BL // scaling.length).astype(jnp.float32))
    return q_BLNH * factor_BL[..., None, None].astype(q_BLNH.dtype)


def finish_logits(logits: Array, config: ModelConfig) -> Array:
    """Logits of any shape with the model's factor and soft cap, float32."""
    scaled = logits if config.logit_scale == 1 else logits * config.logit_scale
    return softcap(scaled, config.logit_softcap)


class _Norms(nnx.Module):
    """Norms of a sublayer's input and output, those that the model has."""

    def __init__(self, config: ModelConfig):
        self.config = config
        sizes, axes = (config.num_layers, config.d_model), ("layers", "norm")
        if config.norm_placement != "post":
            self.norm = norm_scale(sizes, axes)
        if config.norm_placement != "pre":
            self.post_norm = norm_scale(sizes, axes)

    def norm_input(self, x_BLD: Array) -> Array:
        """What the sublayer reads of the hidden states."""
        return x_BLD if self.config.norm_placement == "post" else model_norm(x_BLD, self.norm[...], self.config)

    def norm_output(self, x_BLD: Array) -> Array:
        """What is added to the hidden states."""
        config = self.config
        if config.norm_placement != "pre":
            x_BLD = model_norm(x_BLD, self.post_norm[...], config)
        return x_BLD if config.residual_scale == 1 else x_BLD * jnp.asarray(config.residual_scale, x_BLD.dtype)


class Attention(_Norms):
    """Norms and projections of grouped-query attention."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config)
        Y, D, N, K, H = config.num_layers, config.d_model, config.num_heads, config.num_kv_heads, config.head_dim
        self.query = weight(rngs, (Y, D, N, H), ("layers", "embed", "heads", "head_dim"), D**-0.5)
        self.key = weight(rngs, (Y, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D**-0.5)
        self.value = weight(rngs, (Y, D, K, H), ("layers", "embed", "kv_heads", "head_dim"), D**-0.5)
        out_scale = (N * H * 2 * Y) ** -0.5
        self.output = weight(rngs, (Y, N, H, D), ("layers", "heads", "head_dim", "embed"), out_scale)
        if config.qkv_bias:
            self.query_bias = bias((Y, N, H), ("layers", "heads", "head_dim"))
            self.key_bias = bias((Y, K, H), ("layers", "kv_heads", "head_dim"))
            self.value_bias = bias((Y, K, H), ("layers", "kv_heads", "head_dim"))
        if config.qk_norm == "head":
            self.query_norm = norm_scale((Y, H), ("layers", "head_dim"))
            self.key_norm = norm_scale((Y, H), ("layers", "head_dim"))
        if config.qk_norm == "all_heads":
            self.query_norm = norm_scale((Y, N, H), ("layers", "heads", "head_dim"))
            self.key_norm = norm_scale((Y, K, H), ("layers", "kv_heads", "head_dim"))

    def project(self, x_BLD: Array, cosine: Array, sine: Array) -> tuple[Array, Array, Array]:
        """Rotated queries [B, L, N, H], rotated keys and values [B, L, K, H]."""
        q_BLNH = project(x_BLD, self.query[...])
        k_BLKH = project(x_BLD, self.key[...])
        v_BLKH = project(x_BLD, self.value[...])
        if self.config.qkv_bias:
            q_BLNH = q_BLNH + self.query_bias[...].astype(x_BLD.dtype)
            k_BLKH = k_BLKH + self.key_bias[...].astype(x_BLD.dtype)
            v_BLKH = v_BLKH + self.value_bias[...].astype(x_BLD.dtype)
        if self.config.qk_norm != "none":
            q_BLNH = model_norm(q_BLNH, self.query_norm[...], self.config)
            k_BLKH = model_norm(k_BLKH, self.key_norm[...], self.config)
        return rotate(q_BLNH, cosine, sine), rotate(k_BLKH, cosine, sine), v_BLKH

    def merge(self, x_BLNH: Array) -> Array:
        """Output projection [B, L, D]."""
        return project(x_BLNH, self.output[...], 2)


class FeedForward(_Norms):
    """Norms and gated feed-forward, SwiGLU with the default activation."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        super().__init__(config)
        Y, D, F = config.num_layers, config.d_model, config.d_ff
        self.gate = weight(rngs, (Y, D, F), ("layers", "embed", "mlp"), D**-0.5)
        self.up = weight(rngs, (Y, D, F), ("layers", "embed", "mlp"), D**-0.5)
        self.down = weight(rngs, (Y, F, D), ("layers", "mlp", "embed"), (F * 2 * Y) ** -0.5)

    def __call__(self, x_BLD: Array, placement: Placement) -> Array:
        """down(activation(gate x) * up x), [B, L, D]."""
        gate_BLF = ACTIVATIONS[self.config.activation](project(x_BLD, self.gate[...]))
        hidden_BLF = placement.constrain(gate_BLF * project(x_BLD, self.up[...]), "batch", "length", "mlp")
        return project(hidden_BLF, self.down[...])
