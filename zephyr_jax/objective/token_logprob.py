"""Log-probs of chosen tokens from hidden states, with the unembedding applied to a chunk of columns at a time.

Letters: R devices along the batch, M columns of each, C columns of a chunk, Z chunks, D model, V vocab. Devices that work
on a chunk together are a group: A groups, Q = R / A * C columns of a group's chunk.

The loss of all columns at once would need logits [R, M, V], the largest array of a training step by far. A scan over chunks
needs those of one chunk; the custom VJP makes its backward pass do the same, and lets it skip chunks without a target.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from zephyr_jax.model.layers import Placement


class Chunking(NamedTuple):
    """How the work is cut up; static."""

    columns: int
    """C; the memory that logits take is proportional to it."""
    save_logits: bool
    """Whether the backward pass reads saved logits, float32 [R, M, V] in all, or recomputes them chunk by chunk."""
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
        return "copy" if self.split_vocab else "batch"

    @property
    def vocab(self) -> str:
        """Logical axis of the vocabulary."""
        return "split_vocab" if self.split_vocab else "vocab"

    @property
    def groups(self) -> int:
        """A."""
        return self.placement.num_shards(self.group)

    def split(self, x: Array) -> Array:
        """[R, M, ...] -> [Z, A, Q, ...], zeros behind the last column."""
        pad = [(0, 0), (0, -x.shape[1] % self.columns), *[(0, 0)] * (x.ndim - 2)]
        x = jnp.pad(x, pad).reshape(x.shape[0], -1, self.columns, *x.shape[2:]).swapaxes(0, 1)
        return x.reshape(x.shape[0], self.groups, -1, *x.shape[3:])

    def merge(self, x: Array, like: Array) -> Array:
        """[Z, A, Q, ...] -> [R, M, ...] with the R and M of `like`."""
        x = x.reshape(x.shape[0], like.shape[0], self.columns, *x.shape[3:]).swapaxes(0, 1)
        return x.reshape(like.shape[0], -1, *x.shape[3:])[:, : like.shape[1]]


class _Chunk(NamedTuple):
    """Residuals of a chunk; every field has a leading Z while stacked."""

    hidden_AQD: Array
    tokens_AQ: Array
    mask_AQ: Array
    normalizer_AQ: Array
    logits_AQV: Array | None


type _Residuals = tuple[_Chunk, Array]
"""What the forward pass saves: all chunks, and the unembedding."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def token_logprob(
    hidden_RMD: Array, unembedding_DV: Array, tokens_RM: Array, mask_RM: Array, chunking: Chunking
) -> Array:
    """log softmax(hidden unembedding)[token] of the columns in the mask.

    Operands of matmuls have hidden's dtype, logits are float32, and the unembedding's gradient is summed over chunks in
    float32, and over groups at the end. A chunk outside the mask is skipped, so masked columns should come first.

    Args:
        hidden_RMD: Final hidden states, in the compute dtype.
        unembedding_DV: In the same dtype.
        tokens_RM: int32 ids to score.
        mask_RM: bool; which columns to score.
        chunking: How the columns are cut up; static.

    Returns:
        float32 [R, M]; 0 outside the mask.
    """
    return _forward(hidden_RMD, unembedding_DV, tokens_RM, mask_RM, chunking)[0]


def _forward(
    hidden_RMD: Array, unembedding_DV: Array, tokens_RM: Array, mask_RM: Array, chunking: Chunking
) -> tuple[Array, _Residuals]:
    unembedding_DV = chunking.placement.constrain(unembedding_DV, "model", chunking.vocab)

    def score(hidden_AQD: Array, tokens_AQ: Array) -> tuple[Array, Array, Array | None]:
        logits_AQV = _logits(hidden_AQD, unembedding_DV, chunking)
        chosen_AQ = jnp.sum(jnp.where(_one_hot(tokens_AQ, logits_AQV), logits_AQV, 0.0), axis=-1)
        return chosen_AQ, jax.nn.logsumexp(logits_AQV, axis=-1), logits_AQV if chunking.save_logits else None

    def step(_: None, inputs: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array, Array | None]]:
        hidden_AQD, tokens_AQ, mask_AQ = inputs
        # With targets at the front only the last chunks are empty: `cond` in a scan runs one branch, so they cost nothing.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score, hidden_AQD, tokens_AQ))
        return None, jax.lax.cond(jnp.any(mask_AQ), score, lambda *_: zeros, hidden_AQD, tokens_AQ)

    hidden_ZAQD, tokens_ZAQ, mask_ZAQ = map(chunking.split, (hidden_RMD, tokens_RM, mask_RM))
    _, (chosen_ZAQ, normalizer_ZAQ, logits_ZAQV) = jax.lax.scan(step, None, (hidden_ZAQD, tokens_ZAQ, mask_ZAQ))
    # The normalizer [Z, A, Q] is saved instead of the probabilities: the backward pass has these from one exp of the logits.
    logprob_ZAQ = jnp.where(mask_ZAQ, chosen_ZAQ - normalizer_ZAQ, 0.0)
    residuals = _Chunk(hidden_ZAQD, tokens_ZAQ, mask_ZAQ, normalizer_ZAQ, logits_ZAQV), unembedding_DV
    return chunking.merge(logprob_ZAQ, tokens_RM), residuals


