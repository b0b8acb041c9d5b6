"""The decoder: tokens to final hidden states, with the unembedding kept apart (`objective.logprob` applies it).

Layers are one module whose weights have a leading layer axis; the forward pass scans over it, so compile time does not
grow with depth. `cached` has the same with a cache. Letters as in `layers`, V vocab.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from zephyr_jax.config.sections import Remat
from zephyr_jax.model.attention.blockwise import blockwise_attention
from zephyr_jax.model.attention.dense import SegmentInfo, cudnn_attention
from zephyr_jax.model.attention.splash import splash_attention
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.layers import (
    AttentionWeights,
    FeedForwardWeights,
    Placement,
    SingleDevice,
    rms_norm,
    rotary,
    weight,
)
from zephyr_jax.model.remat import INPUT, checkpointed


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the forward pass runs; none of it changes what is computed beyond rounding."""

    dtype: jnp.dtype = jnp.dtype("bfloat16")
    remat: Remat = Remat.FULL
    """Rematerialization policy of a layer."""
    placement: Placement = SingleDevice()
    save_logits: bool = False
    """Whether the logits of targets are kept for the backward pass, or made anew chunk by chunk."""
    kernel: Literal["xla", "cudnn", "splash", "splash-interpreted"] = "xla"
    """Attention of rows: XLA by blocks, the GPU's kernel, or the TPU's (interpreted: on a CPU, for tests)."""
    chip: str = ""
    """Kind of the devices, as JAX names it; decides the TPU kernel's block sizes."""


class DecoderLayers(nnx.Module):
    """The stacked layers."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention = AttentionWeights(config, rngs)
        self.feed_forward = FeedForwardWeights(config, rngs)


class Decoder(nnx.Module):
    """Mistral-7B's architecture (arXiv 2310.06825): GQA, RoPE, sliding window, RMSNorm, SwiGLU."""

    def __init__(self, config: ModelConfig, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        V, D = config.vocab_size, config.d_model
        self.embedding = weight(rngs, (V, D), ("vocab", "embed"), 0.02)
        self.decoder = DecoderLayers(config, rngs)
        self.norm = weight(rngs, (D,), ("norm",))
        if not config.tie_embeddings:
            self.unembedding = weight(rngs, (D, V), ("embed", "vocab"), D**-0.5)

    @property
    def unembedding_DV(self) -> Array:
        """Weights from hidden states to logits, float32 [D, V]; the embedding's transpose when tied."""
        return self.embedding[...].T if self.config.tie_embeddings else self.unembedding[...]

    def logits(self, x_BLD: Array) -> Array:
        """float32 [B, L, V] of final hidden states; for generation and tests, where L is short."""
        weights_DV = self.unembedding_DV.astype(x_BLD.dtype)
        return jnp.einsum("bld,dv->blv", x_BLD, weights_DV, preferred_element_type=jnp.float32)

    def __call__(self, tokens_BL: Array, where: SegmentInfo) -> Array:
        """Final hidden states [B, L, D], in the compute dtype, of packed rows."""
        config, compute, constrain = self.config, self.compute, self.compute.placement.constrain
        cosine, sine = rotary(where.positions, config.head_dim, config.rope_theta)
        definition, stacked = nnx.split(self.decoder)
        one = jax.lax.optimization_barrier(jnp.float32(1))

        def layer(x_BLD: Array, weights: nnx.State) -> tuple[Array, None]:
            x_BLD = checkpoint_name(x_BLD, INPUT)
            block = nnx.merge(definition, self._held(weights, one))
            h_BLD = rms_norm(x_BLD, block.attention.norm[...], config.norm_eps)
            mixed_BLNH = self._attention(*block.attention.project(h_BLD, cosine, sine), where)
            x_BLD = constrain(x_BLD + block.attention.merge(mixed_BLNH), "batch", "length", "model")
            h_BLD = rms_norm(x_BLD, block.feed_forward.norm[...], config.norm_eps)
            x_BLD = constrain(x_BLD + block.feed_forward(h_BLD, compute.placement), "batch", "length", "model")
            return x_BLD, None

        x_BLD, _ = jax.lax.scan(checkpointed(layer, compute.remat), self._embed(tokens_BL), stacked)
        return rms_norm(x_BLD, self.norm[...], config.norm_eps)

    def _attention(self, q_BLNH: Array, k_BLKH: Array, v_BLKH: Array, where: SegmentInfo) -> Array:
        window, compute = self.config.sliding_window, self.compute
        kernels: dict[str, Callable[..., Array]] = {
            "xla": blockwise_attention,
            "cudnn": partial(cudnn_attention, implementation="cudnn"),
            "splash": partial(splash_attention, chip=compute.chip),
            "splash-interpreted": partial(splash_attention, interpret=True),
        }
        kernel = partial(kernels[compute.kernel], window=window)
        queries, keys = (("batch", "length", heads, "head_dim") for heads in ("heads", "kv_heads"))
        split = compute.placement.shard_map(kernel, (queries, keys, keys, ("batch", "length")), queries)
        return split(q_BLNH, k_BLKH, v_BLKH, where)

    def _held(self, weights: nnx.State, one: Array) -> nnx.State:
        """One layer's weights, times a one that the compiler cannot see through.

        A layer casts its weights to the compute dtype. The TPU compiler would rather cast those of all layers at once,
        before the loop, and hold that copy through forward and backward: 1.7 GiB a chip for 7B on eight.
        """
        if self.compute.dtype == jnp.float32:
            return weights
        return jax.tree.map(lambda leaf: leaf * one.astype(leaf.dtype), weights)

    def _embed(self, tokens_BL: Array) -> Array:
        """Rows of the embedding, which stays where it is: each device looks its columns up for all rows of its copy."""
        constrain = self.compute.placement.constrain
        table_VD = constrain(self.embedding[...].astype(self.compute.dtype), "vocab", "embed")
        x_BLD = constrain(table_VD[constrain(tokens_BL, "copy", "length")], "copy", "length", "embed")
        return constrain(x_BLD, "batch", "length", "model")


def abstract_model(config: ModelConfig, compute: Compute) -> tuple[nnx.GraphDef, nnx.State]:
    """Graph definition and parameters as shapes only (each leaf keeps its `axes`); nothing is computed."""
    model = nnx.eval_shape(lambda: Decoder(config, compute, nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)
