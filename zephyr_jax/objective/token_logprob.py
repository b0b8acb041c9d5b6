"""Log-probs of chosen tokens from hidden states, with the unembedding applied to a chunk of columns at a time.

Devices that work on a chunk together are a group; axis letters are in `zephyr_jax.model`.

The loss of all columns at once would need logits [R, M, V], the largest array of a training step by far. A scan over chunks
needs those of one chunk; the custom VJP makes its backward pass do the same, and lets it skip chunks without a target.

The gradient of a column's hidden state is the incoming gradient, one number, times a vector that the forward pass knows. If the
unembedding is frozen, as with adapters, that vector is all the backward pass needs: the forward pass computes it while it has the
logits, and logits are neither saved nor recomputed.
"""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from zephyr_jax.model.config import ModelConfig
from zephyr_jax.model.layers import Placement, finish_logits
from zephyr_jax.model.softcap import softcap_grad


class Chunking(NamedTuple):
    """How the work is cut up; static."""

    columns: int
    """C; the memory that logits take is proportional to it."""
    save_logits: bool
    """Whether the backward pass reads saved logits, float32 [R, M, V] in all, or recomputes them chunk by chunk. Without effect
    if the unembedding is frozen: the backward pass then needs no logits."""
    placement: Placement
    split_vocab: bool = False
    """How devices share the work. False: each has the whole unembedding and its own columns, a group by itself. True: the
    devices that share one copy of the weights are a group, each with a part of the vocabulary for all columns."""

    @classmethod
    def choose(cls, columns: int, save_logits: bool, placement: Placement, tokens: int, vocab: int) -> "Chunking":
        """Split the vocabulary if that sends fewer bytes.

        Args:
            columns: C.
            save_logits: See the field.
            placement: Where arrays live.
            tokens: Columns of all devices.
            vocab: V.
        """
        # Bytes per D: a split vocabulary sends the group's hidden states in forward and backward pass and their gradients
        # (bfloat16, three times two bytes each); separate columns gather the unembedding in both passes (two bytes twice)
        # and reduce its float32 gradient (four).
        group = tokens // placement.num_shards("copy")
        splits = placement.num_shards("split_vocab") > placement.num_shards("vocab")
        return cls(columns, save_logits, placement, splits and 3 * 2 * group <= (2 * 2 + 4) * vocab)

    @property
    def group(self) -> str:
        """Logical axis that the groups stand along."""
        return "copy" if self.split_vocab else "tokens"

    @property
    def vocab(self) -> str:
        """Logical axis of the vocabulary."""
        return "split_vocab" if self.split_vocab else "vocab"

    @property
    def groups(self) -> int:
        """W."""
        return self.placement.num_shards(self.group)

    def split(self, x: Array) -> Array:
        """[R, M, ...] -> [Z, W, X, ...], zeros behind the last column."""
        pad = [(0, 0), (0, -x.shape[1] % self.columns), *[(0, 0)] * (x.ndim - 2)]
        x = jnp.pad(x, pad).reshape(x.shape[0], -1, self.columns, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(x.shape[0], self.groups, -1, *x.shape[3:])

    def merge(self, x: Array, like: Array) -> Array:
        """[Z, W, X, ...] -> [R, M, ...] with the R and M of `like`."""
        x = x.reshape(x.shape[0], like.shape[0], self.columns, *x.shape[3:]).swapaxes(0, 1)
        return x.reshape(like.shape[0], -1, *x.shape[3:])[:, : like.shape[1]]


class _Chunk(NamedTuple):
    """Residuals of a chunk; every field has a leading Z while stacked."""

    hidden_WXD: Array
    tokens_WX: Array
    mask_WX: Array
    normalizer_WX: Array
    logits_WXV: Array | None


class _Trained(NamedTuple):
    """Residuals for the gradients of hidden states and unembedding."""

    chunks: _Chunk
    unembedding_DV: Array


class _Frozen(NamedTuple):
    """Residuals for the gradient of hidden states alone."""

    direction_RMD: Array
    """Derivative of a column's log-prob by its hidden state, in hidden's dtype; 0 outside the mask."""


class _Scores(NamedTuple):
    """What the forward pass knows of a chunk; every field has a leading Z while stacked."""

    chosen_WX: Array
    """Logit of the token."""
    normalizer_WX: Array
    """Log-sum-exp of the logits. Saved instead of the probabilities: the backward pass has these from one exp of the logits."""
    logits_WXV: Array | None
    direction_WXD: Array | None


type _Saved = Literal["nothing", "logits", "direction"]
"""What the scan over chunks returns besides log-probs."""


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def token_logprob(
    hidden_RMD: Array,
    unembedding_DV: Array,
    tokens_RM: Array,
    mask_RM: Array,
    chunking: Chunking,
    config: ModelConfig,
) -> Array:
    """log softmax(logits)[token] of the columns in the mask, logits = hidden unembedding with the model's scale and soft cap.

    Operands of matmuls have hidden's dtype, logits are float32, and the unembedding's gradient is summed over chunks in
    float32, and over groups at the end. A chunk outside the mask is skipped, so masked columns should come first.

    Args:
        hidden_RMD: Final hidden states, in the compute dtype.
        unembedding_DV: In the same dtype.
        tokens_RM: int32 ids to score.
        mask_RM: bool; which columns to score.
        chunking: How the columns are cut up; static.
        config: Scale and soft cap of logits; static.

    Returns:
        float32 [R, M]; 0 outside the mask.
    """
    return _score(hidden_RMD, unembedding_DV, tokens_RM, mask_RM, chunking, config, "nothing")[0]


def _forward(
    hidden: Any, unembedding: Any, tokens: Any, mask: Any, chunking: Chunking, config: ModelConfig
) -> tuple[Array, _Trained | _Frozen]:
    """`token_logprob` with residuals; arrays come as JAX's pairs of a value and whether a gradient is asked of it."""
    saved: _Saved = "direction" if not unembedding.perturbed else "logits" if chunking.save_logits else "nothing"
    arrays = hidden.value, unembedding.value, tokens.value, mask.value
    logprob_RM, hidden_ZWXD, tokens_ZWX, mask_ZWX, scores = _score(*arrays, chunking, config, saved)
    if scores.direction_WXD is not None:
        direction_ZWXD = jnp.where(mask_ZWX[..., None], scores.direction_WXD, 0)
        return logprob_RM, _Frozen(chunking.merge(direction_ZWXD, tokens.value))
    chunks = _Chunk(hidden_ZWXD, tokens_ZWX, mask_ZWX, scores.normalizer_WX, scores.logits_WXV)
    return logprob_RM, _Trained(chunks, chunking.placement.constrain(unembedding.value, "model", chunking.vocab))


def _score(
    hidden_RMD: Array,
    unembedding_DV: Array,
    tokens_RM: Array,
    mask_RM: Array,
    chunking: Chunking,
    config: ModelConfig,
    saved: _Saved,
) -> tuple[Array, Array, Array, Array, _Scores]:
    """Log-probs, float32 [R, M]; hidden states, tokens and mask [Z, W, X, ...]; and the scores of all chunks."""
    unembedding_DV = chunking.placement.constrain(unembedding_DV, "model", chunking.vocab)

    def score(hidden_WXD: Array, tokens_WX: Array) -> _Scores:
        logits_WXV = _logits(hidden_WXD, unembedding_DV, chunking, config)
        chosen_WX = jnp.sum(jnp.where(_one_hot(tokens_WX, logits_WXV), logits_WXV, 0.0), axis=-1)
        normalizer_WX = jax.nn.logsumexp(logits_WXV, axis=-1)
        direction_WXD = None
        if saved == "direction":
            one_WX = jnp.ones_like(chosen_WX)
            grad_WXV = _logits_grad(one_WX, logits_WXV, normalizer_WX, tokens_WX, config, hidden_WXD.dtype)
            direction_WXD = jnp.einsum("wxv,dv->wxd", grad_WXV, unembedding_DV)
        return _Scores(chosen_WX, normalizer_WX, logits_WXV if saved == "logits" else None, direction_WXD)

    def step(_: None, inputs: tuple[Array, Array, Array]) -> tuple[None, _Scores]:
        hidden_WXD, tokens_WX, mask_WX = inputs
        # With targets at the front only the last chunks are empty: `cond` in a scan runs one branch, so they cost nothing.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score, hidden_WXD, tokens_WX))
        return None, jax.lax.cond(jnp.any(mask_WX), score, lambda *_: zeros, hidden_WXD, tokens_WX)

    hidden_ZWXD, tokens_ZWX, mask_ZWX = map(chunking.split, (hidden_RMD, tokens_RM, mask_RM))
    _, scores = jax.lax.scan(step, None, (hidden_ZWXD, tokens_ZWX, mask_ZWX))
    logprob_ZWX = jnp.where(mask_ZWX, scores.chosen_WX - scores.normalizer_WX, 0.0)
    return chunking.merge(logprob_ZWX, tokens_RM), hidden_ZWXD, tokens_ZWX, mask_ZWX, scores


def _backward(
    chunking: Chunking, config: ModelConfig, residuals: _Trained | _Frozen, grad_RM: Array | SymbolicZero
) -> tuple[Array, Array | None, None, None]:
    if isinstance(grad_RM, SymbolicZero):
        grad_RM = jnp.zeros(grad_RM.shape, grad_RM.dtype)
    if isinstance(residuals, _Frozen):
        direction_RMD = residuals.direction_RMD
        return (direction_RMD * grad_RM[..., None]).astype(direction_RMD.dtype), None, None, None
    return *_trained_backward(chunking, config, residuals, grad_RM), None, None


def _trained_backward(
    chunking: Chunking, config: ModelConfig, residuals: _Trained, grad_RM: Array
) -> tuple[Array, Array]:
    """Gradients of hidden states [R, M, D] and unembedding [D, V]."""
    (chunks, unembedding_DV), constrain = residuals, chunking.placement.constrain

    def add(total_WDV: Array, chunk: _Chunk, grad_WX: Array) -> tuple[Array, Array]:
        hidden_WXD, logits_WXV = chunk.hidden_WXD, chunk.logits_WXV
        if logits_WXV is None:
            logits_WXV = _logits(hidden_WXD, unembedding_DV, chunking, config)
        grad_WXV = _logits_grad(grad_WX, logits_WXV, chunk.normalizer_WX, chunk.tokens_WX, config, hidden_WXD.dtype)
        hidden_WXD = constrain(hidden_WXD, chunking.group, None, "model")
        grad_WDV = jnp.einsum("wxd,wxv->wdv", hidden_WXD, grad_WXV, preferred_element_type=jnp.float32)
        return total_WDV + grad_WDV, jnp.einsum("wxv,dv->wxd", grad_WXV, unembedding_DV)

    def skip(total_WDV: Array, chunk: _Chunk, _: Array) -> tuple[Array, Array]:
        return total_WDV, jnp.zeros_like(chunk.hidden_WXD)

    def step(total_WDV: Array, inputs: tuple[_Chunk, Array]) -> tuple[Array, Array]:
        chunk, grad_WX = inputs
        total_WDV, grad_hidden_WXD = jax.lax.cond(jnp.any(chunk.mask_WX), add, skip, total_WDV, chunk, grad_WX)
        return constrain(total_WDV, chunking.group, "model", chunking.vocab), grad_hidden_WXD

    # The sum over chunks stays apart per group, sharded like the weights: one reduction at the end instead of one per chunk.
    grad_ZWX = jnp.where(chunks.mask_WX, chunking.split(grad_RM), 0.0)
    zeros_WDV = jnp.zeros((chunking.groups, *unembedding_DV.shape), jnp.float32)
    zeros_WDV = constrain(zeros_WDV, chunking.group, "model", chunking.vocab)
    total_WDV, grad_hidden_ZWXD = jax.lax.scan(step, zeros_WDV, (chunks, grad_ZWX))
    grad_unembedding_DV = jnp.sum(total_WDV, axis=0).astype(unembedding_DV.dtype)
    return chunking.merge(grad_hidden_ZWXD, grad_RM), grad_unembedding_DV


token_logprob.defvjp(_forward, _backward, symbolic_zeros=True)


def _logits_grad(
    grad_WX: Array, logits_WXV: Array, normalizer_WX: Array, tokens_WX: Array, config: ModelConfig, dtype: jnp.dtype
) -> Array:
    """Gradient [W, X, V] of hidden times unembedding, in `dtype`, from the gradient of log-probs."""
    # d log p[token] / d logits = one_hot - probs, rounded to the compute dtype once, as autodiff would at the matmul.
    probs_WXV = jnp.exp(logits_WXV - normalizer_WX[..., None])
    grad_WXV = grad_WX[..., None] * (_one_hot(tokens_WX, probs_WXV) - probs_WXV)
    if config.logit_softcap is not None:
        grad_WXV *= softcap_grad(logits_WXV, config.logit_softcap)
    if config.logit_scale != 1:
        grad_WXV *= config.logit_scale
    # Without the barrier XLA fuses exp and subtraction into both products and computes them twice: see `model.linear`.
    rounded_WXV: Array = jax.lax.optimization_barrier(grad_WXV.astype(dtype))
    return rounded_WXV


def _logits(hidden_WXD: Array, unembedding_DV: Array, chunking: Chunking, config: ModelConfig) -> Array:
    constrain = chunking.placement.constrain
    hidden_WXD = constrain(hidden_WXD, chunking.group, None, "model")
    logits_WXV = jnp.einsum("wxd,dv->wxv", hidden_WXD, unembedding_DV, preferred_element_type=jnp.float32)
    return finish_logits(constrain(logits_WXV, chunking.group, None, chunking.vocab), config)


def _one_hot(tokens_WX: Array, values_WXV: Array) -> Array:
    """bool [W, X, V]. A comparison instead of a gather: with a split vocabulary each device compares its own part."""
    return jnp.arange(values_WXV.shape[-1]) == tokens_WX[..., None]
