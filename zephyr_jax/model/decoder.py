"""The decoder: tokens to final hidden states; `objective.logprob` applies the unembedding.

All layers are one module whose weights have a leading layer axis. The forward pass scans over it, so compile time does not grow
with depth. `cached` runs the same blocks with a key-value cache.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from zephyr_jax.config.sections import Remat
from zephyr_jax.model.attention.blockwise import blockwise_attention
from zephyr_jax.model.attention.context import context_attention
from zephyr_jax.model.attention.dense import ATTENTION, SegmentInfo, cudnn_attention
from zephyr_jax.model.attention.shared_prompt import SharedInfo, unshared_attention
from zephyr_jax.model.attention.splash import splash_attention
from zephyr_jax.model.attention.zigzag import to_zigzag
from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.layer_stack import LayerStack
from zephyr_jax.model.layers import (
    Attention,
    FeedForward,
    Placement,
    SingleDevice,
    finish_logits,
    model_norm,
    norm_scale,
    scale_embeddings,
    scale_queries,
    weight,
)
from zephyr_jax.model.lora import adapted
from zephyr_jax.model.remat import INPUT, checkpointed
from zephyr_jax.model.rope import rotary


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How the forward pass runs; it changes results by rounding only."""

    dtype: jnp.dtype = jnp.dtype("bfloat16")
    remat: Remat = Remat.FULL
    """Rematerialization policy of a block."""
    placement: Placement = SingleDevice()
    save_logits: bool = False
    """Whether the logits of targets are saved for the backward pass, or recomputed chunk by chunk."""
    kernel: Literal["xla", "cudnn", "splash", "splash-interpreted"] = "xla"
    """Attention of packed rows: blockwise in XLA, the GPU kernel, or the TPU kernel (interpreted: on a CPU, for tests)."""
    chip: str = ""
    """JAX's device kind, which decides the block size of the TPU kernel."""


