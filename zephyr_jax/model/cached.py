"""The decoder with a cache: a few new tokens a row, each row at a place of its own. For generation.

Weights are unstacked and cast once, so that no step copies a layer out of the stack or casts it again. The cache of a row is a
ring: position p lies in slot p mod S, and what the sliding window has passed is overwritten.
Letters: B rows, L new tokens of a row, S slots of a row, K kv heads, H head dim, D model, V vocab, Y layers.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zephyr_jax.model.attention.dense import SegmentInfo, dense_attention
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, DecoderLayers, abstract_model
from zephyr_jax.model.layers import rms_norm, rotary


class FlatWeights(NamedTuple):
    """A model's weights, layer by layer, in the compute dtype (norms in float32)."""

    embedding: Any
    layers: tuple[Any, ...]
    norm: Any
    unembedding: Any
    """[D, V]; the embedding's transpose when tied."""


CACHE_AXES: dict[int, tuple[str | None, ...]] = {4: ("batch", "kv_heads", "length", "head_dim"), 2: ("batch", None)}
"""Logical axes of a cache's arrays, by their number of dimensions."""


class KVCache(NamedTuple):
    """Keys and values of every layer, each [B, K, S, H], and what stands in the S slots, [B, S]."""

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    where: SegmentInfo
    """Segment 0: nothing stands there."""

    @property
    def slots(self) -> int:
        """S."""
        return self.where.segments.shape[1]


class _Names(tuple[str | None, ...]):
    """Logical axes of one array; a leaf to JAX, unlike a plain tuple."""


@dataclass(frozen=True)
class CachedModel:
    """A model without its weights. Hashable: static to the programs that use it."""

    config: ModelConfig
    compute: Compute

    def flatten(self, parameters: Any) -> FlatWeights:
        """The weights as generation wants them, made from training's, each where its parts are. To be jitted."""
        dtype, constrain = self.compute.dtype, self.compute.placement.constrain

        def layer(index: int) -> Any:
            return jax.tree.map(
                lambda leaf: leaf[index] if leaf.ndim == 2 else leaf[index].astype(dtype), parameters["decoder"]
            )

        embedding = parameters["embedding"].astype(dtype)
        unembedding = embedding.T if self.config.tie_embeddings else parameters["unembedding"].astype(dtype)
        layers = tuple(layer(index) for index in range(self.config.num_layers))
        flat = FlatWeights(embedding, layers, parameters["norm"], unembedding)
        return jax.tree.map(lambda leaf, names: constrain(leaf, *names), flat, self.stored_axes())

    def stored_axes(self) -> FlatWeights:
        """Logical axes of every flat weight; each is one leaf."""
        stacked = self._stacked_axes()
        layer = jax.tree.map(lambda names: _Names(names[1:]), stacked["decoder"])
        layers = tuple(layer for _ in range(self.config.num_layers))
        stored, V, D = self.compute.placement.stored_axes, self.config.vocab_size, self.config.d_model
        embedding, unembedding = stored(("vocab", "embed"), (V, D)), stored(("embed", "vocab"), (D, V))
        return FlatWeights(_Names(embedding), layers, _Names(("norm",)), _Names(unembedding))

    def _stacked_axes(self) -> Any:
        _, state = abstract_model(self.config, self.compute)

        def is_weight(leaf: Any) -> bool:
            return isinstance(leaf, nnx.Variable)

        names = jax.tree.map(lambda leaf: leaf.replace(_Names(leaf.get_metadata("axes"))), state, is_leaf=is_weight)
        return nnx.to_pure_dict(names)

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """A cache in which nothing stands. To be jitted."""
        config, constrain = self.config, self.compute.placement.constrain
        sizes = (rows, config.num_kv_heads, slots, config.head_dim)
        keys, values = (tuple(jnp.zeros(sizes, self.compute.dtype) for _ in range(config.num_layers)) for _ in range(2))
        cache = KVCache(keys, values, SegmentInfo(*(jnp.zeros((rows, slots), jnp.int32) for _ in range(2))))
        return jax.tree.map(lambda leaf: constrain(leaf, *CACHE_AXES[leaf.ndim]), cache)

    def extend(
        self, weights: FlatWeights, tokens_BL: Array, where: SegmentInfo, cache: KVCache
    ) -> tuple[Array, KVCache]:
        """Final hidden states [B, L, D] of new tokens, which take their slots, and the cache with them.

        Tokens of segment 0 are padding: they take no slot. Of one row, positions are consecutive, and a slot that a token of
        the row still sees must not be taken by another: S is at least the window plus L, or all positions that there will
        be.
        """
        config, placement = self.config, self.compute.placement
        cosine, sine = rotary(where.positions, config.head_dim, config.rope_theta)
        slot_BL = jnp.where(where.segments > 0, where.positions % cache.slots, cache.slots)
        row_B1 = jnp.arange(tokens_BL.shape[0])[:, None]
        standing = jax.tree.map(lambda old, new: old.at[row_B1, slot_BL].set(new, mode="drop"), cache.where, where)
        definition = nnx.split(nnx.eval_shape(lambda: DecoderLayers(config, nnx.Rngs(0))))[0]

        def store(past_BKSH: Array, new_BLKH: Array) -> Array:
            filled = past_BKSH.at[row_B1, :, slot_BL].set(new_BLKH.astype(past_BKSH.dtype), mode="drop")
            return placement.constrain(filled, *CACHE_AXES[4])

        x_BLD = placement.constrain(weights.embedding[tokens_BL], "batch", "length", "model")
        keys, values = [], []
        for index, layer in enumerate(weights.layers):
            block: DecoderLayers = nnx.merge(definition, layer)
            h_BLD = rms_norm(x_BLD, block.attention.norm[...], config.norm_eps)
            q, k, v = block.attention.project(h_BLD, cosine, sine)
            keys.append(store(cache.keys[index], k))
            values.append(store(cache.values[index], v))
            key_BSKH, value_BSKH = (each[-1].transpose(0, 2, 1, 3) for each in (keys, values))
            mixed_BLNH = dense_attention(q, key_BSKH, value_BSKH, where, standing, config.sliding_window)
            x_BLD = placement.constrain(x_BLD + block.attention.merge(mixed_BLNH), "batch", "length", "model")
            h_BLD = rms_norm(x_BLD, block.feed_forward.norm[...], config.norm_eps)
            x_BLD = placement.constrain(x_BLD + block.feed_forward(h_BLD, placement), "batch", "length", "model")
        return rms_norm(x_BLD, weights.norm, config.norm_eps), KVCache(tuple(keys), tuple(values), standing)


def unembed(weights: FlatWeights, x_BD: Array) -> Array:
    """float32 [B, V] logits of final hidden states."""
    return jnp.einsum("bd,dv->bv", x_BD, weights.unembedding, preferred_element_type=jnp.float32)
