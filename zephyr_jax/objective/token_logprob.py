"""Log-probs of chosen tokens from hidden states, with the unembedding applied to a chunk of columns at a time.

Letters: R devices along the batch, M columns of each, C columns of a chunk, Z chunks, D model, V vocab. Devices that work
on a chunk together are a group: A groups, Q = R / A * C columns of a group's chunk.
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
    """Whether logits are kept for the backward pass, float32 [R, M, V] in all, or made anew chunk by chunk."""
    placement: Placement
    split_vocab: bool = False
    """How devices share the work. False: each has the whole unembedding and its own columns, a group by itself. True: the
    devices that share one copy of the weights are a group, each with a part of the vocabulary for all columns."""

    @classmethod
    def choose(cls, columns: int, save_logits: bool, placement: Placement, tokens: int, vocab: int) -> "Chunking":
        """Split the vocabulary where that sends less: hidden states of a group's `tokens` there and back (three times two
        bytes each), not the unembedding (two bytes twice) and its gradient (four)."""
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

    def join(self, x: Array, like: Array) -> Array:
        """[Z, A, Q, ...] -> [R, M, ...] with the R and M of `like`."""
        x = x.reshape(x.shape[0], like.shape[0], self.columns, *x.shape[3:]).swapaxes(0, 1)
        return x.reshape(like.shape[0], -1, *x.shape[3:])[:, : like.shape[1]]


class _Chunk(NamedTuple):
    """What the backward pass needs of a chunk; every field has a leading Z while stacked."""

    hidden_AQD: Array
    tokens_AQ: Array
    wanted_AQ: Array
    normalizer_AQ: Array
    logits_AQV: Array | None


type _Kept = tuple[_Chunk, Array]
"""All chunks, and the unembedding."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def token_logprob(
    hidden_RMD: Array, unembedding_DV: Array, tokens_RM: Array, wanted_RM: Array, chunking: Chunking
) -> Array:
    """log softmax(hidden unembedding)[token], float32 [R, M]; 0 where not wanted.

    Operands of matmuls have hidden's dtype, logits are float32, and the unembedding's gradient is summed over chunks in
    float32, and over groups at the end. A chunk in which nothing is wanted is skipped, so wanted columns had better come
    first.
    """
    return _forward(hidden_RMD, unembedding_DV, tokens_RM, wanted_RM, chunking)[0]


def _forward(
    hidden_RMD: Array, unembedding_DV: Array, tokens_RM: Array, wanted_RM: Array, chunking: Chunking
) -> tuple[Array, _Kept]:
    unembedding_DV = chunking.placement.constrain(unembedding_DV, "model", chunking.vocab)

    def score(hidden_AQD: Array, tokens_AQ: Array) -> tuple[Array, Array, Array | None]:
        logits_AQV = _logits(hidden_AQD, unembedding_DV, chunking)
        chosen_AQ = jnp.sum(jnp.where(_hit(tokens_AQ, logits_AQV), logits_AQV, 0.0), axis=-1)
        return chosen_AQ, jax.nn.logsumexp(logits_AQV, axis=-1), logits_AQV if chunking.save_logits else None

    def step(_: None, inputs: tuple[Array, Array, Array]) -> tuple[None, tuple[Array, Array, Array | None]]:
        hidden_AQD, tokens_AQ, wanted_AQ = inputs
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score, hidden_AQD, tokens_AQ))
        return None, jax.lax.cond(jnp.any(wanted_AQ), score, lambda *_: zeros, hidden_AQD, tokens_AQ)

    hidden_ZAQD, tokens_ZAQ, wanted_ZAQ = map(chunking.split, (hidden_RMD, tokens_RM, wanted_RM))
    _, (chosen_ZAQ, normalizer_ZAQ, logits_ZAQV) = jax.lax.scan(step, None, (hidden_ZAQD, tokens_ZAQ, wanted_ZAQ))
    logprob_ZAQ = jnp.where(wanted_ZAQ, chosen_ZAQ - normalizer_ZAQ, 0.0)
    kept = _Chunk(hidden_ZAQD, tokens_ZAQ, wanted_ZAQ, normalizer_ZAQ, logits_ZAQV), unembedding_DV
    return chunking.join(logprob_ZAQ, tokens_RM), kept


def _backward(chunking: Chunking, kept: _Kept, slope_RM: Array) -> tuple[Array, Array, None, None]:
    (chunks, unembedding_DV), constrain = kept, chunking.placement.constrain

    def add(total_ADV: Array, chunk: _Chunk, slope_AQ: Array) -> tuple[Array, Array]:
        logits_AQV = chunk.logits_AQV
        if logits_AQV is None:
            logits_AQV = _logits(chunk.hidden_AQD, unembedding_DV, chunking)
        chance_AQV = jnp.exp(logits_AQV - chunk.normalizer_AQ[..., None])
        hit_AQV = _hit(chunk.tokens_AQ, chance_AQV)
        slope_AQV = (slope_AQ[..., None] * (hit_AQV - chance_AQV)).astype(chunk.hidden_AQD.dtype)
        slope_AQV = jax.lax.optimization_barrier(slope_AQV)  # made once for both products: see `model.linear`
        hidden_AQD = constrain(chunk.hidden_AQD, chunking.group, None, "model")
        more_ADV = jnp.einsum("aqd,aqv->adv", hidden_AQD, slope_AQV, preferred_element_type=jnp.float32)
        return total_ADV + more_ADV, jnp.einsum("aqv,dv->aqd", slope_AQV, unembedding_DV)

    def skip(total_ADV: Array, chunk: _Chunk, _: Array) -> tuple[Array, Array]:
        return total_ADV, jnp.zeros_like(chunk.hidden_AQD)

    def step(total_ADV: Array, inputs: tuple[_Chunk, Array]) -> tuple[Array, Array]:
        chunk, slope_AQ = inputs
        total_ADV, to_hidden_AQD = jax.lax.cond(jnp.any(chunk.wanted_AQ), add, skip, total_ADV, chunk, slope_AQ)
        return constrain(total_ADV, chunking.group, "model", chunking.vocab), to_hidden_AQD

    slope_ZAQ = jnp.where(chunks.wanted_AQ, chunking.split(slope_RM), 0.0)
    zeros_ADV = jnp.zeros((chunking.groups, *unembedding_DV.shape), jnp.float32)
    zeros_ADV = constrain(zeros_ADV, chunking.group, "model", chunking.vocab)
    total_ADV, to_hidden_ZAQD = jax.lax.scan(step, zeros_ADV, (chunks, slope_ZAQ))
    to_unembedding_DV = jnp.sum(total_ADV, axis=0).astype(unembedding_DV.dtype)
    return chunking.join(to_hidden_ZAQD, slope_RM), to_unembedding_DV, None, None


token_logprob.defvjp(_forward, _backward)


def _logits(hidden_AQD: Array, unembedding_DV: Array, chunking: Chunking) -> Array:
    constrain = chunking.placement.constrain
    hidden_AQD = constrain(hidden_AQD, chunking.group, None, "model")
    logits_AQV = jnp.einsum("aqd,dv->aqv", hidden_AQD, unembedding_DV, preferred_element_type=jnp.float32)
    return constrain(logits_AQV, chunking.group, None, chunking.vocab)


def _hit(tokens_AQ: Array, values_AQV: Array) -> Array:
    """bool [A, Q, V]: where each column's token stands. Compared, not gathered: the vocabulary may be split."""
    return jnp.arange(values_AQV.shape[-1]) == tokens_AQ[..., None]