class DecoderBlock(nnx.Module):
    """Attention and feed-forward with norms and residuals: weights of all layers stacked, or of one layer when it is called."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.attention = Attention(config, rngs)
        self.feed_forward = FeedForward(config, rngs)

    def __call__(
        self,
        x_BLD: Array,
        rope: tuple[Array, Array],
        attend: Callable[[Array, Array, Array], Array],
        placement: Placement,
    ) -> Array:
        """One layer.

        Args:
            x_BLD: Hidden states in the compute dtype.
            rope: Cosine and sine of `rotary`.
            attend: Rotated queries [B, L, N, H], rotated keys and values [B, L, K, H] -> mixed values [B, L, N, H].
            placement: Constrains the hidden states.
        """
        attention, feed_forward = self.attention, self.feed_forward
        mixed_BLNH = attend(*attention.project(attention.norm_input(x_BLD), *rope))
        x_BLD = x_BLD + attention.norm_output(attention.merge(mixed_BLNH))
        x_BLD = placement.constrain(x_BLD, "batch", "length", "model")
        hidden_BLD = feed_forward(feed_forward.norm_input(x_BLD), placement)
        return placement.constrain(x_BLD + feed_forward.norm_output(hidden_BLD), "batch", "length", "model")


class Decoder(nnx.Module):
    """Decoder-only transformer of the families in `model.families`. Names of attributes are keys of saved parameters."""

    def __init__(self, config: ModelConfig, compute: Compute, rngs: nnx.Rngs):
        self.config, self.compute = config, compute
        V, D = config.vocab_size, config.d_model
        self.embedding = weight(rngs, (V, D), ("vocab", "embed"), 0.02)
        self.decoder = DecoderBlock(config, rngs)
        self.norm = norm_scale((D,), ("norm",))
        if not config.tie_embeddings:
            self.unembedding = weight(rngs, (D, V), ("embed", "vocab"), D**-0.5)

    @property
    def unembedding_DV(self) -> Array:
        """Weights from hidden states to logits, float32 [D, V]; the embedding's transpose when tied."""
        return self.embedding[...].T if self.config.tie_embeddings else self.unembedding[...]

    def logits(self, x_BLD: Array) -> Array:
        """Logits, float32 [B, L, V], of final hidden states; only for short L."""
        weights_DV = self.unembedding_DV.astype(x_BLD.dtype)
        logits_BLV = jnp.einsum("bld,dv->blv", x_BLD, weights_DV, preferred_element_type=jnp.float32)
        return finish_logits(logits_BLV, self.config)

    def __call__(self, tokens_BL: Array, info: SegmentInfo, shared: SharedInfo | None = None) -> Array:
        """Final hidden states [B, L, D], in the compute dtype, of packed rows.

        Args:
            tokens_BL: int32 token ids.
            info: Their segments and positions.
            shared: Layout of shared prompts.

        Where a mesh splits rows, the columns of the result are in zigzag order (`attention.zigzag`).
        """
        config, compute = self.config, self.compute
        shards = compute.placement.num_shards("length")
        positions_BL = to_zigzag(info.positions, shards)
        definition, stacked = nnx.split(self.decoder)
        # A window of the whole row hides nothing: layers that differ in it alone then share one kernel.
        length = tokens_BL.shape[1]
        windows, window_of_layer = _numbered(
            [None if kind.window is not None and kind.window >= length else kind.window for kind in config.layer_kinds]
        )
        ropes, rope_of_layer = _numbered([kind.rope for kind in config.layer_kinds])
        tables = [rotary(positions_BL, rope, config.rotary_dim) for rope in ropes]
        kernels = [self._attention(window, shared is not None) for window in windows]
        layout = info if shared is None else shared
        stack = LayerStack.of(stacked, compute.dtype)

        def layer(x_BLD: Array, inputs: tuple[Array, list[Array]]) -> tuple[Array, None]:
            index, _ = inputs
            block: DecoderBlock = nnx.merge(definition, stack.layer(*inputs))
            rope = _chosen(tables, rope_of_layer, index)

            @jax.named_scope(ATTENTION)
            def attend(q_BLNH: Array, k_BLKH: Array, v_BLKH: Array) -> Array:
                q_BLNH = scale_queries(q_BLNH, positions_BL, config.query_scaling)
                if len(kernels) == 1:
                    return kernels[0](q_BLNH, k_BLKH, v_BLKH, layout)
                # Windows are static in the kernels: a layer runs the branch of its window.
                result: Array = jax.lax.switch(window_of_layer[index], kernels, q_BLNH, k_BLKH, v_BLKH, layout)
                return result

            return block(checkpoint_name(x_BLD, INPUT), rope, attend, compute.placement), None

        layers = jnp.arange(config.num_layers, dtype=jnp.int32), stack.scanned
        x_BLD, _ = jax.lax.scan(checkpointed(layer, compute.remat), self._embed(to_zigzag(tokens_BL, shards)), layers)
        return model_norm(x_BLD, self.norm[...], config)

    def _attention(self, window: int | None, shares_prompts: bool) -> Callable[..., Array]:
        """Attention of packed rows: queries, keys, values and `SegmentInfo` (`SharedInfo`) -> mixed values."""
        config, compute = self.config, self.compute
        kernels: dict[str, Callable[..., Array]] = {
            "xla": blockwise_attention,
            "cudnn": partial(cudnn_attention, implementation="cudnn"),
            "splash": partial(splash_attention, chip=compute.chip),
            "splash-interpreted": partial(splash_attention, interpret=True),
        }
        kernel: Callable[..., Array] = partial(
            kernels[compute.kernel], window=window, scale=config.attention_scale, softcap=config.attention_softcap
        )
        if compute.placement.num_shards("length") > 1:
            kernel = partial(context_attention, kernel=kernel, placement=compute.placement)
        elif shares_prompts:
            kernel = partial(unshared_attention, kernel=kernel)
        queries, keys = (("batch", "length", heads, "head_dim") for heads in ("heads", "kv_heads"))
        # Attention is independent per row and head, so each device runs the kernel on its own shard.
        return compute.placement.shard_map(kernel, (queries, keys, keys, ("batch", None)), queries)

    def _embed(self, tokens_BL: Array) -> Array:
        """Embeddings of the tokens, [B, L, D]."""
        # The table stays sharded. Each device looks up its columns of D for all tokens of the devices that share its copy of the
        # weights; only the result, which is smaller than the table, is then moved to the layout of the rows.
        constrain = self.compute.placement.constrain
        table_VD = constrain(self.embedding[...].astype(self.compute.dtype), "vocab", "embed")
        x_BLD = constrain(table_VD[constrain(tokens_BL, "copy", None)], "copy", None, "embed")
        # Two moves, first to the parts of rows, then to the rows: for both at once the compiler makes every device gather all.
        x_BLD = constrain(x_BLD, "copy", "length", "embed_of_part")
        return scale_embeddings(constrain(x_BLD, "batch", "length", "model"), self.config)


def _numbered[T](values: list[T]) -> tuple[list[T], Array]:
    """The distinct values, and the number of each layer's among them, int32 [Y]."""
    distinct = list(dict.fromkeys(values))
    return distinct, jnp.array([distinct.index(value) for value in values], jnp.int32)


def _chosen(tables: list[tuple[Array, Array]], of_layer: Array, index: Array) -> tuple[Array, Array]:
    """The rotary table of a layer."""
    if len(tables) == 1:
        return tables[0]
    cosines, sines = (jnp.stack(parts) for parts in zip(*tables, strict=True))
    return cosines[of_layer[index]], sines[of_layer[index]]


def build(definition: nnx.GraphDef[Any], parameters: Any) -> Any:
    """The module of a graph definition with these parameters, some of which may be nodes of `model.lora`."""
    return nnx.merge(definition, adapted(parameters))


def abstract_model(config: ModelConfig, compute: Compute) -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any]]:
    """Graph definition and parameters as shapes only (each leaf keeps its `axes`); nothing is computed."""
    model = nnx.eval_shape(lambda: Decoder(config, compute, nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)