def _backward(chunking: Chunking, residuals: _Residuals, grad_RM: Array) -> tuple[Array, Array, None, None]:
    (chunks, unembedding_DV), constrain = residuals, chunking.placement.constrain

    def add(total_ADV: Array, chunk: _Chunk, grad_AQ: Array) -> tuple[Array, Array]:
        logits_AQV = chunk.logits_AQV
        if logits_AQV is None:
            logits_AQV = _logits(chunk.hidden_AQD, unembedding_DV, chunking)
        # d log p[token] / d logits = one_hot - probs, rounded to the compute dtype once, as autodiff would at the matmul.
        probs_AQV = jnp.exp(logits_AQV - chunk.normalizer_AQ[..., None])
        one_hot_AQV = _one_hot(chunk.tokens_AQ, probs_AQV)
        grad_AQV = (grad_AQ[..., None] * (one_hot_AQV - probs_AQV)).astype(chunk.hidden_AQD.dtype)
        # Without the barrier XLA fuses exp and subtraction into both products and computes them twice: see `model.linear`.
        grad_AQV = jax.lax.optimization_barrier(grad_AQV)
        hidden_AQD = constrain(chunk.hidden_AQD, chunking.group, None, "model")
        grad_ADV = jnp.einsum("aqd,aqv->adv", hidden_AQD, grad_AQV, preferred_element_type=jnp.float32)
        return total_ADV + grad_ADV, jnp.einsum("aqv,dv->aqd", grad_AQV, unembedding_DV)

    def skip(total_ADV: Array, chunk: _Chunk, _: Array) -> tuple[Array, Array]:
        return total_ADV, jnp.zeros_like(chunk.hidden_AQD)

    def step(total_ADV: Array, inputs: tuple[_Chunk, Array]) -> tuple[Array, Array]:
        chunk, grad_AQ = inputs
        total_ADV, grad_hidden_AQD = jax.lax.cond(jnp.any(chunk.mask_AQ), add, skip, total_ADV, chunk, grad_AQ)
        return constrain(total_ADV, chunking.group, "model", chunking.vocab), grad_hidden_AQD

    # The sum over chunks stays apart per group, sharded like the weights: one reduction at the end instead of one per chunk.
    grad_ZAQ = jnp.where(chunks.mask_AQ, chunking.split(grad_RM), 0.0)
    zeros_ADV = jnp.zeros((chunking.groups, *unembedding_DV.shape), jnp.float32)
    zeros_ADV = constrain(zeros_ADV, chunking.group, "model", chunking.vocab)
    total_ADV, grad_hidden_ZAQD = jax.lax.scan(step, zeros_ADV, (chunks, grad_ZAQ))
    grad_unembedding_DV = jnp.sum(total_ADV, axis=0).astype(unembedding_DV.dtype)
    return chunking.merge(grad_hidden_ZAQD, grad_RM), grad_unembedding_DV, None, None


token_logprob.defvjp(_forward, _backward)


def _logits(hidden_AQD: Array, unembedding_DV: Array, chunking: Chunking) -> Array:
    constrain = chunking.placement.constrain
    hidden_AQD = constrain(hidden_AQD, chunking.group, None, "model")
    logits_AQV = jnp.einsum("aqd,dv->aqv", hidden_AQD, unembedding_DV, preferred_element_type=jnp.float32)
    return constrain(logits_AQV, chunking.group, None, chunking.vocab)


def _one_hot(tokens_AQ: Array, values_AQV: Array) -> Array:
    """bool [A, Q, V]. A comparison instead of a gather: with a split vocabulary each device compares its own part."""
    return jnp.arange(values_AQV.shape[-1]) == tokens_AQ[..., None]
