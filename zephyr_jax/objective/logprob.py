"""The one sequence log-probability: SFT, DPO, evaluation and the reference pass all call `sequence_logprob`.

Letters: B rows, L row length, C target tokens of a row per chunk, S segments of a row, D model, V vocab.
The shift by one lives here and nowhere else: token t is predicted by the hidden state at t - 1.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from zephyr_jax.batch import TokenBatch
from zephyr_jax.model.attention import Where
from zephyr_jax.model.mistral import Mistral

type Parameters = dict[str, Any]

VERSION = 1
"""Raised whenever the arithmetic changes; part of a reference table's identity."""


class SegmentLogProb(NamedTuple):
    """Sums over the target tokens of each segment."""

    sum: Array
    """float32 [B, S]: log p(targets of the segment | tokens before them)."""
    number: Array
    """float32 [B, S]: how many targets that was."""


@partial(jax.jit, static_argnames=("definition", "segments", "chunk"))
def sequence_logprob(
    definition: nnx.GraphDef, parameters: Parameters, batch: TokenBatch, *, segments: int, chunk: int
) -> SegmentLogProb:
    """Log-prob sums and counts of segments 1 ... `segments` of each row, in float32.

    Only target tokens meet the unembedding, `chunk` of a row at a time, and the backward pass recomputes their
    logits: neither direction ever holds [B, L, V].
    """
    model = nnx.merge(definition, parameters)
    hidden_BLD = model(batch.tokens, Where(batch.segments, batch.positions))
    # Column t - 1 predicts token t: from here on, column l speaks of token l + 1, and the last column of none.
    next_BL = jnp.roll(batch.tokens, -1, axis=1)
    wanted_BL = jnp.roll(batch.targets, -1, axis=1).at[:, -1].set(False)
    front_BL = jnp.argsort(~wanted_BL, axis=1, stable=True)
    logprob_BL = _token_logprob(model, hidden_BLD, next_BL, wanted_BL, front_BL, chunk)
    owner_BL = jnp.take_along_axis(batch.segments, front_BL, axis=1)
    wanted_BL = jnp.take_along_axis(wanted_BL, front_BL, axis=1)
    member_BLS = (owner_BL[..., None] == jnp.arange(1, segments + 1)) & wanted_BL[..., None]
    sum_BS = jnp.sum(jnp.where(member_BLS, logprob_BL[..., None], 0.0), axis=1)
    return SegmentLogProb(sum_BS, jnp.sum(member_BLS, axis=1, dtype=jnp.float32))


def _token_logprob(
    model: Mistral, hidden_BLD: Array, next_BL: Array, wanted_BL: Array, front_BL: Array, chunk: int
) -> Array:
    """float32 [B, L] log-probs in the order `front` (targets first); 0 in the columns after the last target."""
    B, L = next_BL.shape
    chunk = min(chunk, L)
    columns = -(-L // chunk) * chunk
    constrain = model.compute.placement.constrain
    unembedding_DV = model.unembedding_DV.astype(hidden_BLD.dtype)

    @jax.checkpoint
    def score(front_BC: Array) -> Array:
        x_BCD = constrain(jnp.take_along_axis(hidden_BLD, front_BC[..., None], axis=1), "batch", "length", "model")
        logits_BCV = jnp.einsum("bcd,dv->bcv", x_BCD, unembedding_DV, preferred_element_type=jnp.float32)
        logits_BCV = constrain(logits_BCV, "batch", "length", "vocab")
        next_BC1 = jnp.take_along_axis(next_BL, front_BC, axis=1)[..., None]
        chosen_BC = jnp.take_along_axis(logits_BCV, next_BC1, axis=-1)[..., 0]
        return chosen_BC - jax.nn.logsumexp(logits_BCV, axis=-1)

    def step(_: None, front_BC: Array) -> tuple[None, Array]:
        any_wanted = jnp.any(jnp.take_along_axis(wanted_BL, front_BC, axis=1))
        return None, jax.lax.cond(any_wanted, score, lambda front: jnp.zeros(front.shape, jnp.float32), front_BC)

    padded = jnp.pad(front_BL, ((0, 0), (0, columns - L)), constant_values=L - 1)  # column L - 1 is never wanted
    _, logprob = jax.lax.scan(step, None, padded.reshape(B, -1, chunk).swapaxes(0, 1))
    return logprob.swapaxes(0, 1).reshape(B, columns)[:, :L]
