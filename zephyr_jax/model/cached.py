"""The decoder with a key-value cache, for generation: a few new tokens per row, at a different position in each row.

Weights are unstacked and cast once, so that no step copies a layer out of the stack or casts it again. The cache of a row is a
ring of J slots: position p is in slot p mod J, and tokens that the sliding window has passed are overwritten.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zephyr_jax.model.attention.cache import cache_attention, num_live_slots
from zephyr_jax.model.attention.dense import SegmentInfo
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.decoder import Compute, DecoderBlock, abstract_model, build
from zephyr_jax.model.layers import finish_logits, model_norm, scale_embeddings, scale_queries
from zephyr_jax.model.rope import rotary
from zephyr_jax.model.weight_format import PLAIN, WeightFormat, stored_weights


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
    """Keys and values of every layer, each [B, K, J, H], and segments and positions of the J slots, [B, J]."""

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    info: SegmentInfo
    """Segment 0: the slot is empty."""

    @property
    def slots(self) -> int:
        """J."""
        return self.info.segments.shape[1]


class _Names(tuple[str | None, ...]):
    """Logical axes of one array; a leaf to JAX, unlike a plain tuple."""


@dataclass(frozen=True)
class CachedModel:
    """A model without its weights. Hashable: a static argument of jitted functions."""

    config: ModelConfig
    compute: Compute
    weight_format: WeightFormat = PLAIN

    def flatten(self, parameters: Any) -> FlatWeights:
        """Weights for generation from training's, with the same shardings. Call it under `jax.jit`."""
        dtype, constrain = self.compute.dtype, self.compute.placement.constrain
        stored = self._stored_weights()["decoder"]

        def layer(index: int) -> Any:
            return jax.tree.map(
                lambda leaf, weight: leaf[index].astype(dtype) if weight.is_cast else leaf[index],
                parameters["decoder"],
                stored,
            )

        embedding = parameters["embedding"].astype(dtype)
        unembedding = embedding.T if self.config.tie_embeddings else parameters["unembedding"].astype(dtype)
        layers = tuple(layer(index) for index in range(self.config.num_layers))
        flat = FlatWeights(embedding, layers, parameters["norm"], unembedding)
        result: FlatWeights = jax.tree.map(lambda leaf, names: constrain(leaf, *names), flat, self.stored_axes())
        return result

    def stored_axes(self) -> FlatWeights:
        """Logical axes of every weight; each is one leaf."""
        layer = jax.tree.map(lambda weight: _Names(weight.axes[1:]), self._stored_weights()["decoder"])
        layers = tuple(layer for _ in range(self.config.num_layers))
        stored, V, D = self.compute.placement.stored_axes, self.config.vocab_size, self.config.d_model
        embedding, unembedding = stored(("vocab", "embed"), (V, D)), stored(("embed", "vocab"), (D, V))
        return FlatWeights(_Names(embedding), layers, _Names(("norm",)), _Names(unembedding))

    def _stored_weights(self) -> Any:
        return stored_weights(self.config, abstract_model(self.config, self.compute)[1], self.weight_format)

    def empty_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache. Call it under `jax.jit`."""
        config, constrain = self.config, self.compute.placement.constrain
        sizes = (rows, config.num_kv_heads, slots, config.head_dim)
        keys, values = (tuple(jnp.zeros(sizes, self.compute.dtype) for _ in range(config.num_layers)) for _ in range(2))
        cache = KVCache(keys, values, SegmentInfo(*(jnp.zeros((rows, slots), jnp.int32) for _ in range(2))))
        result: KVCache = jax.tree.map(lambda leaf: constrain(leaf, *CACHE_AXES[leaf.ndim]), cache)
        return result

    def extend(
        self, weights: FlatWeights, tokens_BL: Array, info: SegmentInfo, cache: KVCache
    ) -> tuple[Array, KVCache]:
        """Run new tokens through the model and store their keys and values.

        Args:
            weights: Of `flatten`.
            tokens_BL: New tokens.
            info: Their segments and positions [B, L]; segment 0 is padding and takes no slot. Positions of a row are consecutive.
            cache: J is at least the window plus L, or all positions that the row will have, so that no token takes the slot of
                one that is still visible.

        Returns:
            Final hidden states [B, L, D], and the cache with the new tokens.
        """
        config, placement = self.config, self.compute.placement
        ropes = {kind.rope: rotary(info.positions, kind.rope, config.rotary_dim) for kind in config.layer_kinds}
        # Slot J does not exist: padding is written there and dropped.
        slot_BL = jnp.where(info.segments > 0, info.positions % cache.slots, cache.slots)
        row_B1 = jnp.arange(tokens_BL.shape[0])[:, None]
        slots_info = jax.tree.map(lambda old, new: old.at[row_B1, slot_BL].set(new, mode="drop"), cache.info, info)
        num_live = num_live_slots(info, slots_info)
        definition = nnx.split(nnx.eval_shape(lambda: DecoderBlock(config, nnx.Rngs(0))))[0]

        def store(past_BKJH: Array, new_BLKH: Array) -> Array:
            filled = past_BKJH.at[row_B1, :, slot_BL].set(new_BLKH.astype(past_BKJH.dtype), mode="drop")
            return placement.constrain(filled, *CACHE_AXES[4])

        x_BLD = placement.constrain(weights.embedding[tokens_BL], "batch", "length", "model")
        x_BLD = scale_embeddings(x_BLD, config)
        keys, values = list(cache.keys), list(cache.values)
        for index, (layer, kind) in enumerate(zip(weights.layers, config.layer_kinds, strict=True)):

            def attend(
                q_BLNH: Array, k_BLKH: Array, v_BLKH: Array, index: int = index, window: int | None = kind.window
            ) -> Array:
                q_BLNH = scale_queries(q_BLNH, info.positions, config.query_scaling)
                keys[index], values[index] = store(keys[index], k_BLKH), store(values[index], v_BLKH)
                return cache_attention(
                    q_BLNH,
                    keys[index],
                    values[index],
                    info,
                    slots_info,
                    num_live,
                    window,
                    scale=config.attention_scale,
                    softcap=config.attention_softcap,
                )

            block: DecoderBlock = build(definition, layer)
            x_BLD = block(x_BLD, ropes[kind.rope], attend, placement)
        return model_norm(x_BLD, weights.norm, config), KVCache(tuple(keys), tuple(values), slots_info)


def unembed(weights: FlatWeights, x_BD: Array, config: ModelConfig) -> Array:
    """Logits, float32 [B, V], of final hidden states."""
    logits_BV = jnp.einsum("bd,dv->bv", x_BD, weights.unembedding, preferred_element_type=jnp.float32)
    return finish_logits(logits_BV, config)
